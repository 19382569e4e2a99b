"""A command's errors become one sentence."""

import numpy as np
import pytest
import torch

from ldm.util import exit_with_sentence, get_obj_from_str
from tests.refusals import refusal


@pytest.mark.parametrize("too_large", [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)])
def test_a_lack_of_memory_is_a_sentence_with_what_to_do(capsys, too_large):
    assert "out of memory; give a smaller --batch_size" in refusal(capsys, exit_with_sentence(too_large))


def test_a_name_that_is_too_long_is_cut_in_the_sentence(capsys):
    said = refusal(capsys, exit_with_sentence(lambda: open("a" * 300)))
    assert f"the path '{'a' * 60}...' is too long for this file system, where a name has at most 255 bytes; give a shorter one" in said


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="size"):
        exit_with_sentence(lambda: torch.ones(2) @ torch.ones(3))()


def test_a_module_is_imported_on_the_cpu_where_a_model_is_built_on_the_meta_device(tmp_path, monkeypatch):
    (tmp_path / "made_at_import.py").write_text("import torch\nnumber = torch.ones(1).item()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with torch.device("meta"):
        assert get_obj_from_str("made_at_import.number") == 1
