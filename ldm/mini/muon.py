"""Muon, the optimizer of the miniature's large networks: on the CPU it halves the steps that AdamW needs."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic that pulls singular values towards 1 (K. Jordan, "Muon", 2024)
ADAMW_RMS = 0.2                           # of an update's entries, so that AdamW's learning rates fit (arXiv 2502.16982)
SMALLEST = 16                             # rows and columns of a matrix that is worth orthogonalizing


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """`matrix` (R, C) with its singular values moved close to 1 by Newton-Schulz iterations in bfloat16."""
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for matrices and convolution kernels, read as (out, everything else); AdamW for all other parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.9, weight_decay: float = 0.01) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                    if not _is_matrix(parameter):
                        state |= {"square": torch.zeros_like(parameter), "step": torch.tensor(0.0)}
                update = self._update(parameter.grad, state, group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    @staticmethod
    def _update(gradient: Tensor, state: dict[str, Tensor], momentum: float) -> Tensor:
        """The direction of one step; momentum is Nesterov's for matrices and Adam's, with bias correction, otherwise."""
        mean = state["momentum"].lerp_(gradient, 1 - momentum)
        if "square" not in state:
            matrix = gradient.lerp(mean, momentum).flatten(1)
            return orthogonalized(matrix).view_as(gradient) * (ADAMW_RMS * max(matrix.shape) ** 0.5)
        square = state["square"].lerp_(gradient.square(), 0.01)
        count = state["step"].add_(1).item()
        return (mean / (1 - momentum**count)) / ((square / (1 - 0.99**count)).sqrt() + 1e-8)


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST
