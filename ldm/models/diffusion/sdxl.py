"""SDXL (arXiv 2307.01952): latent diffusion with two text encoders and image sizes as a further condition."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.util import timestep_embedding

if TYPE_CHECKING:
    from ldm.modules.encoders.sdxl import GeneralConditioner

SIZE_CHANNELS = 256  # sinusoids of each of the six sizes


class DiffusionEngine(LatentDiffusion):
    """SDXL's base model under the public checkpoint's names; used like LatentDiffusion, with the config of a GeneralConditioner.

    A context, (B, 78, 2048), holds the pooled text in its last row, see GeneralConditioner.
    """

    text_encoder = "conditioner"
    conditioner: "GeneralConditioner"
    size_vector: Tensor

    def __init__(self, *, conditioner_config: Mapping[str, Any], **params):
        super().__init__(cond_stage_config=conditioner_config, **params)
        self.register_buffer("size_vector", None, persistent=False)
        side = 8 * self.image_size
        self.set_sizes((side, side), (0, 0), (side, side))

    @property
    def cond_stage_model(self) -> "GeneralConditioner":  # type: ignore[override]  # same interface
        return self.conditioner

    def set_sizes(self, original: tuple[int, int], crop_top_left: tuple[int, int], target: tuple[int, int]) -> None:
        """Set the size condition of all images from now on (section 2.2): pairs of height and width, or top and left, in pixels."""
        sizes = torch.tensor([*original, *crop_top_left, *target], device="cpu")
        self.size_vector = timestep_embedding(sizes, SIZE_CHANNELS).view(1, -1).to(self.device)  # (1, 1536)

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | Mapping[str, list[Tensor]]) -> Tensor:
        context = torch.cat(cond["c_crossattn"], dim=1) if isinstance(cond, Mapping) else cond
        pooled = context[:, -1, :self.conditioner.second.pooled_width]
        y = torch.cat([pooled, self.size_vector.to(pooled).expand(len(pooled), -1)], dim=1)
        return self.model(x_noisy, t, context[:, :-1], y)

    def get_negative_conditioning(self, texts: str | Sequence[str]) -> Tensor:
        """As in LatentDiffusion, (B, 78, 2048), but zeros for the empty text, which replaced omitted captions in SDXL's training."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        named = torch.tensor([bool(text) for text in texts], device=self.device)[:, None, None]
        return self.cond_stage_model(texts) * named
