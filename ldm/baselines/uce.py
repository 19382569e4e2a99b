"""Unified Concept Editing (UCE, arXiv 2308.14761): edits the key and value matrices of every cross-attention in closed form.

Variants: last-token (uses the context of a phrase's last token, as the authors' code does since 2025) and to-end (uses all positions
from the last token to the end, and preserves the empty text, as the earlier code did).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.finetuning.weights import Weights
from ldm.models.diffusion.ddpm import LatentDiffusion


@dataclass(frozen=True)
class Edit:
    """Closed-form solution for every matrix W, in float64: W' = (lamb W + W cross) right^-1.

    This is (lamb W + es sum v* c^T + ps sum (W c) c^T) (lamb I + es sum c c^T + ps sum c c^T)^-1 with v* = W g (UCE Eq. 7).
    """

    lamb: float
    cross: Tensor  # es sum g c^T + ps sum c c^T, (d, d)
    right: Tensor  # (d, d), symmetric

    @classmethod
    def of(cls, erased: Tensor, guides: Tensor, preserved: Tensor, *, erase_scale: float, preserve_scale: float, lamb: float) -> "Edit":
        """Build the solution from contexts c of names and g of guides, (n, d) each, and preserved contexts, (k, d), where k may be 0."""
        erased, guides, preserved = (tensor.double() for tensor in (erased, guides, preserved))
        kept = preserve_scale * preserved.T @ preserved
        own = lamb * torch.eye(erased.shape[1], dtype=torch.float64, device=erased.device)
        return cls(lamb, erase_scale * guides.T @ erased + kept, own + erase_scale * erased.T @ erased + kept)

    @property
    def condition(self) -> float:
        """Condition number of the inverted matrix."""
        return torch.linalg.cond(self.right).item()

    def of_matrix(self, weight: Tensor) -> Tensor:
        """W', (out, d) float32: close to W, maps erased contexts to the values of their guides, and preserves the other contexts."""
        weight = weight.double()
        return torch.linalg.solve(self.right, self.lamb * weight + weight @ self.cross, left=False).float()


@torch.no_grad()
def phrase_contexts(model: LatentDiffusion, phrases: Sequence[str], *, to_end: bool) -> list[Tensor]:
    """Context of each phrase's last token, (1, d) float32, or with `to_end` of all positions from there to the end, (n, d)."""
    if not phrases:
        return []
    token_ids = model.cond_stage_model.tokenize(list(phrases))
    end_of_text = int(token_ids.max())  # the highest id of CLIP's vocabulary
    lasts = [int((row == end_of_text).int().argmax()) - 1 for row in token_ids]  # begin of text for an empty phrase
    contexts = (model.get_learned_conditioning([phrase])[0, :token_ids.shape[1]].float() for phrase in phrases)
    return [context[last:None if to_end else last + 1] for context, last in zip(contexts, lasts, strict=True)]


@torch.no_grad()
def edit(weights: Weights, names: Sequence[str], *, guide: str, preserve: Sequence[str], to_end: bool, erase_scale: float,
         preserve_scale: float, lamb: float) -> tuple[dict[str, Tensor], float]:
    """Edit the key and value matrices so that each name generates `guide`.

    Args:
        weights: key and value matrices of all cross-attentions.
        names: names to erase.
        guide: phrase that replaces each name.
        preserve: phrases whose keys and values are preserved.
        to_end: variant to-end instead of last-token.
        erase_scale, preserve_scale, lamb: es, ps and lamb of `Edit`.

    Returns:
        Edited tensors by their keys in the checkpoint, and the condition number of the inverted matrix.
    """
    named, preserved = (phrase_contexts(weights.model, phrases, to_end=to_end) for phrases in (names, preserve))
    guide_context, = phrase_contexts(weights.model, [guide], to_end=to_end)
    lengths = [min(len(one), len(guide_context)) for one in named]
    guides = torch.cat([guide_context[:length] for length in lengths])
    erased = torch.cat([one[:length] for one, length in zip(named, lengths, strict=True)])
    solution = Edit.of(erased, guides, torch.cat(preserved) if preserved else erased[:0], erase_scale=erase_scale,
                       preserve_scale=preserve_scale, lamb=lamb)
    return {key: solution.of_matrix(weight) for key, weight in weights.tensors.items()}, solution.condition
