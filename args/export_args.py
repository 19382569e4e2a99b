"""Command line of python -m ldm.export."""

import argparse
import re
from pathlib import Path

from args.common import Parser

FORMATS = {"universal": ".pt", "safetensors": ".safetensors", "a1111": ".pt", "comfyui": ".safetensors", "diffusers": ".safetensors",
           "invokeai": ".safetensors", "sdxl": ".safetensors"}  # format -> suffix of its file
HUB = "hub"  # format of a folder
TYPED = r"[A-Za-z0-9._-]+"  # file names that every client recognizes in a prompt: no space, no bracket, no colon
TOKEN = r"[a-z0-9._-]+"  # diffusers' tokenizer lower-cases the prompt, but not the token that it looks for


def parse_export_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, with the file name in `target`; an invalid value exits with a sentence and status 2. IN is not checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
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


def build_parser() -> Parser:
    """Flags of the export."""
    parser = Parser(prog="export.py", usage="python -m ldm.export IN OUT --format FORMAT [--token WORD] [--part NAME]",
                    description="Convert a prefix file for another program; --format universal converts it back.")
    parser.add_argument("source", metavar="IN", type=Path, help="prefix file of any form: .pt, .bin or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path,
                        help="file to write; A1111, Forge, ComfyUI and InvokeAI use its name in prompts; a folder names it by --token")
    parser.add_argument("--format", choices=[*FORMATS, HUB], required=True,
                        help="format of OUT: universal (all clients and the released code), safetensors (all clients), sdxl, one client, "
                             f"or {HUB} (a folder with a model card)")
    parser.add_argument("--token", metavar="WORD", default="alz", help="placeholder word of the prefix: <WORD> in diffusers")
    parser.add_argument("--part", metavar="NAME",
                        help="entry to export from a file with several: a placeholder, or clip_l or clip_g of an SDXL file "
                             "(clip_l of a transferred prefix is the SD v1 prefix)")
    return parser
