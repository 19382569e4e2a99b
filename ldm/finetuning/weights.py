"""Parameter groups that the methods train, and their trainable float32 copies. The frozen model itself never changes."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ldm.edited_weights import edited
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import CrossAttention
from ldm.util import UserError

UNET = "model.diffusion_model."
CROSS_ATTENTION = ".attn2."  # attn1 is self-attention
AROUND = (f"{UNET}time_embed.", f"{UNET}out.")  # layers outside the blocks; "noxattn" excludes them, as the ESD authors' code does

# Group name -> predicate on names of U-Net parameters.
PARAMETERS = {
    "xattn-kv": lambda key: CROSS_ATTENTION in key and (".to_k." in key or ".to_v." in key),
    "xattn-v": lambda key: CROSS_ATTENTION in key and ".to_v." in key,
    "xattn": lambda key: CROSS_ATTENTION in key,
    "noxattn": lambda key: CROSS_ATTENTION not in key and not key.startswith(AROUND),
    "full": lambda key: True,
}


def parameters_of(model: LatentDiffusion, group: str, *, text_encoder: bool = False) -> list[str]:
    """Names of the U-Net parameters in a group of `PARAMETERS`, and with `text_encoder` those of the text encoder."""
    keys = [key for key, _ in model.named_parameters()]
    return ([key for key in keys if key.startswith(UNET) and PARAMETERS[group](key)]
            + [key for key in keys if text_encoder and key.startswith(f"{model.text_encoder}.")])


class Weights:
    """Trainable float32 copies of the parameters of a model with these names."""

    def __init__(self, model: LatentDiffusion, keys: list[str]):
        self.model = model
        self.tensors = {key: model.get_parameter(key).detach().to(torch.float32, copy=True).contiguous().requires_grad_()
                        for key in keys}

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.tensors.values())

    def state_dict(self) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in self.tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for key, value in self.tensors.items():
            value.copy_(state[key])

    def in_place(self) -> AbstractContextManager[None]:
        """Temporarily replace the model's parameters by the copies; restore them on exit."""
        return edited(self.model, self.tensors)

    def eps(self, noisy_latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """eps_theta(z_t, tau(c), t) of the edited model, (B, 4, h, w) float32; gradients flow to the copies."""
        with self.in_place():
            return self.model.apply_model(noisy_latent, timestep, context).float()


def cross_attentions(model: LatentDiffusion) -> dict[str, CrossAttention]:
    """Cross-attention layers between image features and text, by name; raises UserError if the model has none."""
    found = {name: module for name, module in model.named_modules() if f"{name}.".endswith(CROSS_ATTENTION)}
    if not found:
        raise UserError("this model has no cross-attention to the text, which the method edits; give another")
    return found
