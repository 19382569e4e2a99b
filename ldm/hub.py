"""Models of the Hugging Face Hub, named like paths: owner/name[@revision], or owner/name[@revision]/FILE for a checkpoint in one file.

huggingface_hub downloads the files that are read, and no others, into its cache. A model that is complete there needs no network.
"""

import contextlib
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from args.paths import found
from ldm.diffusers_folder import INDEX, MissingPart, is_model_folder, is_sdxl, weights_files
from ldm.util import UserError, first_line

FILE = r"\.(?:safetensors|ckpt)"
NOT_A_NAME = r"[\w.-]*\.(?:safetensors|ckpt|pt|pth|bin|yaml)$"  # but a file that is missing
ID = re.compile(rf"(?P<repo>\w[\w.-]*/(?!{NOT_A_NAME})\w[\w.-]*)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[\w ./-]+{FILE}))?")
IN_CACHE = re.compile(r"/models--[^/]+--([^/]+)/snapshots/([^/]+)$")
CONFIGS = [INDEX, "config.json", "scheduler/scheduler_config.json", "*.index*.json",
           *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2"))]


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` is no path here or in the repository, but has the form of a model of the Hub."""
    owner = Path(path).parts[:1]
    return not found(path).exists() and ID.fullmatch(Path(path).as_posix()) is not None and not found(Path(*owner)).exists()


def folder_name(path: Path) -> str:
    """Name of a model's folder; of one in the Hub's cache name@commit, with the first seven digits."""
    match = IN_CACHE.search(path.as_posix())
    return f"{match[1]}@{match[2][:7]}" if match else path.name


def local_model(path: str | Path, part: str = "") -> Path:
    """The path, here or in the repository; for a model of the Hub, its path in the cache, after what is missing there was downloaded.

    Args:
        part: folder of a pipeline that suffices, such as "vae".

    Raises:
        UserError: the model is not complete in the cache and cannot be downloaded, or is of a kind that cannot be used.
    """
    if not is_hub_id(path):
        return found(path)
    repo, revision, file = _parts_of(path)
    if file:
        model = _cached(repo, revision, file) or _download(repo, revision, [glob.escape(file)]) / file
        if not model.is_file():
            raise UserError(f"{repo} of the Hub has no file {file}; give one of those that https://huggingface.co/{repo}/tree/main lists")
        return model
    folder = _cached(repo, revision)
    if folder is None or not _has_weights(_root(folder, part)):
        from huggingface_hub import HfApi

        folder = _download(repo, revision, CONFIGS)
        with asking_the_hub(repo, revision):
            there = HfApi().list_repo_files(repo, revision=folder.name)
        if not is_model_folder(root := _root(folder, part)):
            single = [f", or one of its files, such as {repo}/{name}" for name in there if re.fullmatch(rf".+{FILE}", name)]
            raise UserError(f"{repo} of the Hub is no diffusers folder; give another model{(single or [''])[0]}")
        files = weights_files(root, lambda one: one.relative_to(folder).as_posix() in there)
        _download(repo, folder.name, [glob.escape(one.relative_to(folder).as_posix()) for paths in files.values() for one in paths])
    return _root(folder, part)


def holds_sdxl(path: str | Path) -> bool:
    """Whether a path is a pipeline folder of SDXL, here or on the Hub, of which only the configs are downloaded."""
    folder = found(path)
    if is_hub_id(path) and not (parts := _parts_of(path))[2]:
        folder = _cached(*parts[:2]) or folder
        folder = folder if _has_weights(folder, lambda _: True) else _download(*parts[:2], CONFIGS)
    return (folder / INDEX).is_file() and is_sdxl(folder)


def _parts_of(path: str | Path) -> tuple[str, str | None, str | None]:
    match = ID.fullmatch(Path(path).as_posix())
    assert match is not None
    return match["repo"], match["revision"], match["file"]


def _root(folder: Path, part: str) -> Path:
    """The folder of a part; an autoencoder alone has no folders."""
    return folder / part if (folder / INDEX).is_file() else folder


def _has_weights(root: Path, exists: Callable[[Path], bool] = Path.is_file) -> bool:
    """Whether a folder in the cache is complete; UserError if it is of a kind that cannot be used."""
    try:
        return is_model_folder(root) and all(exists(path) for paths in weights_files(root, exists).values() for path in paths)
    except MissingPart:
        return False


def _cached(repo: str, revision: str | None, file: str | None = None) -> Path | None:
    """Path of the file or of the folder in the cache, if it or a part of it is there."""
    from huggingface_hub import try_to_load_from_cache

    with asking_the_hub(repo, revision):
        paths = [try_to_load_from_cache(repo, name, revision=revision) for name in ([file] if file else [INDEX, "config.json"])]
    path = next((Path(path) for path in paths if isinstance(path, str)), None)
    return path if file or path is None else path.parent


def _download(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Folder of the revision in the cache, with the files that match a pattern."""
    from huggingface_hub import snapshot_download

    with asking_the_hub(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


@contextlib.contextmanager
def asking_the_hub(name: str, revision: str | None = None, *, lacks: str = "lacks a file that was asked for") -> Iterator[None]:
    """Turn the errors of huggingface_hub about the model `name` into one sentence; `lacks` is what it says where a file is missing."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError:
        raise UserError(f"there is no folder {name}, and it is no name of a model of the Hub; give a folder, or owner/name") from None
    except errors.GatedRepoError:
        raise UserError(f"{name} is given only to those who accept its conditions; do so at https://huggingface.co/{name}, and log in with "
                        "'hf auth login'") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"there is no folder {name}, and the Hub has no such model, or it is private; correct the name, or log in with "
                        "'hf auth login'") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} of the Hub has no revision {revision}; give a branch, a tag or the hash of a commit") from None
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _unreachable(name, error) from None
        raise UserError(f"{name} of the Hub {lacks}; give another model") from None
    except Exception as error:  # network, server, disk: each of huggingface_hub's versions has other classes
        raise _unreachable(name, error) from None


def _unreachable(name: str, error: Exception) -> UserError:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return UserError(f"{name} is no folder here and not complete in the Hub's cache, and the Hub did not do what was asked "
                     f"({first_line(cause)}); connect to the network, log in with 'hf auth login', or give a folder")
