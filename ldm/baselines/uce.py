"""Unified Concept Editing (UCE, arXiv 2308.14761): keys and values of every cross-attention in closed form.

Variants: last-token (the context of a phrase's last token alone, as the authors' code has it since 2025) and to-end (of all positions
from there on, and the empty text kept, as before).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.finetuning.weights import Weights
from ldm.models.diffusion.ddpm import LatentDiffusion


@dataclass(frozen=True)
class Edit:
    """What every matrix W is solved for, from contexts in float64: W' = (lamb W + W cross) right^-1.

    This is (lamb W + es sum v* c^T + ps sum (W c) c^T) (lamb I + es sum c c^T + ps sum c c^T)^-1 with v* = W g (UCE Eq. 7).
    """

    lamb: float
    cross: Tensor  # es sum g c^T + ps sum c c^T, (d, d)
    right: Tensor  # (d, d), symmetric

    @classmethod
    def of(cls, erased: Tensor, guides: Tensor, preserved: Tensor, *, erase_scale: float, preserve_scale: float, lamb: float) -> "Edit":
        """From contexts c and g of names and guides, (n, d) each, and of what is preserved, (k, d), k may be 0."""
        erased, guides, preserved = (tensor.double() for tensor in (erased, guides, preserved))
        kept = preserve_scale * preserved.T @ preserved
        own = lamb * torch.eye(erased.shape[1], dtype=torch.float64, device=erased.device)
        return cls(lamb, erase_scale * guides.T @ erased + kept, own + erase_scale * erased.T @ erased + kept)

    @property
    def condition(self) -> float:
        """Condition number of the matrix that is inverted."""
        return torch.linalg.cond(self.right).item()

    def of_matrix(self, weight: Tensor) -> Tensor:
        """The matrix W' (out, d), float32, nearest to W that maps erased contexts where W maps their guides, and preserved ones as W."""
        weight = weight.double()
        return torch.linalg.solve(self.right, self.lamb * weight + weight @ self.cross, left=False).float()


@torch.no_grad()
def phrase_contexts(model: LatentDiffusion, phrases: Sequence[str], *, to_end: bool) -> list[Tensor]:
    """Of each phrase the contexts of its last token, (1, d), or from there to the end of the 77, (n, d); float32."""
    if not phrases:
        return []
    token_ids = model.cond_stage_model.tokenize(list(phrases))
    end_of_text = int(token_ids.max())  # the highest id of CLIP's vocabulary
    lasts = [int((row == end_of_text).int().argmax()) - 1 for row in token_ids]  # of an empty phrase: its begin of text
    contexts = (model.get_learned_conditioning([phrase])[0, :token_ids.shape[1]].float() for phrase in phrases)
    return [context[last:None if to_end else last + 1] for context, last in zip(contexts, lasts, strict=True)]


@torch.no_grad()
def edit(weights: Weights, names: Sequence[str], *, guide: str, preserve: Sequence[str], to_end: bool, erase_scale: float,
         preserve_scale: float, lamb: float) -> tuple[dict[str, Tensor], float]:
    """Keys and values that show `guide` for each of the names.

    Args:
        weights: those of all cross-attentions.

    Returns:
        Edited tensors by their keys in the checkpoint, and the condition number of the matrix that was inverted.
    """
    named, preserved = (phrase_contexts(weights.model, phrases, to_end=to_end) for phrases in (names, preserve))
    guide_context, = phrase_contexts(weights.model, [guide], to_end=to_end)
    lengths = [min(len(one), len(guide_context)) for one in named]
    guides = torch.cat([guide_context[:length] for length in lengths])
    erased = torch.cat([one[:length] for one, length in zip(named, lengths, strict=True)])
    solution = Edit.of(erased, guides, torch.cat(preserved) if preserved else erased[:0], erase_scale=erase_scale,
                       preserve_scale=preserve_scale, lamb=lamb)
    return {key: solution.of_matrix(weight) for key, weight in weights.tensors.items()}, solution.condition
