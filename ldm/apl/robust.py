"""Training against an attacker who uploads an embedding (`--train_method apl-robust`; ours, not the paper's).

The attacker puts a block a of k vectors between prefix and prompt, [AP][a] + c1. In half of the samples of S_ID, inner steps search for the
block that brings the name back, and the prefix is trained behind it; target (Eq. 5), L_ID (Eq. 6) and L_Reg (Eq. 7) are those of the paper:

    a    = argmin ||eps(x, tau_AP(a + c1), t) - eps(x, tau(c1), t)||^2,    each vector within a radius of a row of the token table
    L_ID = ||eps(x, tau_AP(a + c1), t) - target||^2
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.apl.fast_step import Batch
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager, Manager
from ldm.modules.encoders.modules import EmbeddingHook

LR = 1e-2  # of the inner steps


class Attacked:
    """EmbeddingHook for [AP][a] + prompt: a block (B, k, d) behind the prefix in front of each of B prompts.

    The prompt moves k positions to the right. What is pushed past the last position is dropped, but the end of the text stays there.
    """

    def __init__(self, prefix: Manager, block: Tensor):
        assert isinstance(prefix, EmbeddingManager), "a context map has no place behind it"
        self.prefix, self.block, self.extra_length = prefix, block, prefix.extra_length

    def __call__(self, token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        """(B, 77, d); gradients reach prefix and block."""
        prefixed = self.prefix(token_ids, token_embeddings)
        front, k = 1 + self.prefix.num_vectors, self.block.shape[1]  # begin of text and [AP]
        return torch.cat([prefixed[:, :front], self.block.to(prefixed), prefixed[:, front:-1 - k], prefixed[:, -1:]], 1)


def attacked_context(model: LatentDiffusion, prefix: Manager, batch: Batch, context: Tensor, *, vectors: int, steps: int,
                     radius: float | None) -> Tensor:
    """`context` tau_AP(c1) of a batch (B, 77, d), with tau_AP(a + c1) for the samples that are attacked; gradients reach the prefix.

    Args:
        vectors, steps, radius: see `first_block` and `find_block`.
    """
    def hook(attacked: Batch) -> Attacked:
        first = first_block(attacked, token_table(model), vectors)
        return Attacked(prefix, find_block(model, prefix, attacked, first, steps=steps, radius=radius))

    return with_attacks(model, batch, context, hook)


def with_attacks(model: LatentDiffusion, batch: Batch, context: Tensor, hook: Callable[[Batch], EmbeddingHook]) -> Tensor:
    """`context` of a batch (B, 77, d), with that behind `hook`, an EmbeddingHook of some samples, for the samples that are attacked."""
    rows = torch.nonzero(batch.attack_seed >= 0)[:, 0]  # on the CPU
    if not len(rows):
        return context
    attacked = batch.rows(rows)
    return context.index_copy(0, rows.to(context.device), model.cond_stage_model.context(attacked.token_ids, hook(attacked)))


def find_block(model: LatentDiffusion, prefix: Manager, batch: Batch, first: Tensor, *, steps: int,
               radius: float | None) -> Tensor:
    """The block (B, k, d) of each sample after the inner steps, detached.

    Adam moves a free block, and its projection is attacked, so that small steps add up also where the radius admits only tokens.

    Args:
        batch: of attacked samples only.
        first: the block at the start, (B, k, d).
        steps: of Adam; each is one forward and one backward pass of the U-Net per sample.
        radius: see `project`.
    """
    table, free = token_table(model), first.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=LR)
    for _ in range(steps):
        block = project(free.detach(), table, radius).requires_grad_()
        context = model.cond_stage_model.context(batch.token_ids, Attacked(prefix, block))
        loss = attack_loss(model.apply_model(batch.noisy_latent, batch.timestep, context), batch.eps_name)
        (free.grad,) = torch.autograd.grad(loss, block)  # none reaches the prefix
        optimizer.step()
    return project(free.detach(), table, radius)


def attack_loss(eps_attacked: Tensor, eps_name: Tensor) -> Tensor:
    """||eps(x, tau_AP(a + c1), t) - eps(x, tau(c1), t)||^2, the sum over samples: no block affects the gradient of another's."""
    return F.mse_loss(eps_attacked, eps_name, reduction="sum")


def project(vectors: Tensor, table: Tensor, radius: float | None) -> Tensor:
    """The nearest vectors (..., d) at most `radius` from a row of `table` (V, d): 0 gives rows, real tokens; None changes nothing."""
    if radius is None:
        return vectors
    nearest = table[torch.cdist(vectors.flatten(0, -2), table).argmin(1)].view_as(vectors)
    distance = (vectors - nearest).norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return nearest + (vectors - nearest) * (radius / distance).clamp_max(1)


def first_block(batch: Batch, table: Tensor, vectors: int) -> Tensor:
    """Random rows of the token table (V, d) for each sample, a function of its attack seed; (B, k, d)."""
    rows = [torch.randint(len(table), (vectors,), generator=torch.Generator().manual_seed(seed)) for seed in batch.attack_seed.tolist()]
    return table[torch.stack(rows).to(table.device)]


def token_table(model: LatentDiffusion) -> Tensor:
    """Token embeddings (V, d) of the text encoder."""
    return model.cond_stage_model.get_input_embeddings().weight.detach()
