"""A file of weights that cannot be used ends with one sentence, whichever library reads it."""

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ldm.containers import TORCHSCRIPT, container_of, named_by_content
from ldm.util import UserError

LONGEST_REASON = 200  # characters of what the library says, which can be a list of all tensors
ERRORS = (RuntimeError, AssertionError, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, EOFError, LookupError, TypeError,
          AttributeError, ValueError)


@contextlib.contextmanager
def weights_for(model: str, path: str | Path) -> Iterator[Path]:
    """The file under a name that says what it holds; what goes wrong while it is loaded into `model` becomes a UserError.

    Raises:
        UserError: at once if the file is not there or holds no tensors; later if it is damaged or of another model.
    """
    if not Path(path).exists():
        raise UserError(f"the weights {path} of {model} are not there; give the path of a local file, for nothing is downloaded")
    container = container_of(path, f"file of weights of {model}", "give the weights of this model", (TORCHSCRIPT,))
    try:
        with named_by_content(path, container) as file:
            yield file
    except UserError:
        raise
    except ERRORS as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run what is in the file
            reason = "it holds more than tensors"
        raise UserError(f"{path} does not fit {model} or is damaged ({reason}); give the weights of this model") from error
