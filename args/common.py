"""Shared parts of the command lines: groups of flags, presets, and checks that exit with one sentence and status 2."""

import argparse
import functools
import importlib
import math
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import yaml

from args.paths import ROOT, found, keep_pipes

PRESETS = ROOT / "configs" / "presets"
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
MODEL_FILES = ("config_path", "ckpt_path", "vae_path", "edited_weights")
PRECISIONS = ("fp32", "bf16", "auto")
PORTRAIT = "A close-up portrait of {name}"

Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """ArgumentParser with defaults in the help, without abbreviations, and with one-line errors without the usage text."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)
        self.remark = ""  # appended to every error
        self.sections: tuple[str, ...] = ()  # sections that a preset may have besides the command's, such as "esd" in "esd.lr"
        self.section: str | None = None      # the active one of the sections
        self.own: frozenset[str] = frozenset()  # flags that only `section` sets, not the command's own keys

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}{self.remark}\n")

    def parse_known_args(self, *given: Any) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """Parse as usual, and look up each input path, see `found`."""
        args, others = super().parse_known_args(*given)
        for flag, action in _actions(self).items():
            if action.type is Path and flag not in WRITTEN and (path := getattr(args, flag, None)) is not None:
                setattr(args, flag, [*map(found, path)] if isinstance(path, list) else found(path))
        return args, others


def parse_with_preset(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse `argv`. Its flags take precedence over the preset, and the preset over the parser's defaults.

    Exits with a sentence and status 2 if a value is invalid; `check_paths` checks the paths.
    """
    argv = sys.argv[1:] if argv is None else argv
    chosen = Parser(add_help=False)
    add_preset_argument(chosen)
    preset = chosen.parse_known_args(argv)[0].preset
    if preset is None:  # the paper's command gives only the files of its model
        named = typed_flags(argv) & {"config_path", "ckpt_path"}
        preset = "sd-v1-5" if named else "mini"
        parser.remark = " (--preset sd-v1-5 is the default if a model's paths are given; give another)" if named else ""
    presets = preset_flags(parser, preset)
    if {"-h", "--help"} & set(argv):
        _show_defaults(parser, presets)
    args = parser.parse_args([*presets, *argv])
    keep_pipes(args)
    args.preset = preset
    replaced = [flag.partition("=")[2] for flag in presets if flag.startswith("--edited_weights=")]
    if replaced and "edited_weights" in typed_flags(argv) and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: --edited_weights {args.edited_weights} replaces {replaced[0]} of the preset {preset}",
              file=sys.stderr)
    return args


def options_of(kind: type[Options], args: argparse.Namespace, **others: object) -> Options:
    """A dataclass whose fields are named as flags, with their values; `others` by field."""
    return kind(**{field.name: others[field.name] if field.name in others else getattr(args, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def typed_flags(argv: list[str] | None) -> set[str]:
    """Names of the flags on the command line, with --no-resume as "resume"; None uses sys.argv."""
    argv = sys.argv[1:] if argv is None else argv
    return {word.split("=")[0].removeprefix("--").removeprefix("no-") for word in argv if word.startswith("--")}


def add_preset_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that sets the defaults of all others."""
    parser.add_argument("--preset", metavar="NAME",
                        help=f"defaults of all flags, including those below: {', '.join(_preset_names())}, or a YAML file "
                             "(default: mini, or sd-v1-5 if a model's paths are given)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the frozen model."""
    group = parser.add_argument_group("frozen model")
    group.add_argument("--config_path", metavar="FILE", type=Path, help="model config, target:/params: schema")
    group.add_argument("--ckpt_path", metavar="FILE", type=Path, help="checkpoint, .ckpt or .safetensors")
    group.add_argument("--vae_path", metavar="FILE", type=Path, help="autoencoder that replaces the checkpoint's or that it lacks")
    group.add_argument("--edited_weights", metavar="FILE", type=Path,
                       help="tensors that replace some of the checkpoint's, .safetensors")
    group.add_argument("--precision", choices=PRECISIONS, default="auto",
                       help="precision of the frozen model; auto: bf16 if the device supports it natively, else fp32")


def add_face_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the people and of the face recognizer, shared by training's final table and both test scripts."""
    group.add_argument("--people", metavar="CSV", type=Path, help="people: name, group (train|test|keep), attributes")
    group.add_argument("--gallery", metavar="NPZ", type=Path, help="ArcFace embedding (512,) per name")
    add_face_pack_arguments(group)
    group.add_argument("--threshold", metavar="COS", type=number(float, -1, 1), default=0.3,
                       help="minimum cosine at which a face counts as the person (TAR)")


def add_face_pack_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags of the face detector and recognizer, shared with dataset_generation.py."""
    group.add_argument("--face_pack", metavar="DIR", type=Path, help="folder with an InsightFace pack (*.onnx)")
    group.add_argument("--det_size", metavar="PIXELS", type=number(int, 32, 4096), nargs="+", default=[640, 256, 128],
                       help="detector sizes, tried in order until a face is found")
    group.add_argument("--det_thresh", metavar="SCORE", type=number(float, 0, 1), default=0.5,
                       help="minimum detector score of a face")


def add_attribute_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the attributes in the identity table, shared by training's final table and test_id.py."""
    group.add_argument("--clip", metavar="FILE", type=Path,
                       help="open_clip weights for attributes and captions, with their config next to them as .json")
    group.add_argument("--c2", action=argparse.BooleanOptionalAction, default=False,
                       help="add rows of the base model with attributes (c2) instead of the name")


def add_prompt_template_argument(group: argparse._ArgumentGroup, help: str) -> None:
    """--prompt_template; its old name --prompt, which is a run's name in train.py, is hidden and goes with version 0.2."""
    group.add_argument("--prompt_template", metavar="TEXT", default=PORTRAIT, help=help)
    group.add_argument("--prompt", dest="prompt_template", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def check_prompt_template(parser: Parser, args: argparse.Namespace) -> None:
    """Ends the program unless the template has a place for the name."""
    if "{name}" not in args.prompt_template:
        parser.error(f"--prompt_template '{args.prompt_template}' has no place for the name; give one such as 'A portrait of {{name}}'")


def add_devices_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the devices that share the work; see `check_devices`."""
    parser.add_argument("--devices", metavar="LIST", default="auto",
                        help="auto (the first GPU, or else the CPU), cpu, cpu:N (N processes), or GPU numbers: 0 or 0,1,2,3")
    parser.add_argument("--num_nodes", metavar="N", type=number(int, 1), default=1,
                        help="number of machines, each with these devices; torchrun or srun starts the command on each")


def check_devices(parser: Parser, args: argparse.Namespace) -> None:
    """Check the form of --devices and normalize it: "cpu,cpu" becomes cpu:2, and a GPU that is named twice counts once.

    The released code's command names one GPU as "0,0".
    """
    if not re.fullmatch(r"auto|cpu(:[1-9]\d*|(,cpu)+)?|\d+(,\d+)*", args.devices):
        parser.error(f"--devices '{args.devices}' is none of auto, cpu, cpu:2 (two processes), or GPU numbers: 0,1")
    names = args.devices.split(",")
    args.devices = f"cpu:{len(names)}" if names[1:] and names[0] == "cpu" else ",".join(dict.fromkeys(names))


def take_one_device(args: argparse.Namespace) -> None:
    """Keep only the first of --devices, for work that is not shared."""
    args.devices, args.num_nodes = re.split("[:,]", args.devices)[0], 1


def number(kind: Callable[[str], int | float], low: float, high: float = math.inf, *, above: bool = False) -> Callable:
    """Argparse type of a finite number: `kind` (int or float) from `low` (excluded with `above`) to `high`."""
    words = "a whole number" if kind is int else "a number"
    span = f"above {low:g}" if above else f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"

    def convert(text: str) -> int | float:
        try:
            value = kind(text)
            valid = math.isfinite(value) and low <= value <= high and not (above and value == low)
        except ValueError:
            valid = False
        if not valid:
            raise argparse.ArgumentTypeError(f"got '{text}'; give {words} {span}")
        return value

    return convert


def model_of_preset(parser: Parser, name: str) -> dict[str, Path | None]:
    """Files of a preset's frozen model, by flag."""
    model = Parser(prog=parser.prog, add_help=False)
    add_model_arguments(model)
    values = vars(model.parse_args(preset_flags(model, name)))
    return {flag: values[flag] for flag in MODEL_FILES}


def as_flags(parser: Parser, values: Mapping[str, object], source: str, taken: Collection[str] = ()) -> list[str]:
    """Convert values by flag, read from a file `source`, to words of the parser's command line.

    Exits with a sentence if a flag does not exist, or is one of `taken`, which the file must not set.
    """
    actions = _actions(parser)
    for key in values:
        if key not in actions or key in ("preset", "help"):
            parser.error(f"{source} sets '{key}', which this command does not know; correct or remove it")
        if key in taken:
            parser.error(f"{source} sets '{key}', which is the same for all rows or follows from them; remove it")
    return [word for key, value in values.items() for word in _as_flags(actions[key], value)]


class Input(NamedTuple):
    """A file or folder that a command reads, and the message about its flaw, or None."""

    flag: str
    path: Path
    flaw: str | None


def check_paths(parser: Parser, args: argparse.Namespace, needed: tuple[str, ...]) -> None:
    """Check that all files and folders in `args` exist, including those of the flags `needed`; exit with a sentence otherwise.

    Output folders need not exist, but must be writable.
    """
    for flag in needed:
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing; give it, or a --preset that has it")
    for given in inputs_of(parser, args):
        if given.flaw is not None:
            parser.error(given.flaw)
    for flag in OUTPUTS:
        if getattr(args, flag, None) is not None:
            _check_output(parser, flag, getattr(args, flag))


def inputs_of(parser: Parser, args: argparse.Namespace) -> list[Input]:
    """All input files and folders that the flags name, in the order of --help."""
    found = []
    for flag, action in _actions(parser).items():
        given = getattr(args, flag, None)
        if action.type is Path and flag not in OUTPUTS and given is not None:
            found += [Input(flag, path, _input_flaw(flag, path)) for path in (given if isinstance(given, list) else [given])]
    return found


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        return text if action.default is None or "default:" in text else super()._get_help_string(action) or ""


def _preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_flags(parser: Parser, name: str) -> list[str]:
    """The preset's values as flags of this command; keys of other commands are ignored.

    A key "train.batch_size" applies to train.py only and takes precedence over "batch_size"; "esd.lr" applies to
    train.py --train_method esd. The key "like" names a preset, or a YAML file in the same folder, whose values are inherited.
    """
    path = found(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        parser.error(f"there is no preset '{name}'; give one of {', '.join(_preset_names())}, or a YAML file")
    values = _preset_values(parser, path)
    parsers = _all_parsers()
    lists: list[str] = []
    scalars: list[str] = []  # lists first: the last of them would swallow a stray word of the command line
    precedence = ["", _command(parser), parser.section]
    for key, value in sorted(values.items(), key=lambda item: _section(item[0]) in precedence and precedence.index(_section(item[0]))):
        section, flag = _section(key), str(key).rpartition(".")[2]
        owners = [one for one in parsers if flag in _actions(one) and section in ("", _command(one), *one.sections)]
        if not owners or flag in ("preset", "help"):
            parser.error(f"{path} sets '{key}', which no command knows; correct or remove it")
        action = _actions(parser).get(flag)
        is_for_others = section not in precedence or (section == _command(parser) and flag in parser.own)
        if action is not None and not is_for_others and value is not None:
            (scalars if action.nargs in (None, 0) else lists).extend(_as_flags(action, value))
    return lists + scalars


def _show_defaults(parser: Parser, presets: list[str]) -> None:
    """Show a preset's values as the defaults in --help."""
    options = {option: action for action in parser._actions for option in action.option_strings}
    for word in presets:
        flag, _, value = word.partition("=")
        if word.startswith("--"):
            action = options[flag]
            action.default = not flag.startswith("--no-") if action.nargs == 0 else value
        else:  # further value of a list
            action.default = f"{action.default} {word}".strip()


def _section(key: object) -> str:
    return str(key).rpartition(".")[0]


def _preset_values(parser: Parser, path: Path, followed: tuple[Path, ...] = ()) -> dict[str, object]:
    """Values of a preset by key, merged with those inherited by "like"; a key for all commands overrides inherited keys of each."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct it")
    if not isinstance(values, dict):
        parser.error(f"{path} holds a {type(values).__name__}; give lines of the form 'flag: value'")
    if "like" not in values:
        return values
    like, followed = str(values.pop("like")), (*followed, path.resolve())
    base = path.parent / like if like.endswith((".yaml", ".yml")) else PRESETS / f"{like}.yaml"
    if not base.is_file():
        parser.error(f"{path} is like {base}, which is not there; name one of {', '.join(_preset_names())}, or a YAML file")
    if base.resolve() in followed:
        parser.error(f"{base} is like itself, by way of {path}; name another preset in one of them")
    inherited = _preset_values(parser, base, followed)
    return {key: value for key, value in inherited.items() if str(key).rpartition(".")[2] not in values} | values


def _as_flags(action: argparse.Action, value: object) -> list[str]:
    if action.nargs == 0:  # a switch: --resume / --no-resume, or --dry_run
        switch = f"--{action.dest}" if value else f"--no-{action.dest}"
        return [switch] if switch in action.option_strings else []
    values = [str(one) for one in (value if isinstance(value, list) else [value])]
    return [f"--{action.dest}={values[0]}"] if action.nargs is None else [f"--{action.dest}", *values]


def _actions(parser: Parser) -> dict[str, argparse.Action]:
    """The actions by flag. A flag with an old name has it as a second key."""
    return {action.dest if action.help != argparse.SUPPRESS else action.option_strings[0].removeprefix("--"): action
            for action in parser._actions if action.option_strings or action.help != argparse.SUPPRESS}


def _command(parser: Parser) -> str:
    return parser.prog.split()[0].removesuffix(".py")


@functools.cache
def _all_parsers() -> list[Parser]:
    """The parsers of all commands, one per module args/*_args.py."""
    names = [module.name for module in pkgutil.iter_modules([str(ROOT / "args")]) if module.name.endswith("_args")]
    return [importlib.import_module(f"args.{name}").build_parser() for name in names]


def _input_flaw(flag: str, path: Path) -> str | None:
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


def _check_output(parser: Parser, flag: str, folder: Path) -> None:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        parser.error(f"--{flag} {folder} cannot be written ({place}: {error.strerror}); give another folder")
