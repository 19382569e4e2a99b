"""Training of the anonymization prompt (paper section 3.5): the frozen predictions, and one step after another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.apl.examples import Batch, FrozenContexts, TrainingSet
from ldm.apl.logbook import Logbook
from ldm.apl.losses import apl_loss, released_loss
from ldm.generation import with_prefix
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager

LOOK_AHEAD = 16  # samples whose frozen predictions are made at once; they do not depend on the prefix


@dataclass(frozen=True)
class Settings:
    """What the trainer needs to know beside model, prefix and data; named as the flags of train.py."""

    iterations: int
    batch_size: int  # of all devices together
    lr: float
    lr_decay: float  # share of the iterations, at the end, over which the learning rate falls to 0
    train_method: str  # "apl", "apl-released" or "apl-no-reg"; the last differs in the mixture alone
    alpha: float
    log_every: int
    save_every: int
    val_every: int  # 0: never


def train_prefix(fabric: Fabric, model: LatentDiffusion, prefix: EmbeddingManager, data: TrainingSet, *,
                 settings: Settings, logbook: Logbook, save: Callable[[int], None],
                 draw: Callable[[], Image.Image]) -> None:
    """Trains the prefix in place, from where the logbook's state ends to the last iteration.

    Args:
        prefix: the same vectors on every device.
        data: with every picture that is needed encoded.
        save: writes the prefix of a step to its file.
        draw: pictures with and without the prefix, for the logbook.
    """
    optimizer = torch.optim.Adam(prefix.embedding_parameters(), lr=settings.lr)
    if logbook.state:
        prefix.load_state_dict(logbook.state["prefix"])
        optimizer.load_state_dict(logbook.state["optimizer"])
    if fabric.is_global_zero:
        logbook.open()
        if logbook.first_step == settings.iterations:
            save(settings.iterations)  # again, for the file of a finished run may have been moved away
    losses, counts = torch.zeros(2, device=model.device), torch.zeros(2)  # of S_ID and S_Reg since the last log
    bar = tqdm(total=settings.iterations, initial=logbook.first_step, desc="training", unit="step",
               disable=not fabric.is_global_zero)
    steps = look_ahead(fabric, model, data, settings, logbook.first_step)
    for step, (batch, eps_name, eps_attributes) in enumerate(steps, start=logbook.first_step + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        losses += training_step(fabric, model, prefix, optimizer, batch, eps_name, eps_attributes, settings)
        counts += torch.tensor([batch.n_identity, len(batch.timestep) - batch.n_identity])
        bar.update()
        last = step == settings.iterations
        logged = step % settings.log_every == 0 or last
        if logged:
            sums = fabric.all_reduce(torch.cat([losses, counts.to(losses)]), reduce_op="sum").tolist()
            losses, counts = torch.zeros_like(losses), torch.zeros_like(counts)
        if not fabric.is_global_zero:
            continue
        if logged:
            means = _means(*sums)
            logbook.row(step, means | {"prefix_norm": _mean_norm(prefix)})
            bar.set_postfix({name: f"{value:.3g}" for name, value in means.items() if name.startswith("loss")})
        if settings.val_every and step % settings.val_every == 0:
            logbook.picture(step, draw())
        if step % settings.save_every == 0 or last:
            save(step)
        if logged and (last or step % settings.save_every == 0 or logbook.state_is_due()):  # last, for it says: all is done
            logbook.save_state(step, prefix, optimizer)
    bar.close()
    if fabric.is_global_zero:
        logbook.close()


def learning_rate(step: int, settings: Settings) -> float:
    """Learning rate of a step, 1 .. iterations: constant, then on a straight line that reaches 0 after the last step."""
    left = (settings.iterations - step + 1) / settings.iterations
    return settings.lr * min(1.0, left / settings.lr_decay if settings.lr_decay else 1.0)


def training_step(fabric: Fabric, model: LatentDiffusion, prefix: EmbeddingManager, optimizer: torch.optim.Optimizer,
                  batch: Batch, eps_name: Tensor, eps_attributes: Tensor, settings: Settings) -> Tensor:
    """One optimizer step on the m vectors of the prefix (Eq. 6 and 7).

    Args:
        eps_name, eps_attributes: the frozen model's predictions for the batch, see `frozen_predictions`.

    Returns:
        (2,), detached: the sum of the samples' losses over S_ID and over S_Reg.
    """
    context = model.get_learned_conditioning(with_prefix(batch.name_prompts, prefix), prefix)  # tau_AP(c1)
    eps_prefixed = model.apply_model(batch.noisy_latent, batch.timestep, context)

    size, losses = len(eps_prefixed), []
    for rows in (slice(0, batch.n_identity), slice(batch.n_identity, size)):  # L_ID, then L_Reg
        predictions = eps_prefixed[rows], eps_name[rows], eps_attributes[rows]
        count = len(predictions[0])
        losses.append(count * objective(*predictions, settings) if count else eps_name.new_zeros(()))

    optimizer.zero_grad()
    fabric.backward(sum(losses) / size)
    for vectors in prefix.embedding_parameters():
        vectors.grad = fabric.all_reduce(vectors.grad, reduce_op="mean")
    optimizer.step()
    return torch.stack(losses).detach()


def objective(eps_prefixed: Tensor, eps_name: Tensor, eps_attributes: Tensor, settings: Settings) -> Tensor:
    """L_ID or L_Reg as the training method has it; scalar, mean over the batch."""
    if settings.train_method == "apl-released":
        return released_loss(eps_prefixed, eps_attributes, settings.alpha)
    return apl_loss(eps_prefixed, eps_name, eps_attributes, settings.alpha)


def look_ahead(fabric: Fabric, model: LatentDiffusion, data: TrainingSet, settings: Settings,
               first_step: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batch, eps_name and eps_attributes of each step after `first_step`.

    The frozen predictions of a few steps are made at once. Which steps belong together does not depend on `first_step`,
    so that a run that goes on computes the same bits.
    """
    contexts = FrozenContexts(model)
    together = steps_together(fabric, settings)
    for start in range(first_step // together * together, settings.iterations, together):
        steps = range(start, min(start + together, settings.iterations))
        batches = [data.batch(sample_numbers(step, settings.batch_size, fabric.global_rank, fabric.world_size))
                   for step in steps]
        predictions = frozen_predictions(model, batches, contexts, with_names=settings.train_method != "apl-released")
        for step, batch, (eps_name, eps_attributes) in zip(steps, batches, predictions, strict=True):
            if step >= first_step:
                yield batch, eps_name, eps_attributes


def samples_of(fabric: Fabric, settings: Settings, first_step: int) -> Iterator[int]:
    """Numbers of all samples that this device will take in the steps after `first_step`."""
    together = steps_together(fabric, settings)
    for step in range(first_step // together * together, settings.iterations):
        yield from sample_numbers(step, settings.batch_size, fabric.global_rank, fabric.world_size)


def steps_together(fabric: Fabric, settings: Settings) -> int:
    """Steps whose frozen predictions are made at once."""
    return max(1, LOOK_AHEAD * fabric.world_size // settings.batch_size)


def sample_numbers(step: int, batch_size: int, rank: int, world_size: int) -> range:
    """Numbers in the mixture of the samples that one device takes in one step (from 0)."""
    return range(step * batch_size + rank, (step + 1) * batch_size, world_size)


@torch.no_grad()
def frozen_predictions(model: LatentDiffusion, batches: Sequence[Batch], contexts: FrozenContexts, *,
                       with_names: bool = True) -> list[tuple[Tensor, Tensor]]:
    """eps_name and eps_attributes of Eq. 5 for each batch, (B, 4, h, w) both, from one call of the U-Net.

    Where c1 = c2 one prediction serves for both. Without `with_names` eps_name is eps_attributes everywhere.
    """
    counts = [batch.n_identity if with_names else 0 for batch in batches]
    latents = [batch.noisy_latent for batch in batches]
    timesteps = [batch.timestep for batch in batches]
    named = list(zip(batches, counts, strict=True))
    texts = [c2 for batch in batches for c2 in batch.attribute_prompts]
    texts += [c1 for batch, count in named for c1 in batch.name_prompts[:count]]
    eps = model.apply_model(torch.cat(latents + [batch.noisy_latent[:count] for batch, count in named]),
                            torch.cat(timesteps + [batch.timestep[:count] for batch, count in named]), contexts(texts))
    parts = eps.split([len(latent) for latent in latents] + counts)
    attributes, names = parts[:len(batches)], parts[len(batches):]
    return [(torch.cat([name, attribute[len(name):]]), attribute)
            for name, attribute in zip(names, attributes, strict=True)]


def _means(identity: float, regular: float, n_identity: float, n_regular: float) -> dict[str, float]:
    """Mean losses: all samples, S_ID, S_Reg (nan where there was none), and the number of samples of each."""
    return {"loss": (identity + regular) / (n_identity + n_regular),
            "loss_id": identity / n_identity if n_identity else float("nan"),
            "loss_reg": regular / n_regular if n_regular else float("nan"),
            "samples_id": n_identity, "samples_reg": n_regular}


def _mean_norm(prefix: EmbeddingManager) -> float:
    """Mean Euclidean norm of the vectors."""
    return torch.cat([vectors.detach() for vectors in prefix.embedding_parameters()]).norm(dim=1).mean().item()
