"""Numbers that are not finite, found where they enter (weights) and where they would leave (files, scores): one sentence, no result."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ldm.util import UserError

FETCH_AGAIN = "fetch the file again, or give another one"


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; one pass, of two bytes an element or more without a temporary tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # float8, which has no minimum
    return all(math.isfinite(end) for end in tensor.detach().aminmax())  # NaN goes through minimum and maximum


def check_finite(tensors: Mapping[str, Tensor], what: str | Path, to_do: str) -> None:
    """Raises UserError that names the first tensor of `what` with NaN or infinity, and says what to do."""
    broken = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
    if broken is not None:
        raise UserError(f"{what} holds NaN or infinity in the tensor '{broken}', so nothing that it computes has a meaning; {to_do}")


def check_training(step: int, tensors: Iterable[Tensor], lr: float) -> None:
    """Raises UserError unless the losses and the trained tensors of a step (from 1) are finite."""
    if not all(map(is_finite, tensors)):
        raise UserError(f"the training has diverged: the loss or what is trained is not finite after step {step}; nothing of this step was "
                        f"saved, and what was saved before stays; give a smaller --lr than {lr:g} or --precision fp32, and another "
                        "--out_dir or --no-resume")
