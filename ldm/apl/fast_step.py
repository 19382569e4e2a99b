"""The step of `step.py` in less time: frozen predictions for several steps at once, then one prediction and one gradient per step.

The predictions in Eq. 5 do not depend on the prefix, so `frozen_predictions` makes them for the next steps in one call of the U-Net. Where
c1 = c2 (S_Reg) one prediction serves as both. `training_step` makes the prediction with the prefix and updates the vectors (Eq. 6 and 7).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.apl.examples import Samples, Texts
from ldm.apl.losses import apl_loss, released_loss
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.sharing import Devices


@dataclass(frozen=True)
class Batch:
    """The samples of one training step with their frozen predictions, on the device; samples of S_ID come first."""

    noisy_latent: Tensor    # z_t, (B, 4, h, w)
    timestep: Tensor        # t, (B,)
    token_ids: Tensor       # of [AP] + c1, (B, 77)
    eps_name: Tensor        # as noisy_latent
    eps_attributes: Tensor  # as noisy_latent
    is_identity: Tensor     # 1 for S_ID, 0 for S_Reg; (B,) float32

    def parts(self, count: int) -> Iterator["Batch"]:
        """Split the samples into `count` parts of nearly equal size, in order; parts are never empty, so there may be fewer."""
        pieces = [tensor.tensor_split(min(count, len(self.timestep))) for tensor in vars(self).values()]
        return (Batch(*piece) for piece in zip(*pieces, strict=True))


def training_step(fabric: Devices, model: LatentDiffusion, prefix: Manager, optimizer: torch.optim.Optimizer, batch: Batch, *,
                  train_method: str = "apl", alpha: float = 1.0, grad_accum: int = 1) -> Tensor:
    """One optimizer step on the vectors of the prefix (Eq. 6 and 7). The host never waits for the device.

    Args:
        train_method: "apl", "apl-released", "apl-no-reg" or "apl-map", see `step.training_loss`.
        alpha: strength of the anonymization (Eq. 5).
        grad_accum: number of parts into which the batch is split to save memory.

    Returns:
        (4,), detached: sums of the sample losses over S_ID and over S_Reg, and the number of samples of each.
    """
    optimizer.zero_grad()
    losses = []
    for part in batch.parts(grad_accum):
        context = model.cond_stage_model.context(part.token_ids, prefix)                        # tau_AP(c1)
        eps_prefixed = model.apply_model(part.noisy_latent, part.timestep, context)
        if train_method == "apl-released":
            loss = released_loss(eps_prefixed, part.eps_attributes, alpha, reduction="none")    # (B,)
        else:
            loss = apl_loss(eps_prefixed, part.eps_name, part.eps_attributes, alpha, reduction="none")
        fabric.backward(loss.sum() / len(batch.timestep))
        losses.append(loss.detach())
    for vectors in prefix.embedding_parameters():
        vectors.grad = fabric.all_reduce(vectors.grad, reduce_op="mean")
    optimizer.step()
    of_identity, of_caption = batch.is_identity, 1.0 - batch.is_identity
    loss = torch.cat(losses)
    return torch.stack([(loss * of_identity).sum(), (loss * of_caption).sum(), of_identity.sum(), of_caption.sum()])


@torch.no_grad()
def frozen_predictions(model: LatentDiffusion, samples: Sequence[Samples], noisy_latent: Tensor, texts: Texts, *,
                       with_names: bool = True) -> dict[str, Tensor]:
    """The predictions of Eq. 5 without the prefix, from one call of the U-Net.

    Args:
        samples: one entry per step, N samples in all.
        noisy_latent: z_t of all samples, (N, 4, h, w).
        with_names: False leaves out eps_name, which "apl-released" does not use.

    Returns:
        eps_attributes (N, 4, h, w), and eps_name of the M samples of S_ID only, (M, 4, h, w); see `training_batches`.
    """
    timestep = torch.tensor([t for one in samples for t in one.timesteps], device=model.device)
    prompts = [c2 for one in samples for c2 in one.attribute_prompts]
    named = identity_rows(samples) if with_names else []
    names = [c1 for one in samples for c1 in one.name_prompts[:one.n_identity]] if with_names else []
    eps = model.apply_model(torch.cat([noisy_latent, noisy_latent[named]]), torch.cat([timestep, timestep[named]]),
                            texts.contexts(prompts + names))
    return {"eps_attributes": eps[:len(prompts)], "eps_name": eps[len(prompts):]}


def training_batches(samples: Sequence[Samples], targets: dict[str, Tensor], texts: Texts) -> Iterator[Batch]:
    """The batch of each step.

    Args:
        samples: one entry per step.
        targets: noisy_latent of all samples, and the result of `frozen_predictions`.
    """
    device = targets["noisy_latent"].device
    eps_name = targets["eps_attributes"].clone()  # S_Reg: c1 = c2
    if len(targets["eps_name"]):
        eps_name[identity_rows(samples)] = targets["eps_name"]
    sizes = [len(one.numbers) for one in samples]
    pieces = [tensor.split(sizes) for tensor in (targets["noisy_latent"], eps_name, targets["eps_attributes"])]
    for one, noisy_latent, name, attributes in zip(samples, *pieces, strict=True):
        is_identity = torch.arange(len(one.numbers), device=device) < one.n_identity
        yield Batch(noisy_latent, torch.tensor(one.timesteps, device=device), texts.token_ids(one.name_prompts), name, attributes,
                    is_identity.float())


def identity_rows(samples: Sequence[Samples]) -> list[int]:
    """Indices of the samples of S_ID among all samples."""
    rows: list[int] = []
    start = 0
    for one in samples:
        rows += range(start, start + one.n_identity)
        start += len(one.numbers)
    return rows
