"""Shared parts of the command lines: groups of flags, presets, and checks that exit with one sentence and status 2."""

import argparse
import functools
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from args.paths import MODEL_FILES, ROOT, WRITTEN, found, keep_pipes

PRESETS = ROOT / "configs" / "presets"
YAML = (".yaml", ".yml")
PORTRAIT = "A close-up portrait of {name}"

Options = TypeVar("Options")
Add = Callable[..., argparse.Action]  # the method `add_argument` of a parser or of a group of flags
SWITCH = argparse.BooleanOptionalAction


class Parser(argparse.ArgumentParser):
    """ArgumentParser with defaults in the help, without abbreviations, and with one-line errors without the usage text."""

    def __init__(self, *, formatter_class: type[argparse.HelpFormatter] | None = None, **options: Any):
        super().__init__(formatter_class=formatter_class or _HelpFormatter, allow_abbrev=False, **options)
        self.remark = ""  # appended to every error
        # Sections that a preset may have besides the command's, such as "esd" in "esd.lr", with the flags that only the section sets.
        self.sections: Mapping[str, Collection[str]] = {}
        self.section: str | None = None  # the active one

    @property
    def command(self) -> str:
        """Name of the command, as in the keys of presets."""
        return self.prog.split()[0].removesuffix(".py")

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """The actions by flag. A flag with an old name has it as a second key."""
        return {action.dest if action.help != argparse.SUPPRESS else action.option_strings[0].removeprefix("--"): action
                for action in self._actions if action.option_strings or action.help != argparse.SUPPRESS}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}{self.remark}\n")

    def parse_known_args(self, *given: Any) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """Parse as usual, and look up each input path, see `found`."""
        args, others = super().parse_known_args(*given)
        for flag, action in self.flags.items():
            if action.type is Path and flag not in WRITTEN and (path := getattr(args, flag, None)) is not None:
                setattr(args, flag, [*map(found, path)] if isinstance(path, list) else found(path))
        return args, others


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "default:" in (action.help or ""):
            return action.help
        is_list = isinstance(action.default, list)
        return f"{action.help} (default: {' '.join(map(str, action.default))})" if is_list else super()._get_help_string(action)


def parse_with_preset(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse `argv`. Its flags take precedence over the preset, and the preset over the parser's defaults.

    Exits with a sentence and status 2 if a value is invalid; `check_paths` checks the paths.
    """
    chosen = Parser(add_help=False)
    add_preset_argument(chosen)
    preset, typed = chosen.parse_known_args(argv)[0].preset, typed_flags(argv)
    if preset is None:  # the paper's command gives only the files of its model
        named = typed & {"config_path", "ckpt_path"}
        chosen.add_argument("--ckpt_path", type=Path)
        preset = preset_of(chosen.parse_known_args(argv)[0].ckpt_path) if named else "mini"
        parser.remark = f" (--preset {preset} is the default if a model's paths are given; give another)" if named else ""
    defaults = parser.parse_args(preset_flags(parser, preset))
    parser.set_defaults(**vars(defaults))
    args = parser.parse_args(argv)
    keep_pipes(args)
    args.preset = preset
    if "edited_weights" in typed and defaults.edited_weights and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: --edited_weights {args.edited_weights} replaces the preset's {defaults.edited_weights}", file=sys.stderr)
    return args


def preset_of(path: Path | None) -> str:
    """Preset of a checkpoint: by the kind of a diffusers folder, otherwise Stable Diffusion v1.5."""
    from ldm.hub import holds_sdxl
    from ldm.util import UserError

    try:
        return "sdxl" if path is not None and holds_sdxl(path) else "sd-v1-5"
    except UserError:  # the check of the paths reports it
        return "sd-v1-5"


def options_of(kind: type[Options], args: argparse.Namespace, **others: object) -> Options:
    """A dataclass whose fields are named as flags, with their values; `others` by field."""
    return kind(**{field.name: others[field.name] if field.name in others else getattr(args, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def typed_flags(argv: list[str] | None) -> set[str]:
    """Names of the flags on the command line, with --no-resume as "resume"; None uses sys.argv."""
    argv = sys.argv[1:] if argv is None else argv
    return {word.split("=")[0].removeprefix("--").removeprefix("no-") for word in argv if word.startswith("--")}


def add_preset_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that sets the defaults of all others."""
    parser.add_argument("--preset", metavar="NAME", help=f"defaults of all flags, including those below: {_preset_names()}, or a YAML file "
                                                         "(default: mini; if a model's paths are given sd-v1-5, or sdxl for its folder)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the frozen model and of its devices."""
    add = parser.add_argument_group("frozen model").add_argument
    add("--config_path", metavar="FILE", type=Path, help="model config, target:/params: schema")
    add("--ckpt_path", metavar="PATH", type=Path, help="checkpoint file, diffusers folder, or owner/name[@revision] of the Hub")
    add("--vae_path", metavar="PATH", type=Path, help="autoencoder instead of the checkpoint's or where it has none; as --ckpt_path")
    add("--edited_weights", metavar="FILE", type=Path, help=".safetensors of tensors that replace some of the checkpoint's")
    add("--precision", choices=("fp32", "bf16", "auto"), default="auto",
        help="precision of the model; auto: bf16 if the device supports it, else fp32")
    add_devices_argument(parser)


def add_face_arguments(add: Add) -> None:
    """Add the flags of the people and of the face recognizer, shared by training's final table and both test scripts."""
    add("--people", metavar="CSV", type=Path, help="people: name, group (train|test|keep), attributes")
    add("--gallery", metavar="NPZ", type=Path, help="ArcFace embedding (512,) per name")
    add_face_pack_arguments(add)
    add("--threshold", metavar="COS", type=number(float, -1, 1), default=0.3,
        help="minimum cosine of a face that counts as the person (TAR)")


def add_face_pack_arguments(add: Add) -> None:
    """Add the flags of the face detector and recognizer, shared with dataset_generation.py."""
    add("--face_pack", metavar="DIR", type=Path, help="folder with an InsightFace pack (*.onnx)")
    add("--det_size", metavar="PIXELS", type=number(int, 32, 4096), nargs="+", default=[640, 256, 128],
        help="detector sizes, tried in order until a face is found")
    add("--det_thresh", metavar="SCORE", type=number(float, 0, 1), default=0.5, help="minimum detector score of a face")


def add_attribute_arguments(add: Add) -> None:
    """Add the flags of the attributes in the identity table, shared by training's final table and test_id.py."""
    add("--clip", metavar="FILE", type=Path, help="open_clip weights for attributes and captions, with their config next to them as .json")
    add("--c2", action=SWITCH, default=False, help="add rows of the base model with attributes (c2) instead of the name")


def add_sampling_arguments(add: Add, *, people: str, n_samples: int, scale: float) -> None:
    """Add the flags of images of people, shared by both test scripts and dataset_generation.py faces."""
    add("--group", choices=("train", "test", "all"), default=people, help="people of S_ID, of S_test, or both")
    add("--n_samples", metavar="N", type=IMAGES, default=n_samples, help="images per name")
    add("--ddim_steps", metavar="N", type=DDIM_STEPS, default=20, help="DDIM steps")
    add("--scale", metavar="FLOAT", type=NOT_NEGATIVE, default=scale, help="guidance scale")
    add("--seed", metavar="N", type=SEED, default=0, help="seed of the images' noise, and with --templates of their choice")


def add_prompt_template_argument(add: Add, help: str) -> None:
    """--prompt_template; its old name --prompt, which is a run's name in train.py, is hidden and goes with version 0.2."""
    add("--prompt_template", metavar="TEXT", type=_template, default=PORTRAIT, help=help)
    add("--prompt", dest="prompt_template", type=_template, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_devices_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the devices that share the work."""
    parser.add_argument("--devices", metavar="LIST", type=_devices, default="auto",
                        help="auto (the first GPU, or else the CPU), cpu, cpu:N (N processes), or GPU numbers: 0 or 0,1,2,3")
    parser.add_argument("--num_nodes", metavar="N", type=COUNT, default=1,
                        help="machines with these devices each; torchrun or srun starts the command on each")


def add_resume_argument(add: Add, help: str) -> None:
    add("--resume", action=SWITCH, default=True, help=help)


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
            if math.isfinite(value) and low <= value <= high and not (above and value == low):
                return value
        except (ValueError, OverflowError):  # a whole number may be too large for isfinite
            pass
        raise argparse.ArgumentTypeError(f"got '{text}'; give {words} {span}")

    return convert


COUNT, NOT_NEGATIVE, POSITIVE = number(int, 1), number(float, 0), number(float, 0, above=True)
DDIM_STEPS, SEED = number(int, 1, 1000), number(int, 0, 2**63 - 1)
IMAGES = number(int, 1, 10_000)  # per name; the lists of all images are held in memory


def _template(text: str) -> str:
    if "{name}" not in text:
        raise argparse.ArgumentTypeError(f"'{text}' has no place for the name; give one such as 'A portrait of {{name}}'")
    return text


def _devices(text: str) -> str:
    """A normalized list of devices: "cpu,cpu" becomes cpu:2, and "0,0", one GPU in the released code's command, becomes 0."""
    if not re.fullmatch(r"auto|cpu(:[1-9]\d*|(,cpu)+)?|\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is none of auto, cpu, cpu:2 (two processes), or GPU numbers: 0,1")
    names = text.split(",")
    return f"cpu:{len(names)}" if names[1:] and names[0] == "cpu" else ",".join(dict.fromkeys(names))


def preset_flags(parser: Parser, name: str) -> list[str]:
    """The preset's values as flags of this command; keys of other commands are ignored.

    A key "train.batch_size" applies to train.py only and takes precedence over "batch_size"; "esd.lr" applies to
    train.py --train_method esd. The key "like" names a preset, or a YAML file in the same folder, whose values are inherited.
    """
    path = found(name) if name.endswith(YAML) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        parser.error(f"there is no preset '{name}'; give one of {_preset_names()}, or a YAML file")
    by_section: dict[str | None, dict[str, object]] = {}
    for key, value in _preset_values(parser, path).items():
        section, _, flag = str(key).rpartition(".")
        if flag in ("preset", "help") or not any(flag in one.flags and section in ("", one.command, *one.sections)
                                                 for one in _all_parsers()):
            parser.error(f"{path} sets '{key}', which no command knows; correct or remove it")
        if value is not None:
            by_section.setdefault(section, {})[flag] = value
    own = parser.sections[parser.section] if parser.section else ()
    ours = {flag: value for flag, value in by_section.get(parser.command, {}).items() if flag not in own}
    values = by_section.get("", {}) | ours | by_section.get(parser.section, {})
    return [word for flag, action in parser.flags.items() if flag in values for word in _as_flags(action, values[flag])]


def model_of_preset(parser: Parser, name: str) -> dict[str, Path | None]:
    """Files of a preset's frozen model, by flag."""
    model = Parser(prog=parser.prog, add_help=False)
    add_model_arguments(model)
    values = vars(model.parse_args(preset_flags(model, name)))
    return {flag: values[flag] for flag in MODEL_FILES}


def as_flags(parser: Parser, values: Mapping[str, object], source: str, taken: Collection[str] = ()) -> list[str]:
    """Words of the command line for values by flag from a file `source`; exits if it must not set a flag, one of `taken`."""
    actions = parser.flags
    for key in values:
        if key not in actions or key in ("preset", "help"):
            parser.error(f"{source} sets '{key}', which this command does not know; correct or remove it")
        if key in taken:
            parser.error(f"{source} sets '{key}', which is the same for all rows or follows from them; remove it")
    return [word for key, value in values.items() for word in _as_flags(actions[key], value)]


def _preset_names() -> str:
    return ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))


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
    base = path.parent / like if like.endswith(YAML) else PRESETS / f"{like}.yaml"
    if not base.is_file():
        parser.error(f"{path} is like {base}, which is not there; name one of {_preset_names()}, or a YAML file")
    if base.resolve() in followed:
        parser.error(f"{base} is like itself, by way of {path}; name another preset in one of them")
    inherited = _preset_values(parser, base, followed)
    return {key: value for key, value in inherited.items() if str(key).rpartition(".")[2] not in values} | values


def _as_flags(action: argparse.Action, value: object) -> list[str]:
    if action.nargs == 0:  # a switch: --resume / --no-resume, or --dry_run
        return [switch for switch in (f"--{'' if value else 'no-'}{action.dest}",) if switch in action.option_strings]
    if action.nargs is None:
        return [f"--{action.dest}={value}"]  # the flag's type refuses a list
    return [f"--{action.dest}", *map(str, value if isinstance(value, list) else [value])]


@functools.cache
def _all_parsers() -> list[Parser]:
    """The parsers of all commands, one per module args/*_args.py."""
    return [importlib.import_module(f"args.{path.stem}").build_parser() for path in (ROOT / "args").glob("*_args.py")]
