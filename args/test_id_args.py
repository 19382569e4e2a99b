"""Command line of test_id.py."""

import argparse
from pathlib import Path

from args import common
from args.common import COUNT, NOT_NEGATIVE, Parser, typed_flags
from args.paths import MODEL_FILES, check_paths

NEEDED = ("people", "face_pack", "gallery")


def parse_test_id_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags; an invalid value exits with status 2. With --images, the flags of the model and the prefix are None."""
    parser = build_parser()
    args = common.parse_with_preset(parser, argv)
    if args.images and args.models:
        parser.error("--models generates images, and --images scores existing ones; give one of them")
    if args.images:
        vars(args).update(dict.fromkeys((*MODEL_FILES, "embedding", "clip", "models", "drift_prompts", "target")))
        common.take_one_device(args)
    if args.models:
        args.models = models_asked_for(parser, args, typed_flags(argv))
        vars(args).update(dict.fromkeys(MODEL_FILES))  # each model has its own
    check_paths(parser, args, NEEDED if args.images or args.models else (*NEEDED, "config_path", "ckpt_path"))
    return args


def models_asked_for(parser: Parser, args: argparse.Namespace, typed: set[str]) -> list[dict[str, Path | None]]:
    """Files of each of --models, by flag; exits if a file is missing or a flag of `typed` has no use.

    A diffusers folder or a model of the Hub has --config_path, or the config of its own kind if that is another and was not typed.
    """
    models, files = [], [name for name in args.models if _is_checkpoint(name)]
    if "edited_weights" in typed:
        parser.error("--edited_weights has no use with --models; give a YAML file with the lines 'like: PRESET' and 'edited_weights: FILE'")
    if "vae_path" in typed and not files:
        parser.error("--vae_path has no use with presets as --models; give a YAML file with the lines 'like: PRESET' and 'vae_path: FILE'")
    for name in args.models:
        own = {"config_path": args.config_path, "ckpt_path": Path(name), "vae_path": args.vae_path, "edited_weights": None}
        model = argparse.Namespace(**own if name in files else common.model_of_preset(parser, name))
        check_paths(parser, model, ("config_path", "ckpt_path"))
        if name in files and "config_path" not in typed:
            model.config_path = _config_of(parser, model)
        models.append(vars(model))
    return models


def _config_of(parser: Parser, model: argparse.Namespace) -> Path | None:
    """The model's config; for a diffusers folder of the other kind (Stable Diffusion v1 or SDXL), that of its preset."""
    from ldm.diffusers_folder import is_model_folder, is_sdxl

    if not is_model_folder(model.ckpt_path):
        return model.config_path
    sdxl = is_sdxl(model.ckpt_path)
    if sdxl == ("conditioner_config:" in model.config_path.read_text(encoding="utf-8")):
        return model.config_path
    return common.model_of_preset(parser, "sdxl" if sdxl else "sd-v1-5")["config_path"]


def _is_checkpoint(name: str) -> bool:
    """Whether one of --models is a checkpoint, which may be missing, rather than a preset."""
    from ldm.hub import is_hub_id

    path = Path(name)
    is_there = path.is_file() or (path / "model_index.json").is_file() or is_hub_id(path)
    return path.suffix not in common.YAML and (is_there or path.suffix.lower() in (".ckpt", ".safetensors"))


def _alphas(text: str) -> list[float]:
    return list(dict.fromkeys(map(NOT_NEGATIVE, text.split(","))))


def build_parser() -> Parser:
    """Flags of test_id.py, with the paper's values as defaults."""
    parser = Parser(prog="test_id.py", description="Identity accuracy of generated faces, with and without a prefix.")
    common.add_preset_argument(parser)
    common.add_model_arguments(parser)

    add = parser.add_argument_group("generation").add_argument
    add("--embedding", metavar="FILE", type=Path, nargs="+", help="files of prefixes, context maps or edited weights; one further row each")
    add("--models", metavar="MODEL", nargs="+",
        help="models to compare: presets, or checkpoints of --config_path as --ckpt_path takes them; prefixes are used where they fit")
    common.add_prompt_template_argument(add, help="prompt, with {name}")
    common.add_sampling_arguments(add, people="all", n_samples=4, scale=7.0)
    add("--n_names", metavar="N", type=COUNT, help="number of names per group (default: all)")
    add("--batch_size", metavar="B", type=COUNT, default=16, help="images per batch on each device")
    add("--drift_prompts", metavar="FILE", type=Path, nargs="+", help="prompts without names, one per line, for rows of drift")
    add("--images", metavar="DIR", type=Path, help="score these images instead; no model is loaded")

    add = parser.add_argument_group("scoring").add_argument
    common.add_face_arguments(add)
    common.add_attribute_arguments(add)
    add("--target", metavar="ALPHA[,ALPHA...]", type=_alphas,
        help="add rows of c2, and of images sampled by Eq. 5's target without a prefix, with each alpha: what a prefix is trained to reach")

    add = parser.add_argument_group("output").add_argument
    add("--out_dir", metavar="DIR", type=Path, default=Path("runs/test_id"), help="folder of images, tables and grid")
    common.add_resume_argument(add, "keep existing images of the same settings")
    return parser
