"""One resumable training stage of the miniature: the loop that all of its models share."""

import csv
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ldm.mini.muon import Muon
from ldm.util import write_atomically


def rank_and_world() -> tuple[int, int]:
    """Which of how many processes this is, under torchrun; (0, 1) otherwise."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes."""
    gradients = torch.cat([parameter.grad.flatten() for parameter in parameters])
    distributed.all_reduce(gradients)
    gradients /= distributed.get_world_size()
    for parameter, mean in zip(parameters, gradients.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.grad.copy_(mean.view(parameter.shape))


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 200, decay: float = 0.3) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay` of all steps."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / max(1, decay * steps))


def train_stage(name: str, module: nn.Module, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], *, steps: int, lr: float,
                work_dir: Path, ema: float = 0.999, weight_decay: float = 1e-4, decay: float = 0.3, save_seconds: float = 60.0,
                parameters: list[nn.Parameter] | None = None, muon: bool = False) -> nn.Module:
    """Trains `module` in place and returns the exponential moving average of it.

    Under torchrun each process samples its own batches, gradients are averaged, and the first process writes.

    Args:
        loss_of: step -> (scalar loss, numbers to log); samples its batch as a function of the step, so a resumed run sees
            the batches that an uninterrupted one sees.
        ema: decay of the average per step, shortened at the start.
        work_dir: `<name>.state.pt` (everything needed to resume) and `<name>.csv` (the log) live there.
        parameters: what is trained; None trains all of the module.
        muon: optimizes with Muon in place of AdamW.
    """
    state_path, log_path = work_dir / f"{name}.state.pt", work_dir / f"{name}.csv"
    trained = list(module.parameters()) if parameters is None else parameters
    average = deepcopy(module).requires_grad_(False)
    optimizer: torch.optim.Optimizer = (Muon(trained, lr=lr) if muon else
                                        torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay))
    # On CPUs the fused attention's backward pass costs more than plain attention at these sizes.
    fused = [] if trained[0].device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    first = 0
    if state_path.exists():
        state = torch.load(state_path, map_location=next(module.parameters()).device, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    rank, world = rank_and_world()
    saved = time.monotonic()
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, unit="step", mininterval=2.0, disable=rank > 0)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, decay=decay)
        with sdpa_kernel([*fused, SDPBackend.MATH]):
            loss, numbers = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        if world > 1:
            average_gradients(trained)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate = min(ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - rate)
        if rank > 0:
            continue
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", **{key: f"{value:.4g}" for key, value in numbers.items()})
            _log(log_path, {"step": step, "loss": loss.item(), **numbers})
        if time.monotonic() - saved > save_seconds or step == steps - 1:
            state = {"module": module.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_atomically(state_path, lambda path, state=state: torch.save(state, path))
            saved = time.monotonic()
    return average


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
