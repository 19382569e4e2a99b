"""Latent diffusion: text encoder, autoencoder and U-Net with the noise schedule between them (paper section 3.2)."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.public_names import absent_names
from ldm.util import UserError, instantiate_from_config, refuse_other_architectures

if TYPE_CHECKING:
    from ldm.models.autoencoder import AutoencoderKL
    from ldm.modules.encoders.modules import EmbeddingHook, FrozenCLIPEmbedder

__getattr__ = absent_names(__name__)

SCHEDULE = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")


def is_ignored(key: str) -> bool:
    """Whether a key of public checkpoints is no weight of the model: schedule, averaged weights, positions, losses."""
    return ("." not in key or key.startswith(("model_ema.", "first_stage_model.loss.", "embedding_manager.", "denoiser."))
            or key.endswith((".position_ids", ".logit_scale", ".text_projection")))


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under its name in public checkpoints, `model.diffusion_model`."""

    def __init__(self, unet_config: Mapping[str, Any]):
        super().__init__()
        self.diffusion_model = instantiate_from_config(unet_config)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.diffusion_model(*inputs)


class LatentDiffusion(nn.Module):
    """Stable Diffusion v1: predicts the noise in a latent from a text.

    Args:
        linear_start, linear_end: first and last beta; their square roots are interpolated linearly.
        timesteps: number T of training timesteps.
        image_size: side of a square latent, an eighth of the image's.
        channels: channels of a latent.
        scale_factor: factor from the autoencoder's latents to those that the U-Net sees.
        personalization_config: of an EmbeddingManager, which is then `embedding_manager` and serves every prompt (textual inversion).
    """

    parameterization = "eps"
    text_encoder = "cond_stage_model"  # its name in public checkpoints
    cond_stage_model: "FrozenCLIPEmbedder"
    first_stage_model: "AutoencoderKL"
    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(self, *, unet_config: Mapping[str, Any], first_stage_config: Mapping[str, Any], cond_stage_config: Mapping[str, Any],
                 linear_start: float, linear_end: float, timesteps: int = 1000, image_size: int = 64, channels: int = 4,
                 scale_factor: float = 1.0, personalization_config: Mapping[str, Any] | None = None, **other):
        super().__init__()
        refuse_other_architectures("LatentDiffusion", other)
        if not isinstance(cond_stage_config, Mapping):
            raise UserError(f"LatentDiffusion is given cond_stage_config={cond_stage_config!r} but needs a text encoder, as Stable "
                            "Diffusion v1 has it; use configs/stable-diffusion/v1-inference.yaml")
        self.num_timesteps, self.personalization_config = timesteps, personalization_config
        self.image_size, self.channels, self.scale_factor = image_size, channels, scale_factor
        self.model = DiffusionWrapper(unet_config)
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.add_module(self.text_encoder, instantiate_from_config(cond_stage_config))
        # Not saved, and not on the meta device even when the model is built there.
        roots = torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64, device="cpu")
        betas = roots.square()
        alphas_cumprod = (1.0 - betas).cumprod(0)
        values = (betas, alphas_cumprod, torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]]),
                  alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt())
        for name, value in zip(SCHEDULE, values, strict=True):
            self.register_buffer(name, value.float(), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.betas.device

    @cached_property  # not a submodule: its vectors are no weights of the model; built on demand, because it reads the token table
    def embedding_manager(self) -> "EmbeddingHook":
        if self.personalization_config is None:
            raise AttributeError("this model has no embedding_manager")
        return instantiate_from_config(self.personalization_config, embedder=self.cond_stage_model)

    def get_learned_conditioning(self, texts: str | Sequence[str], embedding_manager: "EmbeddingHook | None" = None) -> Tensor:
        """Context tau(c), or tau_AP(c) with a manager: (B, 77, context_dim); see FrozenCLIPEmbedder.forward."""
        if embedding_manager is None and self.personalization_config is not None:
            embedding_manager = self.embedding_manager
        return self.cond_stage_model(texts, embedding_manager)

    def get_negative_conditioning(self, texts: str | Sequence[str]) -> Tensor:
        """Context of a negative prompt, (B, 77, context_dim), which an attached AnonymizationPrompt leaves unchanged."""
        return self.cond_stage_model(texts)

    def encode_first_stage(self, image: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over unscaled latents of an image (B, 3, H, W) in [-1, 1]."""
        return self.first_stage_model.encode(image)

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution | Tensor,
                                 generator: torch.Generator | None = None) -> Tensor:
        """Latent z_0 (B, 4, H/8, W/8): a sample of the posterior, or an unscaled latent, times `scale_factor`."""
        latent = posterior if isinstance(posterior, Tensor) else posterior.sample(generator)
        return self.scale_factor * latent

    def decode_first_stage(self, latent: Tensor) -> Tensor:
        """Image (B, 3, 8h, 8w), about [-1, 1] but not clamped, of a scaled latent (B, 4, h, w)."""
        dtype = next(self.first_stage_model.parameters()).dtype
        return self.first_stage_model.decode((latent / self.scale_factor).to(dtype))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Noisy latent z_t = sqrt(alphabar_t) z_0 + sqrt(1 - alphabar_t) noise, with t (B,) int64 in 0 .. T - 1."""
        noise = torch.randn_like(x_start) if noise is None else noise
        signal, spread = (values[t].to(x_start.dtype)[:, None, None, None]  # (B, 1, 1, 1)
                          for values in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return signal * x_start + spread * noise

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | Mapping[str, list[Tensor]]) -> Tensor:
        """eps(z_t, tau(c), t), like x_noisy (B, 4, h, w); cond is the context, or {"c_crossattn": [context]}."""
        if isinstance(cond, Mapping):
            cond = torch.cat(cond["c_crossattn"], dim=1)
        return self.model(x_noisy, t, cond)

    def ema_scope(self, context: str | None = None) -> AbstractContextManager[None]:
        """Public name; does nothing, because there are no separate averaged weights here (`context` is a label)."""
        return nullcontext()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As in torch, but ignores the keys of public checkpoints that are no weights, see `is_ignored`."""
        own = dict(self.named_parameters())
        weights = {key: value for key, value in state_dict.items() if key in own or not is_ignored(key)}
        return super().load_state_dict(weights, strict=strict, assign=assign)

    def _apply(self, fn, recurse=True):
        """Keep the schedule in float32 when the model is cast: bfloat16 would merge neighbouring timesteps."""
        schedule = {name: getattr(self, name) for name in SCHEDULE}
        super()._apply(fn, recurse)
        for name, value in schedule.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self
