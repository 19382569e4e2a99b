"""What a command says when it refuses: the one reader that the tests of all scripts share."""

from collections.abc import Callable

import pytest


def refusal(capsys, command: Callable, *given: object) -> str:
    """The sentence on stderr with which `command(*given)` ends, with status 2 and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command(*given)
    said = capsys.readouterr().err.strip().split("\r")[-1].splitlines()
    assert stopped.value.code == 2 and said[-1].startswith("error:") and "Traceback" not in "".join(said)
    return said[-1]
