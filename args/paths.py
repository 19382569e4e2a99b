"""Paths of the command line: looked up in the current folder, then in the repository; pipes are buffered; missing inputs are refused."""

import argparse
import atexit
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from args.common import Parser

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = ("out_dir", "embeddings_dir", "target_cache", "publish")  # folders that need not exist
WRITTEN = (*OUTPUTS, "readme", "target")  # output paths, which are not looked up in the repository; see `found`
FOLDERS = {"identity_images", "caption_images", "face_pack", "images", "photos"}  # all other flags of type Path are files
TO_DO = {
    "ckpt_path": "put the checkpoint there or give its path",
    "face_pack": "unpack an InsightFace pack such as buffalo_l there, or give the folder that holds its .onnx files",
    "photos": "give a folder of photos, with one sub-folder per person if they show several",
    "identity_images": "make them with dataset_generation.py or give another folder",
    "inception_weights": "put pt_inception-2015-12-05-6726825d.pth or inception-2015-12-05.pt there, or give its path",
    "farl_weights": "put FaRL-Base-Patch16-LAIONFace20M-ep16.pth there, or give its path",
    "clip": "put open_clip weights there, or give their path",
}
MODELS = ("ckpt_path", "vae_path")  # flags of a file, a diffusers folder or a model of the Hub
MODEL_FILES = ("config_path", "ckpt_path", "vae_path", "edited_weights")
LISTS = {"people", "names", "names_file", "keep_names", "answers", "benchmark", "prompts_file", "preserve_prompts", "anchor_prompts",
         "templates", "captions", "identity_meta", "anchors", "drift_prompts"}  # text files, which may be pipes
PIPES = "APL_PIPES"  # environment variable with the buffer file of each pipe, for child processes


def found(path: str | Path) -> Path:
    """The path itself, or the same path in the repository if it exists only there."""
    path = Path(path)
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def keep_pipes(args: argparse.Namespace) -> None:
    """Replace each pipe in the flags of LISTS, such as <(command) or /dev/stdin, by a temporary file with its content."""
    for flag in LISTS & set(vars(args)):
        given = getattr(args, flag)
        if given is not None:
            setattr(args, flag, [_kept(path) for path in given] if isinstance(given, list) else _kept(given))


class Input(NamedTuple):
    """A file or folder that a command reads, and the message about its flaw, or None."""

    flag: str
    path: Path
    flaw: str | None


def check_paths(parser: "Parser", args: argparse.Namespace, needed: tuple[str, ...]) -> None:
    """Exit unless all input files and folders in `args` and those of the flags `needed` exist, and output folders are writable.

    Models of the Hub are then replaced by their folders in its cache, and downloaded if necessary.
    """
    for flag in needed:
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing; give it, or a --preset that has it")
    for given in inputs_of(parser, args):
        if given.flaw is not None:
            parser.error(given.flaw)
    for flag in OUTPUTS:
        if (folder := getattr(args, flag, None)) is None:
            continue
        place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            parser.error(f"--{flag} {folder} cannot be written ({place}: {error.strerror}); give another folder")
    fetch_models(parser, args)


def fetch_models(parser: "Parser", args: argparse.Namespace) -> None:
    """Replace models of the Hub by their paths in its cache; exits if one cannot be fetched."""
    from ldm.hub import local_model  # without torch
    from ldm.util import UserError

    for flag in MODELS:
        if (path := getattr(args, flag, None)) is not None:
            try:
                setattr(args, flag, local_model(path, "vae" if flag == "vae_path" else ""))
            except UserError as error:
                parser.error(f"--{flag}: {error}")


def inputs_of(parser: "Parser", args: argparse.Namespace) -> list[Input]:
    """All input files and folders that the flags name, in the order of --help."""
    given = [(flag, getattr(args, flag, None)) for flag, action in parser.flags.items() if action.type is Path and flag not in OUTPUTS]
    return [Input(flag, path, _input_flaw(flag, path)) for flag, paths in given if paths is not None
            for path in (paths if isinstance(paths, list) else [paths])]


def _kept(path: Path) -> Path:
    """The path, or for a pipe, which can be read only once, a temporary file with its content."""
    known = json.loads(os.environ.get(PIPES, "{}"))
    if str(path) in known:
        return Path(known[str(path)])
    if not (path.is_fifo() or path.is_char_device()):
        return path
    with tempfile.NamedTemporaryFile(prefix="apl-", delete=False) as file:
        file.write(path.read_bytes())
    atexit.register(Path(file.name).unlink, missing_ok=True)
    os.environ[PIPES] = json.dumps(known | {str(path): file.name})
    return Path(file.name)


def _input_flaw(flag: str, path: Path) -> str | None:
    if flag in MODELS and path.is_dir():
        from ldm.diffusers_folder import is_model_folder, weights_files
        from ldm.util import UserError

        try:
            if is_model_folder(path):
                weights_files(path)
                return None
        except UserError as error:
            return str(error)
    if flag in MODELS:
        from ldm.hub import is_hub_id

        if is_hub_id(path):
            return None
    kind = "folder" if flag in FOLDERS else "file"
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        from ldm.containers import not_a_file  # without torch

        found, better = ("a file", None) if path.is_file() else not_a_file(path)
        return f"--{flag} {path} is {found}; {flag in MODEL_FILES and better or TO_DO.get(flag, f'give a {kind}')}"
    if not os.access(path, os.R_OK):
        return f"--{flag} {path} cannot be read; change its permissions or give another {kind}"
    if kind == "folder" and not any(path.iterdir()):
        return f"--{flag} {path} is an empty folder; {TO_DO.get(flag, 'give another')}"
    return None
