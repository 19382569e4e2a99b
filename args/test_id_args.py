"""Command line of test_id.py."""

import argparse
from pathlib import Path

from args.common import (
    MODEL_FILES,
    Parser,
    add_attribute_arguments,
    add_devices_argument,
    add_face_arguments,
    add_model_arguments,
    add_preset_argument,
    add_prompt_template_argument,
    check_devices,
    check_paths,
    check_prompt_template,
    model_of_preset,
    number,
    parse_with_preset,
    take_one_device,
    typed_flags,
)

NEEDED = ("people", "face_pack", "gallery")
ONLY_TO_GENERATE = (*MODEL_FILES, "embedding", "clip", "models", "drift_prompts")


def parse_test_id_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags of test_id.py; an invalid value exits with a sentence and status 2.

    With --images, the flags of the model and the prefix are None.
    """
    parser = build_parser()
    args = parse_with_preset(parser, argv)
    check_devices(parser, args)
    if args.images and args.models:
        parser.error("--models generates images, and --images scores existing ones; give one of them")
    if args.images:
        vars(args).update(dict.fromkeys(ONLY_TO_GENERATE))
        take_one_device(args)
    if args.models:
        args.models = models_asked_for(parser, args, typed_flags(argv))
        vars(args).update(dict.fromkeys(MODEL_FILES))  # each model has its own
    check_paths(parser, args, NEEDED if args.images or args.models else (*NEEDED, "config_path", "ckpt_path"))
    check_prompt_template(parser, args)
    return args


def models_asked_for(parser: Parser, args: argparse.Namespace, typed: set[str]) -> list[dict[str, Path | None]]:
    """Files of each of --models, by flag; exits if a file is missing or a flag of `typed` has no use."""
    models, files = [], [name for name in args.models if _is_checkpoint(name)]
    if "edited_weights" in typed:
        parser.error("--edited_weights has no use with --models; give a YAML file with the lines 'like: PRESET' and 'edited_weights: FILE'")
    if "vae_path" in typed and not files:
        parser.error("--vae_path has no use with presets as --models; give a YAML file with the lines 'like: PRESET' and 'vae_path: FILE'")
    for name in args.models:
        own = {"config_path": args.config_path, "ckpt_path": Path(name), "vae_path": args.vae_path, "edited_weights": None}
        models.append(own if name in files else model_of_preset(parser, name))
        check_paths(parser, argparse.Namespace(**models[-1]), ("config_path", "ckpt_path"))
    return models


def _is_checkpoint(name: str) -> bool:
    """Whether one of --models is a checkpoint, which may be missing, rather than a preset."""
    path = Path(name)
    is_there = path.is_file() or (path / "model_index.json").is_file()  # a diffusers folder is refused later, with a specific message
    return path.suffix not in (".yaml", ".yml") and (is_there or path.suffix.lower() in (".ckpt", ".safetensors"))


def build_parser() -> Parser:
    """Flags of test_id.py, with the paper's values as defaults."""
    parser = Parser(prog="test_id.py", description="Identity accuracy of generated faces, with and without a prefix.")
    add_preset_argument(parser)
    add_model_arguments(parser)
    add_devices_argument(parser)

    group = parser.add_argument_group("generation")
    group.add_argument("--embedding", metavar="FILE", type=Path, nargs="+",
                       help="files of prefixes, context maps or edited weights; one row each, next to the row without")
    group.add_argument("--models", metavar="MODEL", nargs="+",
                       help="models to compare in one table: presets, or checkpoints of --config_path; prefixes are used where they fit")
    add_prompt_template_argument(group, help="prompt, with {name}")
    group.add_argument("--group", choices=("train", "test", "all"), default="all",
                       help="people of S_ID, of S_test, or both")
    group.add_argument("--n_names", metavar="N", type=number(int, 1),
                       help="number of names per group (default: all)")
    group.add_argument("--n_samples", metavar="N", type=number(int, 1), default=4, help="images per name")
    group.add_argument("--ddim_steps", metavar="N", type=number(int, 1, 1000), default=20, help="DDIM steps")
    group.add_argument("--scale", metavar="FLOAT", type=number(float, 0), default=7.0, help="guidance scale")
    group.add_argument("--seed", metavar="N", type=number(int, 0, 2**63 - 1), default=0, help="seed of the images' noise")
    group.add_argument("--batch_size", metavar="B", type=number(int, 1), default=16, help="images per batch on each device")
    group.add_argument("--drift_prompts", metavar="FILE", type=Path, nargs="+",
                       help="prompts without names, one per line: adds rows of their images' drift")
    group.add_argument("--images", metavar="DIR", type=Path, help="score these images instead; no model is loaded")

    group = parser.add_argument_group("scoring")
    add_face_arguments(group)
    add_attribute_arguments(group)

    group = parser.add_argument_group("output")
    group.add_argument("--out_dir", metavar="DIR", type=Path, default=Path("runs/test_id"),
                       help="folder of images, tables and grid")
    group.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                       help="keep existing images of the same settings")
    return parser
