"""Checks for NaN and infinity, in weights that are loaded and in tensors that are about to be saved or scored."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ldm.util import UserError

FETCH_AGAIN = "fetch the file again, or give another one"


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; one pass, without a temporary tensor for types of two or more bytes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # float8 does not support aminmax
    return all(math.isfinite(end) for end in tensor.detach().aminmax())  # minimum and maximum propagate NaN


def check_finite(tensors: Mapping[str, Tensor], what: str | Path, to_do: str) -> None:
    """Raise a UserError that names `what` (the origin of the tensors), the first one with NaN or infinity, and `to_do` (advice)."""
    broken = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
    if broken is not None:
        raise UserError(f"{what} holds NaN or infinity in the tensor '{broken}', so its results are meaningless; {to_do}")


def check_training(step: int, tensors: Iterable[Tensor], lr: float) -> None:
    """Raise a UserError unless the losses and the trained tensors of a step (counted from 1) are finite."""
    if not all(map(is_finite, tensors)):
        raise UserError(f"the training has diverged: the loss or a trained tensor is not finite after step {step}; nothing of this step "
                        f"was saved, and earlier files are kept; give a smaller --lr than {lr:g} or --precision fp32, and another "
                        "--out_dir or --no-resume")
