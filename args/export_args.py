"""Command line of python -m ldm.export."""

import argparse
import re
from pathlib import Path

from args.common import Parser, add_model_arguments, model_of_preset, preset_of
from args.paths import check_paths

FORMATS = {"universal": ".pt", "safetensors": ".safetensors", "a1111": ".pt", "comfyui": ".safetensors", "diffusers": ".safetensors",
           "invokeai": ".safetensors", "sdxl": ".safetensors"}  # format -> suffix of its file
HUB = "hub"  # format of a folder
PIPELINE = "diffusers-pipeline"  # format of a model
TYPED = r"[A-Za-z0-9._-]+"  # file names that every client recognizes in a prompt: no space, no bracket, no colon
TOKEN = r"[a-z0-9._-]+"  # diffusers' tokenizer lower-cases the prompt, but not the token that it looks for


def parse_export_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, with the file name in `target`; an invalid value exits with a sentence and status 2. IN is not checked.

    With the format PIPELINE, `source` is None, and the files of the model are those that its preset and flags name.
    """
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    if args.format == PIPELINE:
        return _model_asked_for(parser, args)
    if args.source is None:
        parser.error(f"--format {args.format} converts a prefix file; give IN and OUT")
    for flag in ("model", "config_path", "ckpt_path"):
        if getattr(args, flag) is not None:
            parser.error(f"--{flag} has no use with --format {args.format}; give --format {PIPELINE} to export a model")
    if not re.fullmatch(TOKEN, args.token):
        parser.error(f"--token '{args.token}' would not be found in a prompt; give lower-case letters, digits, '.', '_' or '-', as in alz")
    if args.format == HUB:
        if args.part is not None:
            parser.error(f"--part {args.part} has no use with --format {HUB}, which takes the whole file; leave it out")
        return args
    suffix = FORMATS[args.format]
    if args.target.is_dir():
        args.target /= args.token + suffix
    if args.target.suffix != suffix:
        parser.error(f"OUT {args.target} does not end in {suffix}, as files of --format {args.format} do; give a name that does")
    if args.format != "diffusers" and not re.fullmatch(TYPED, args.target.stem):
        parser.error(f"OUT {args.target} would not be found in a prompt, which contains its name; "
                     f"give a name of only letters, digits, '.', '_' and '-', such as alz{suffix}")
    if args.part is not None and args.format == "sdxl":
        parser.error(f"--part {args.part} has no use with --format sdxl, which takes both parts; leave it out")
    if args.part == "clip_g" and args.format not in ("diffusers", "safetensors"):
        parser.error(f"--part clip_g with --format {args.format} would be read as vectors of another text encoder, or not at all; "
                     "give --format sdxl for both parts, or diffusers")
    if args.part is not None and args.source.resolve() == args.target.resolve():
        parser.error(f"OUT {args.target} is IN, which would be reduced to --part {args.part}; give another OUT")
    return args


def _model_asked_for(parser: Parser, args: argparse.Namespace) -> argparse.Namespace:
    """The flags with the files of the model by flag."""
    if args.source is not None:
        parser.error(f"--format {PIPELINE} exports a model, not the prefix IN; give OUT, and --model PRESET or --ckpt_path PATH")
    given = {flag: getattr(args, flag) for flag in ("config_path", "ckpt_path") if getattr(args, flag) is not None}
    if args.model is None and "ckpt_path" not in given:
        parser.error("there is no model; give --model PRESET, or --ckpt_path PATH")
    preset = args.model or preset_of(given["ckpt_path"])
    files, model = argparse.Namespace(**model_of_preset(parser, preset) | given), Parser(prog=parser.prog)
    add_model_arguments(model)
    check_paths(model, files, ("config_path", "ckpt_path"))
    vars(args).update(vars(files))
    return args


def build_parser() -> Parser:
    """Flags of the export."""
    parser = Parser(prog="export.py", usage="python -m ldm.export IN OUT --format FORMAT [--token WORD] [--part NAME]\n       "
                                            f"python -m ldm.export --model PRESET OUT --format {PIPELINE}",
                    description="Convert a prefix file for another program (--format universal converts it back), or a model to a "
                                "folder of diffusers.")
    parser.add_argument("source", metavar="IN", type=Path, nargs="?", help="prefix file of any form: .pt, .bin or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path,
                        help="file to write; A1111, Forge, ComfyUI and InvokeAI use its name in prompts; a folder names it by --token")
    parser.add_argument("--format", choices=[*FORMATS, HUB, PIPELINE], required=True,
                        help="format of OUT: universal (all clients and the released code), safetensors (all clients), sdxl, one client, "
                             f"{HUB} (a folder with a model card), or {PIPELINE} (a folder of a model)")
    parser.add_argument("--token", metavar="WORD", default="alz", help="placeholder word of the prefix: <WORD> in diffusers")
    parser.add_argument("--part", metavar="NAME",
                        help="entry to export from a file with several: a placeholder, or clip_l or clip_g of an SDXL file "
                             "(clip_l of a transferred prefix is the SD v1 prefix)")
    add = parser.add_argument_group(f"model, with --format {PIPELINE}").add_argument
    add("--model", metavar="PRESET", help="preset whose model is exported, with its edited weights if it has some")
    add("--config_path", metavar="FILE", type=Path, help="model config, instead of the preset's")
    add("--ckpt_path", metavar="PATH", type=Path, help="checkpoint instead of the preset's, as train.py takes it")
    return parser
