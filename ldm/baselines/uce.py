"""Unified Concept Editing (UCE, arXiv 2308.14761): keys and values of every cross-attention in closed form.

Variants: last-token (the context of a phrase's last token alone, as the authors' code has it since 2025) and to-end (of all positions
from there on, and the empty text kept, as before).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.baselines.weights import parameters_of
from ldm.models.diffusion.ddpm import LatentDiffusion


def edited_matrix(weight: Tensor, erased: Tensor, guides: Tensor, preserved: Tensor, *, erase_scale: float, preserve_scale: float,
                  lamb: float) -> tuple[Tensor, float]:
    """The matrix W' nearest to W that maps erased contexts where W maps their guides, and preserved ones where W does (UCE Eq. 7).

    W' = (lamb W + es sum v* c^T + ps sum (W c) c^T) (lamb I + es sum c c^T + ps sum c c^T)^-1, with v* = W g.

    Args:
        weight: W, (out, d).
        erased, guides: c and g, (n, d) each.
        preserved: c, (k, d), k may be 0.

    Returns:
        W', (out, d) float32, and the condition number of the matrix that is inverted.
    """
    weight, erased, guides, preserved = (tensor.double() for tensor in (weight, erased, guides, preserved))
    left = lamb * weight + erase_scale * (weight @ guides.T) @ erased + preserve_scale * (weight @ preserved.T) @ preserved
    right = lamb * torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    right += erase_scale * erased.T @ erased + preserve_scale * preserved.T @ preserved  # (d, d), symmetric
    return torch.linalg.solve(right, left, left=False).float(), torch.linalg.cond(right).item()


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


def edit(model: LatentDiffusion, names: Sequence[str], *, guide: str, preserve: Sequence[str], to_end: bool, erase_scale: float,
         preserve_scale: float, lamb: float) -> tuple[dict[str, Tensor], float]:
    """Keys and values that show `guide` for each of the names.

    Returns:
        Edited tensors by their keys in the checkpoint, and the condition number of the matrix inverted, the same for all.
    """
    erased, preserved = (phrase_contexts(model, phrases, to_end=to_end) for phrases in (names, preserve))
    guide_context, = phrase_contexts(model, [guide], to_end=to_end)
    lengths = [min(len(one), len(guide_context)) for one in erased]
    guides = torch.cat([guide_context[:length] for length in lengths])
    erased = torch.cat([one[:length] for one, length in zip(erased, lengths, strict=True)])
    kept = torch.cat(preserved) if preserved else erased[:0]
    condition, weights = float("nan"), {}
    for key in parameters_of(model, "xattn-kv"):
        weights[key], condition = edited_matrix(model.get_parameter(key), erased, guides, kept, erase_scale=erase_scale,
                                                preserve_scale=preserve_scale, lamb=lamb)
    return weights, condition
