"""The objective of --train_method apl-text: Eq. 5 to 7 from texts alone, without an image or the U-Net.

It is ours and not the paper's. The U-Net reads a context by cross-attention only. Its place is taken by `readings`: attention with random
queries, new ones in each step. They do not depend on the order or the number of the states, so texts of any length can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import update
from ldm.apl.look_ahead import Share
from ldm.apl.losses import anonymized_target
from ldm.data.mixture import normal
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager, Manager
from ldm.sharing import Devices

STATES = 77       # rows of a context that are states of tokens; SDXL's pooled text is behind them
QUERIES = 64      # per step
SHARPNESS = 2.5   # standard deviation of the logits, about that of the U-Net's
TEXTS_FOR_SCALE = 64


def readings(context: Tensor, queries: Tensor) -> Tensor:
    """softmax(q x^T) x for each query q over the 77 states x, (B, n, d), and SDXL's pooled text as one more, (B, n + 1, d).

    Args:
        context: (B, 77 or 78, d), each coordinate divided by its standard deviation.
        queries: (n, d).
    """
    states, pooled = context[:, :STATES], context[:, STATES:]
    return torch.cat([F.scaled_dot_product_attention(queries.expand(len(states), -1, -1), states, states, scale=1.0), pooled], dim=1)


def text_loss(context_prefixed: Tensor, context_name: Tensor, context_attributes: Tensor, queries: Tensor, alpha: float) -> Tensor:
    """L_ID, or L_Reg where c1 = c2, of each sample, (B,): Eq. 5 to 7 with readings in place of predictions.

    Args:
        context_prefixed: tau_AP(c1), (B, 77 or 78, d), as `readings` takes it; receives the gradient.
        context_name, context_attributes: tau(c1) and tau(c2), same shape.
        queries: (n, d).
        alpha: strength, see `anonymized_target`.
    """
    of_name, of_attributes = readings(context_name, queries), readings(context_attributes, queries)
    target = anonymized_target(of_name, of_attributes, alpha)
    return (readings(context_prefixed, queries) - target).square().mean((1, 2))


@dataclass(frozen=True)
class TextBatch:
    """The texts of a step, on the device."""

    token_ids: Tensor           # of [AP] + c1, (B, 77)
    context_name: Tensor        # tau(c1) / scale, (B, 77, d), or (B, 78, d) for SDXL
    context_attributes: Tensor  # tau(c2) / scale, same shape
    queries: Tensor             # (n, d)
    scale: Tensor               # standard deviation of each coordinate of a context, (77 or 78, d)
    is_identity: Tensor         # 1 for S_ID, 0 for S_Reg; (B,) float32


def text_batches(model: LatentDiffusion, prefix: EmbeddingManager, data: TrainingSet, share: Share, *, first_step: int,
                 iterations: int) -> Iterator[TextBatch]:
    """This rank's texts of each step after `first_step`. No image is read."""
    texts = Texts(model, prefix)
    scale = context_scale(texts.contexts(data.samples(range(TEXTS_FOR_SCALE)).attribute_prompts))
    for step in range(first_step, iterations):
        samples = data.samples(share.numbers(step))
        queries = normal(step, (QUERIES, scale.shape[1])) * SHARPNESS / scale.shape[1] ** 0.5
        yield TextBatch(texts.token_ids(samples.name_prompts), texts.contexts(samples.name_prompts) / scale,
                        texts.contexts(samples.attribute_prompts) / scale, queries.to(scale), scale,
                        torch.tensor(samples.is_identity, device=scale.device).float())


def context_scale(contexts: Tensor) -> Tensor:
    """Standard deviation of each coordinate over N contexts and their states, and of SDXL's pooled text over N, (77 or 78, d)."""
    found = torch.cat([part.flatten(0, 1).std(0).expand(part.shape[1], -1) for part in contexts.split(STATES, dim=1)])
    return torch.where(found > 0, found, torch.inf)  # a constant coordinate, such as the padding of the pooled text, is left out


def text_step(fabric: Devices, model: LatentDiffusion, prefix: Manager, optimizer: torch.optim.Optimizer, batch: TextBatch, *,
              alpha: float) -> Tensor:
    """One optimizer step on the vectors of the prefix; returns what `training_step` does, (4,)."""
    optimizer.zero_grad()
    context = model.cond_stage_model.context(batch.token_ids, prefix) / batch.scale
    losses = text_loss(context, batch.context_name, batch.context_attributes, batch.queries, alpha)
    fabric.backward(losses.mean())
    return update(fabric, prefix, optimizer, losses.detach(), batch.is_identity)
