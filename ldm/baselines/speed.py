"""SPEED (arXiv 2503.07392): edits the value matrix of every cross-attention in closed form, inside the null space of texts to retain.

Variants: filtered (retains only the texts that an unconstrained edit would move more than their mean, as published for a few concepts) and
unfiltered (retains all of them, as published for a hundred celebrities).
"""

from collections.abc import Sequence

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ldm.baselines.uce import phrase_contexts
from ldm.finetuning.weights import Weights
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError

NULL = 0.1      # eigenvalue of the retained contexts' second moment below which a direction is free
COPIES = 10     # noisy copies of each retained context
CENTRES = 3     # k-means centres of the empty text's states behind its first one
INVARIANT = 1e-6  # added to the diagonal of the invariants' system, which is singular if fewer directions are free than invariants


def edit_matrix(weight: Tensor, targets: Tensor, anchors: Tensor, free: Tensor, invariants: Tensor, lamb: float) -> tuple[Tensor, float]:
    """W + dW, which maps targets to the values of their anchors as far as the free directions allow; SPEED's closed form.

    dW = W (A - T) P (I - M K (K^T P M K)^-1 K^T P) M with T = mean t t^T, A = mean a t^T, M = (T P + lamb I)^-1. It leaves W k of the
    invariants k, and W r of each r with P r = 0, as they were.

    Args:
        weight: W, (out, d).
        targets, anchors: contexts t of names and a of their anchors, (n, d) each.
        free: projection P onto the free directions, (d, d).
        invariants: contexts k, (k, d), where k may be 0.
        lamb: weight of the original matrix.

    Returns:
        W + dW, (out, d) float64, and the larger condition number of the two inverted matrices.
    """
    weight, targets, anchors, free, k = (tensor.double() for tensor in (weight, targets, anchors, free, invariants.T))
    identity, count = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device), len(targets)
    first = targets.T @ targets / count @ free + lamb * identity  # T P + lamb I
    inverse = torch.linalg.inv(first)  # M
    second = k.T @ free @ inverse @ k + INVARIANT * torch.eye(k.shape[1], dtype=torch.float64, device=k.device)
    held = identity - inverse @ k @ torch.linalg.solve(second, k.T @ free)
    change = weight @ ((anchors - targets).T @ targets / count) @ free @ held @ inverse
    conditions = [torch.linalg.cond(system).item() for system in (first, second) if system.numel()]
    return weight + change, max(conditions)


def free_directions(retained: Tensor) -> Tensor:
    """Projection P (d, d) onto the eigenvectors of mean r r^T with eigenvalues below NULL; `retained` are the contexts r, (n, d)."""
    values, vectors = torch.linalg.eigh(retained.T @ retained / max(len(retained), 1))
    null = vectors[:, values < NULL]
    return null @ null.T


def retained_for(weight: Tensor, targets: Tensor, anchors: Tensor, retained: Tensor, filtered: bool,
                 generator: torch.Generator) -> Tensor:
    """The contexts to retain for one matrix W, (n, d) float64, with the noisy copies that an unconstrained edit would move most.

    The copies differ from a context r by noise along the right singular vector of W with the smallest singular value, so W maps them
    nearly as r. A text is moved by |E r| with E = W (A - T)(I + T)^-1; `filtered` keeps only the texts moved more than their mean.
    """
    count, identity = len(targets), torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    moved = weight @ torch.linalg.solve(identity + targets.T @ targets / count, (anchors - targets).T @ targets / count, left=False)

    def moved_most(contexts: Tensor) -> Tensor:
        lengths = (contexts @ moved.T).norm(dim=1)
        return contexts[lengths > lengths.mean()]

    kept = moved_most(retained) if filtered else retained
    least = torch.linalg.svd(weight, full_matrices=False).Vh[-1]  # (d,)
    noise = torch.randn(COPIES * len(kept), len(least), generator=generator, dtype=torch.float64).to(weight.device)
    return torch.cat([kept, moved_most(kept.repeat(COPIES, 1) + torch.outer(noise @ least, least))])


@torch.no_grad()
def invariants_of(model: LatentDiffusion, seed: int) -> Tensor:
    """Contexts that no edit changes, (1 + CENTRES, d) float64: the empty text's first state, and the k-means centres of its others."""
    length = model.cond_stage_model.tokenize([""]).shape[1]
    states = model.get_learned_conditioning([""])[0, :length].double()
    centres, _ = kmeans2(states[1:].cpu().numpy(), CENTRES, minit="++", seed=seed)
    return torch.cat([states[:1], torch.from_numpy(centres).to(states)])


@torch.no_grad()
def edit(weights: Weights, names: Sequence[str], *, guide: str, preserve: Sequence[str], filtered: bool, lamb: float,
         seed: int) -> tuple[dict[str, Tensor], float]:
    """Edit the value matrices so that each name generates `guide`; equal seeds give equal bytes.

    Args:
        weights: value matrices of all cross-attentions.
        guide: anchor of every name.
        preserve: phrases to retain, by the context of their last token.
        filtered: variant filtered instead of unfiltered.
        lamb, seed: see `edit_matrix`; seed of the noisy copies and of k-means.

    Returns:
        W + dW by key, (out, d) float32, and the largest condition number of the inverted matrices.

    Raises:
        UserError: the texts to retain leave no free direction in any matrix.
    """
    targets, retained = (torch.cat(phrase_contexts(weights.model, some, to_end=False)).double() if some else None
                         for some in (names, preserve))
    assert targets is not None
    anchors = phrase_contexts(weights.model, [guide], to_end=False)[0].double().expand_as(targets)
    invariants, generator = invariants_of(weights.model, seed), torch.Generator().manual_seed(seed)
    edited, conditions, ranks = {}, [], []
    for key, tensor in weights.tensors.items():
        weight = tensor.double()
        own = targets[:0] if retained is None else retained_for(weight, targets, anchors, retained, filtered, generator)
        free = free_directions(own)
        new, condition = edit_matrix(weight, targets, anchors, free, invariants, lamb)
        edited[key] = new.float()
        conditions.append(condition)
        ranks.append(round(free.trace().item()))
    if not max(ranks):
        raise UserError(f"the {len(preserve)} texts to retain fill all {targets.shape[1]} directions of the context, so that no name can "
                        "be erased without changing them; give fewer --preserve_prompts or --keep_names")
    return edited, max(conditions)
