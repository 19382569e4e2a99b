"""The step of `step.py` in less time: frozen predictions for several steps at once, then one prediction and one gradient per step.

The predictions in Eq. 5 do not depend on the prefix, so `frozen_predictions` makes them for the next steps in one call of the U-Net. Where
c1 = c2 (S_Reg) one prediction serves as both. `training_step` makes the prediction with the prefix and updates the vectors (Eq. 6 and 7).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.apl.examples import Samples, Texts
from ldm.apl.losses import apl_loss
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.sharing import Devices


@dataclass(frozen=True)
class Batch:
    """The samples of one or several training steps with their frozen predictions, on the device."""

    noisy_latent: Tensor    # z_t, (B, 4, h, w)
    timestep: Tensor        # t, (B,)
    token_ids: Tensor       # of [AP] + c1, (B, 77); see `Samples.prefixed_prompts`
    eps_name: Tensor        # as noisy_latent
    eps_attributes: Tensor  # as noisy_latent
    is_identity: Tensor     # 1 for S_ID, 0 for S_Reg; (B,) float32
    attack_seed: Tensor     # see `ldm.data.mixture.Sample`; (B,) int64, on the CPU

    def parts(self, count: int) -> Iterator["Batch"]:
        """Split the samples into `count` parts of nearly equal size, in order; into fewer where parts would be empty."""
        pieces = [tensor.tensor_split(min(count, len(self.timestep))) for tensor in vars(self).values()]
        return (Batch(*piece) for piece in zip(*pieces, strict=True))

    def rows(self, numbers: Tensor) -> "Batch":
        """The samples with these numbers, (n,) int64."""
        return Batch(*(tensor[numbers.to(tensor.device)] for tensor in vars(self).values()))


def training_step(fabric: Devices, model: LatentDiffusion, prefix: Manager, optimizer: torch.optim.Optimizer, batch: Batch, *,
                  train_method: str = "apl", alpha: float = 1.0, grad_accum: int = 1,
                  attacked: Callable[[Batch, Tensor], Tensor] | None = None) -> Tensor:
    """One optimizer step on the vectors of the prefix (Eq. 6 and 7). The host never waits for the device.

    Args:
        train_method, alpha: see `step.training_loss`.
        grad_accum: number of parts into which the batch is split to save memory.
        attacked: replaces contexts (B, 77, d) of a batch by those of attacked prompts, see `trainer.Attack`.

    Returns:
        (4,), detached: sums of the sample losses over S_ID and over S_Reg, and the number of samples of each.
    """
    optimizer.zero_grad()
    losses = []
    for part in batch.parts(grad_accum):
        context = model.cond_stage_model.context(part.token_ids, prefix)                        # tau_AP(c1)
        if attacked is not None:
            context = attacked(part, context)                                                   # tau_AP(a + c1)
        eps_prefixed = model.apply_model(part.noisy_latent, part.timestep, context)
        # The released code predicts c1 with the prefix. So prediction and target differ by (1 + alpha) (eps_prefixed - eps_attributes):
        # alpha only scales the gradient, which Adam cancels.
        eps_name = eps_prefixed.detach() if train_method == "apl-released" else part.eps_name
        loss = apl_loss(eps_prefixed, eps_name, part.eps_attributes, alpha, reduction="none")   # (B,)
        fabric.backward(loss.sum() / len(batch.timestep))
        losses.append(loss.detach())
    return update(fabric, prefix, optimizer, torch.cat(losses), batch.is_identity)


def update(fabric: Devices, prefix: Manager, optimizer: torch.optim.Optimizer, losses: Tensor, is_identity: Tensor) -> Tensor:
    """Update the vectors by their gradients, averaged over the devices; returns what `training_step` does.

    Args:
        losses: of the step's samples, (B,), detached.
        is_identity: 1 for S_ID, 0 for S_Reg; (B,).
    """
    for vectors in prefix.embedding_parameters():
        vectors.grad = fabric.all_reduce(vectors.grad, reduce_op="mean")
    optimizer.step()
    of_set = torch.stack([is_identity, 1.0 - is_identity])  # (2, B)
    return torch.cat([(losses * of_set).sum(1), of_set.sum(1)])


@torch.no_grad()
def frozen_predictions(model: LatentDiffusion, samples: Samples, noisy_latent: Tensor, texts: Texts, *,
                       with_names: bool = True) -> dict[str, Tensor]:
    """The predictions of Eq. 5 without the prefix for N samples of one or several steps, from one call of the U-Net.

    Args:
        noisy_latent: z_t, (N, 4, h, w).
        with_names: False leaves out eps_name, which "apl-released" does not use.

    Returns:
        eps_attributes (N, 4, h, w), and eps_name of the M samples of S_ID only, (M, 4, h, w); see `batch_of`.
    """
    timestep = torch.tensor(samples.timesteps, device=model.device)
    named = samples.identity_rows if with_names else []
    eps = model.apply_model(torch.cat([noisy_latent, noisy_latent[named]]), torch.cat([timestep, timestep[named]]),
                            texts.contexts(samples.attribute_prompts + [samples.name_prompts[row] for row in named]))
    return {"eps_attributes": eps[:len(timestep)], "eps_name": eps[len(timestep):]}


def batch_of(samples: Samples, targets: dict[str, Tensor], texts: Texts) -> Batch:
    """All samples as one batch, from noisy_latent and the result of `frozen_predictions`."""
    noisy_latent, eps_attributes = targets["noisy_latent"], targets["eps_attributes"]
    eps_name = eps_attributes.clone()  # S_Reg: c1 = c2
    if len(targets["eps_name"]):
        eps_name[samples.identity_rows] = targets["eps_name"]
    device = noisy_latent.device
    return Batch(noisy_latent, torch.tensor(samples.timesteps, device=device), texts.token_ids(samples.prefixed_prompts), eps_name,
                 eps_attributes, torch.tensor(samples.is_identity, device=device).float(), torch.tensor(samples.attack_seeds))
