"""A command's errors become one sentence."""

import numpy as np
import pytest
import torch

from ldm.util import exit_with_sentence
from tests.refusals import refusal


@pytest.mark.parametrize("too_large", [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)])
def test_a_lack_of_memory_is_a_sentence_with_what_to_do(capsys, too_large):
    assert "out of memory; give a smaller --batch_size" in refusal(capsys, exit_with_sentence(too_large))


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="size"):
        exit_with_sentence(lambda: torch.ones(2) @ torch.ones(3))()
