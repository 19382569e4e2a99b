"""Command line of python -m ldm.export."""

import argparse
import re
from pathlib import Path

from args.common import Parser

FORMATS = {"universal": ".pt", "safetensors": ".safetensors", "a1111": ".pt", "comfyui": ".safetensors", "diffusers": ".safetensors",
           "invokeai": ".safetensors", "sdxl": ".safetensors"}  # format -> suffix of its file
TYPED = r"[A-Za-z0-9._-]+"  # file names that every client finds again in a prompt: no space, no bracket, no colon
TOKEN = r"[a-z0-9._-]+"  # diffusers' tokenizer lower-cases the prompt and then looks for the token as it was given


def parse_export_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, `target` with its file name; a wrong value ends with a sentence and exit status 2. IN is not looked at."""
    parser = build_parser()
    args = parser.parse_args(argv)
    suffix = FORMATS[args.format]
    if not re.fullmatch(TOKEN, args.token):
        parser.error(f"--token '{args.token}' would not be found in a prompt; give small letters, digits, '.', '_', '-' alone, such as alz")
    if args.target.is_dir():
        args.target /= args.token + suffix
    if args.target.suffix != suffix:
        parser.error(f"OUT {args.target} does not end in {suffix}, as files of --format {args.format} do; give a name that does")
    if args.format != "diffusers" and not re.fullmatch(TYPED, args.target.stem):
        parser.error(f"OUT {args.target} would not be found in a prompt, where its name is typed; "
                     f"give a name of letters, digits, '.', '_' and '-' alone, such as alz{suffix}")
    if args.part is not None and args.format == "sdxl":
        parser.error(f"--part {args.part} has no use with --format sdxl, which takes both parts; leave it out")
    if args.part == "clip_g" and args.format not in ("diffusers", "safetensors"):
        parser.error(f"--part clip_g with --format {args.format} would be read as vectors of another text encoder, or not at all; "
                     "give --format sdxl for both parts, or diffusers")
    if args.part is not None and args.source.resolve() == args.target.resolve():
        parser.error(f"OUT {args.target} is IN, of which --part {args.part} alone would be left; give another OUT")
    return args


def build_parser() -> Parser:
    """Flags of the export."""
    parser = Parser(prog="export.py", usage="python -m ldm.export IN OUT --format FORMAT [--token WORD] [--part NAME]",
                    description="A prefix file in the form of another program; --format universal brings one back.")
    parser.add_argument("source", metavar="IN", type=Path, help="prefix file of any form: .pt, .bin or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path,
                        help="file to write; its name is typed in A1111, Forge, ComfyUI and InvokeAI; a folder gets --token as the name")
    parser.add_argument("--format", choices=FORMATS, required=True,
                        help="of OUT: universal (for all clients and the released code), safetensors (all clients), sdxl, or one client")
    parser.add_argument("--token", metavar="WORD", default="alz", help="word that stands for the prefix: <WORD> in diffusers")
    parser.add_argument("--part", metavar="NAME",
                        help="the one to write of a file with several: a placeholder, or clip_l or clip_g of an SDXL file, "
                             "where clip_l of a transferred prefix is the SD-1 prefix itself")
    return parser
