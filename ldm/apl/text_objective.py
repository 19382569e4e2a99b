"""The objective of --train_method apl-text: contexts in place of predictions, from texts alone, without an image or the U-Net.

It is ours and not the paper's. tau_AP(c1), the context of [AP] + c1, approaches tau(c2) for S_ID, and tau(c1) for S_Reg (c1 = c2). The two
texts differ in length, so their states are compared where they correspond, see `corresponding_rows`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import update
from ldm.apl.look_ahead import Share
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager, Manager
from ldm.sharing import Devices

STATES = 77  # rows of a context that are states of tokens


def text_loss(context_prefixed: Tensor, context_attributes: Tensor, rows: Tensor) -> Tensor:
    """||tau_AP(c1) - tau(c2)||^2 / ||tau(c2)||^2 of each sample, (B,), over the rows of both that correspond.

    Args:
        context_prefixed: tau_AP(c1), (B, 77, d), or (B, 78, d) with SDXL's pooled text, whose own ratio is added; receives the gradient.
        context_attributes: tau(c2), same shape.
        rows: the row of tau(c2) that corresponds to each row of tau_AP(c1), (B, 77 or 78) int64; -1 for none.
    """
    wanted = context_attributes.detach().gather(1, rows.clamp_min(0)[..., None].expand_as(context_attributes))
    compared = (rows >= 0)[..., None]
    errors, scales = ((square * compared).sum(2) for square in ((context_prefixed - wanted).square(), wanted.square()))  # (B, rows)
    return sum(error.sum(1) / scale.sum(1) for error, scale in zip(errors.split(STATES, 1), scales.split(STATES, 1), strict=True))


def corresponding_rows(prefixed_ids: Tensor, attribute_ids: Tensor, same: Tensor, num_vectors: int, height: int) -> Tensor:
    """The row of tau(c2) that corresponds to each row of tau_AP(c1), (B, height) int64; -1 for none.

    - The ends of both texts correspond: the encoder is causal, and sums up a text there. So does SDXL's pooled text, row 77.
    - Padding corresponds at equal positions, behind both ends.
    - Where c1 = c2 (S_Reg), each word corresponds to itself, m positions further on with the prefix.
    - The vectors of the prefix, and the words of different texts, correspond to nothing.

    Args:
        prefixed_ids: token ids of the placeholder and c1, (B, 77), before m vectors replace the placeholder.
        attribute_ids: token ids of c2, (B, 77).
        same: whether c1 = c2, (B,) bool.
        num_vectors: m.
        height: rows of a context, 77 or 78.
    """
    end_of_text, m = prefixed_ids[0, -1], num_vectors
    row = torch.arange(height, device=prefixed_ids.device)
    end_prefixed, end = ((ids == end_of_text).int().argmax(1, keepdim=True) for ids in (prefixed_ids, attribute_ids))  # (B, 1)
    end_prefixed = end_prefixed + m - 1
    found = torch.where(row > torch.maximum(end_prefixed, end), row, -1)  # (B, height)
    found = torch.where(same[:, None] & (row > m) & (row < end_prefixed), row - m, found)
    return torch.where(row == end_prefixed, end, found)


@dataclass(frozen=True)
class TextBatch:
    """The texts of a step, on the device."""

    token_ids: Tensor           # of [AP] + c1, (B, 77)
    context_attributes: Tensor  # tau(c2), (B, 77, d)
    rows: Tensor                # see `corresponding_rows`, (B, 77)
    is_identity: Tensor         # 1 for S_ID, 0 for S_Reg; (B,) float32


def text_batches(model: LatentDiffusion, prefix: EmbeddingManager, data: TrainingSet, share: Share, *, first_step: int,
                 iterations: int) -> Iterator[TextBatch]:
    """This rank's texts of each step after `first_step`. No image is read."""
    texts, embedder = Texts(model, prefix), model.cond_stage_model
    for step in range(first_step, iterations):
        samples = data.samples(share.numbers(step))
        token_ids = texts.token_ids(samples.name_prompts)
        attribute_ids = embedder.tokenize(samples.attribute_prompts).to(token_ids)
        is_identity = torch.tensor(samples.is_identity, device=token_ids.device)
        rows = corresponding_rows(token_ids, attribute_ids, ~is_identity, prefix.num_vectors, embedder.context_shape[0])
        yield TextBatch(token_ids, texts.contexts(samples.attribute_prompts), rows, is_identity.float())


def text_step(fabric: Devices, model: LatentDiffusion, prefix: Manager, optimizer: torch.optim.Optimizer, batch: TextBatch) -> Tensor:
    """One optimizer step on the vectors of the prefix; returns what `training_step` does, (4,)."""
    optimizer.zero_grad()
    losses = text_loss(model.cond_stage_model.context(batch.token_ids, prefix), batch.context_attributes, batch.rows)
    fabric.backward(losses.mean())
    return update(fabric, prefix, optimizer, losses.detach(), batch.is_identity)
