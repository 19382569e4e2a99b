"""Training loop of the anonymization prompt (paper section 3.5)."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.apl.fast_step import Batch, training_step
from ldm.apl.robust_tokens import Tokens
from ldm.apl.text_objective import TextBatch, text_step
from ldm.finite import check_training
from ldm.logbook import Logbook, Trained
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager
from ldm.sharing import Devices

METRICS = ("loss", "loss_id", "loss_reg", "samples_id", "samples_reg", "prefix_norm")


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a training, named as the flags of train.py."""

    iterations: int
    batch_size: int  # of all devices together
    grad_accum: int  # parts into which a device splits its samples of a step
    lr: float
    lr_decay: float  # share of the iterations, at the end, over which the learning rate falls to 0
    train_method: str  # "apl", "apl-released", "apl-no-reg", "apl-map" or "apl-robust"; see `step.training_loss`; or "apl-text"
    alpha: float
    log_every: int
    save_every: int
    val_every: int  # 0: never


Step = Callable[[Any], Tensor]  # an optimizer step on a Batch or TextBatch, see `fast_step.training_step`
# For a step, 1 .. iterations: what replaces contexts (B, 77, d) of a batch by those of attacked prompts ("apl-robust").
Attack = Callable[[int], Callable[[Batch, Tensor], Tensor]]


def train_prefix(fabric: Devices, model: LatentDiffusion, prefix: Manager, batches: Iterable[Batch | TextBatch], *,
                 settings: Settings, logbook: Logbook, save: Callable[[int], None],
                 grid: Callable[[], Image.Image], recorded: Callable[[Step, torch.optim.Optimizer], Step] | None = None,
                 attack: Attack | None = None) -> None:
    """Train the prefix in place, from the state of the logbook to the last iteration.

    Args:
        prefix: equal on every device.
        save: writes the prefix file of a step.
        grid: generates images with and without the prefix, for the logbook.
        recorded: wraps a step to replay it on the device, see `ldm.apl.acceleration.RecordedStep`; None: no replay.
        attack: of "apl-robust"; the state of `Tokens` is in that of the training.

    Raises:
        UserError: the loss or a vector is not finite; detected at this step on a CPU, before the next log, file or image on a GPU.
    """
    optimizer = adam(prefix, settings.lr, recorded=recorded is not None)
    lr = optimizer.param_groups[0]["lr"]
    trained: Trained = attack if isinstance(attack, Tokens) else prefix
    logbook.restore(trained, optimizer)
    optimizer.param_groups[0]["lr"] = lr  # on its device
    attacked: Callable[[Batch, Tensor], Tensor] | None = None

    def one_step(batch: Batch | TextBatch) -> Tensor:
        if isinstance(batch, TextBatch):
            return text_step(fabric, model, prefix, optimizer, batch, alpha=settings.alpha)
        return training_step(fabric, model, prefix, optimizer, batch, train_method=settings.train_method, alpha=settings.alpha,
                             grad_accum=settings.grad_accum, attacked=attacked)

    run = one_step if recorded is None else recorded(one_step, optimizer)
    losses = torch.zeros(4, device=model.device)  # sums over S_ID and S_Reg and their numbers of samples, since the last log
    on_cpu = model.device.type == "cpu"
    with logbook.open() if fabric.is_global_zero else nullcontext(), tqdm(
            total=settings.iterations, initial=logbook.first_step, desc=logbook.label, unit="step",
            disable=not fabric.is_global_zero) as bar:
        if fabric.is_global_zero and logbook.first_step == settings.iterations:
            save(settings.iterations)  # the file of a finished run may have been moved
        for step, batch in enumerate(batches, start=logbook.first_step + 1):
            if recorded is None:
                optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
            else:  # a recorded step reads it from a tensor
                optimizer.param_groups[0]["lr"].fill_(learning_rate(step, settings))
            attacked = attack(step) if attack else None
            losses += run(batch)
            bar.update()
            last = step == settings.iterations
            logged = step % settings.log_every == 0 or last
            saved = step % settings.save_every == 0 or last
            shown = settings.val_every and step % settings.val_every == 0
            if on_cpu or logged or saved or shown:  # checking every step would synchronize the GPU
                # All ranks must decide alike: they have equal vectors, but equal losses only after all_reduce.
                check_training(step, [*prefix.embedding_parameters(), *[losses] * (fabric.world_size == 1)], settings.lr)
            if logged:
                reduced = fabric.all_reduce(losses, reduce_op="sum")
                check_training(step, [reduced], settings.lr)
                losses = torch.zeros_like(losses)
            if not fabric.is_global_zero:
                continue
            if logged:
                metrics = _metrics(reduced, prefix)
                logbook.row(step, metrics)
                bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items() if name.startswith("loss")})
            if shown:
                logbook.image(step, grid())
            if saved:
                save(step)
            if logged and (saved or logbook.state_is_due()):  # last: a state marks everything before it as done
                logbook.save_state(step, trained, optimizer)


def adam(prefix: Manager, lr: float, *, recorded: bool = False) -> torch.optim.Optimizer:
    """Adam on the vectors, in float32; with `recorded`, learning rate and state are on the device."""
    device = next(prefix.embedding_parameters()).device
    rate = torch.tensor(lr, device=device) if recorded else lr
    return torch.optim.Adam(prefix.embedding_parameters(), lr=rate, capturable=recorded and device.type == "cuda")


def learning_rate(step: int, settings: Settings) -> float:
    """Learning rate of a step, 1 .. iterations: constant, then linear to 0 after the last step."""
    left = (settings.iterations - step + 1) / settings.iterations
    return settings.lr * min(1.0, left / settings.lr_decay if settings.lr_decay else 1.0)


def _metrics(sums: Tensor, prefix: Manager) -> dict[str, float]:
    """Mean losses of all samples, S_ID and S_Reg (nan without samples), numbers of samples, and mean norm of the vectors, or map's rows."""
    losses, counts = sums.cpu().double().chunk(2)
    norms = torch.cat([torch.atleast_2d(vectors.detach()).norm(dim=1) for vectors in prefix.embedding_parameters()])
    metrics = losses.sum() / counts.sum(), *(losses / counts), *counts, norms.mean()
    return {name: metric.item() for name, metric in zip(METRICS, metrics, strict=True)}
