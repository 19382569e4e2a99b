"""Unified Concept Editing (UCE, arXiv 2308.14761): edits the key and value matrices of every cross-attention in closed form.

Variants: last-token (uses the context of a phrase's last token, as the authors' code does since 2025) and to-end (uses all positions
from the last token to the end, and preserves the empty text, as the earlier code did).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ldm.finetuning.weights import Weights
from ldm.models.diffusion.ddpm import LatentDiffusion


def edit_matrices(matrices: Mapping[str, Tensor], erased: Tensor, guides: Tensor, preserved: Tensor, *, erase_scale: float,
                  preserve_scale: float, lamb: float) -> tuple[dict[str, Tensor], float]:
    """Closed-form solution W' for every matrix W: close to W, it maps erased contexts to the values of their guides (UCE Eq. 7).

    W' = (lamb W + es sum v* c^T + ps sum (W k) k^T) (lamb I + es sum c c^T + ps sum k k^T)^-1 with v* = W g, computed in float64.

    Args:
        matrices: W by key, (out, d).
        erased, guides: contexts c of names and g of their guides, (n, d) each.
        preserved: contexts k whose values W k are preserved, (k, d), where k may be 0.
        erase_scale, preserve_scale, lamb: es, ps and lamb.

    Returns:
        W' by key, (out, d) float32, and the condition number of the inverted matrix.
    """
    erased, guides, preserved = (tensor.double() for tensor in (erased, guides, preserved))
    kept = preserve_scale * preserved.T @ preserved
    cross = erase_scale * guides.T @ erased + kept  # (d, d)
    right = lamb * torch.eye(erased.shape[1], dtype=torch.float64, device=erased.device) + erase_scale * erased.T @ erased + kept
    edited = {key: torch.linalg.solve(right, lamb * weight.double() + weight.double() @ cross, left=False).float()
              for key, weight in matrices.items()}
    return edited, torch.linalg.cond(right).item()


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
        guide: phrase that replaces each name.
        preserve: phrases whose keys and values are preserved.
        to_end: variant to-end instead of last-token; it also preserves the empty text.
        erase_scale, preserve_scale, lamb: see `edit_matrices`, which also describes the result.
    """
    phrases = names, [*preserve, *[""] * to_end]
    named, preserved = (phrase_contexts(weights.model, some, to_end=to_end) for some in phrases)
    guide_context, = phrase_contexts(weights.model, [guide], to_end=to_end)
    lengths = [min(len(one), len(guide_context)) for one in named]
    guides = torch.cat([guide_context[:length] for length in lengths])
    erased = torch.cat([one[:length] for one, length in zip(named, lengths, strict=True)])
    return edit_matrices(weights.tensors, erased, guides, torch.cat(preserved) if preserved else erased[:0], erase_scale=erase_scale,
                         preserve_scale=preserve_scale, lamb=lamb)
