"""Resumable training loop that all baselines and attacks share, on one device or several."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.finite import check_training
from ldm.logbook import Logbook, Trained
from ldm.sharing import Devices


class TrainedTensors(Trained, Protocol):
    """The tensors that a method trains."""

    def parameters(self) -> Iterator[Tensor]: ...


class Method(Protocol):
    """A baseline or an attack: its trained tensors and its loss."""

    @property
    def trained(self) -> TrainedTensors: ...

    def loss(self, numbers: range) -> Tensor:
        """Mean loss of the training samples with these numbers, scalar. Sample i is a pure function of the seed and i."""


@dataclass(frozen=True)
class FinetuningSettings:
    """Settings of a training: flags of train.py, and the published weight decay and gradient norm of the method."""

    iterations: int
    batch_size: int  # total over all devices
    lr: float
    weight_decay: float = 0.0
    max_grad_norm: float = float("inf")
    log_every: int = 50
    save_every: int = 1000


def train(fabric: Devices, method: Method, settings: FinetuningSettings, logbook: Logbook, save: Callable[[int], None]) -> None:
    """Train the method's tensors from the logbook's saved state, or from the start, to the last iteration.

    Args:
        save: writes the result after a step to its file.

    Raises:
        UserError: the loss, or a trained tensor that is about to be logged or saved, is not finite.
    """
    optimizer = adam(method, settings)
    logbook.restore(method.trained, optimizer)
    losses: list[Tensor] = []
    with logbook.open() if fabric.is_global_zero else nullcontext(), tqdm(
            total=settings.iterations, initial=logbook.first_step, desc=logbook.label, unit="step",
            disable=not fabric.is_global_zero) as bar:
        if fabric.is_global_zero and logbook.first_step == settings.iterations:
            save(settings.iterations)  # the file of a finished run may have been moved
        for step in range(logbook.first_step + 1, settings.iterations + 1):
            losses.append(training_step(fabric, method, optimizer, settings, step))
            bar.update()
            last = step == settings.iterations
            saved = step % settings.save_every == 0 or last
            if losses[-1].device.type == "cpu" and fabric.world_size == 1:  # otherwise below, for the mean over devices
                check_training(step, losses[-1:], settings.lr)
            if step % settings.log_every and not saved:
                continue
            mean = fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")
            check_training(step, [mean, *method.trained.parameters()], settings.lr)  # a state may be saved at any such step
            loss = mean.item()
            losses.clear()
            if fabric.is_global_zero:
                bar.set_postfix(loss=f"{loss:.3g}")
                logbook.row(step, {"loss": loss})
                if saved:
                    save(step)
                if last or logbook.state_is_due():  # steps in between are repeated identically
                    logbook.save_state(step, method.trained, optimizer)


def adam(method: Method, settings: FinetuningSettings) -> torch.optim.Optimizer:
    """AdamW; without weight decay it equals Adam."""
    return torch.optim.AdamW(method.trained.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def training_step(fabric: Devices, method: Method, optimizer: torch.optim.Optimizer, settings: FinetuningSettings, step: int) -> Tensor:
    """One optimizer step (counted from 1) on this rank's shard of the samples; returns the shard's mean loss, detached."""
    numbers = range((step - 1) * settings.batch_size + fabric.global_rank, step * settings.batch_size, fabric.world_size)
    optimizer.zero_grad()
    loss = method.loss(numbers)
    loss.backward()
    trained = [tensor for tensor in method.trained.parameters() if tensor.grad is not None]
    for tensor in trained if fabric.world_size > 1 else ():
        tensor.grad = fabric.all_reduce(tensor.grad, reduce_op="mean")
    torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
    optimizer.step()
    return loss.detach()
