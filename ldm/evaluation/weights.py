"""Turns the errors of all libraries that load weights into one UserError."""

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ldm.containers import TORCHSCRIPT, container_of, named_by_content
from ldm.util import UserError

ERRORS = (RuntimeError, AssertionError, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, EOFError, LookupError, TypeError,
          AttributeError, ValueError)


@contextlib.contextmanager
def weights_for(model: str, path: str | Path) -> Iterator[Path]:
    """Yield the path of the file, with a suffix that matches its content; errors while it is loaded into `model` become a UserError.

    Raises UserError on entry if the file does not exist or holds no tensors; on exit if it is damaged or belongs to another model.
    """
    if not Path(path).exists():
        raise UserError(f"the weights {path} of {model} do not exist; give the path of a local file, since nothing is downloaded")
    container = container_of(path, f"weights file of {model}", "give the weights of this model", (TORCHSCRIPT,))
    try:
        with named_by_content(path, container) as file:
            yield file
    except UserError:
        raise
    except ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__  # the library's message may list all tensors
        if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to unpickle it
            reason = "it holds more than tensors"
        raise UserError(f"{path} does not fit {model} or is damaged ({reason}); give the weights of this model") from error
