"""Command line of python -m ldm.apl.transfer."""

import argparse
from pathlib import Path

from args.common import COUNT, POSITIVE, SEED, SWITCH, Parser, model_of_preset, number, typed_flags
from args.paths import check_paths, keep_pipes

ROUTES = ("relative", "ridge", "procrustes", "mean")
USED = {"relative": ("top_k", "scale", "steps", "lr", "seed"), "ridge": ("penalty", "scale"), "procrustes": ("scale",),
        "mean": ()}  # route -> its own flags
SCALES = ("target", "ratio")


def parse_transfer_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, with the `ckpt_path` that --to names; an invalid value exits with a sentence and status 2. IN is not checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
    keep_pipes(args)
    unused = sorted(typed_flags(argv) & {flag for flags in USED.values() for flag in flags} - set(USED[args.route]))
    if unused:
        parser.error(f"--{unused[0]} has no use with --route {args.route}; leave it out")
    if args.to is not None:
        args.ckpt_path = args.ckpt_path or model_of_preset(parser, args.to)["ckpt_path"]  # not its `scale`, the guidance scale
        if args.ckpt_path is None:
            parser.error(f"--to {args.to} names no checkpoint; give a preset that does, or --ckpt_path PATH")
    elif args.ckpt_path is None:
        parser.error("there is no target model; give --to PRESET, or --ckpt_path PATH of an SDXL checkpoint")
    checked = argparse.Namespace(ckpt_path=args.ckpt_path, anchors=args.anchors)
    check_paths(parser, checked, ())
    args.ckpt_path = checked.ckpt_path
    if args.target.suffix != ".safetensors":
        parser.error(f"OUT {args.target} does not end in .safetensors, as files for SDXL do; give a name that does")
    if args.target.is_dir():
        parser.error(f"OUT {args.target} is a folder; give the name of a file in it")
    for flag, path in (("IN", args.source), ("--ckpt_path", args.ckpt_path)):
        if args.target.resolve() == path.resolve():
            parser.error(f"OUT {args.target} is {flag} itself, which would be overwritten; give another OUT")
    if args.route == "relative" and args.scale is None:
        args.scale = "target"
    return args


def build_parser() -> Parser:
    """Flags of the transfer."""
    parser = Parser(prog="transfer.py", usage="python -m ldm.apl.transfer IN OUT --to PRESET [--route NAME] [--centred] [--scale NAME] ...",
                    description="Transfer a prefix from Stable Diffusion v1's text encoder to both encoders of SDXL, using only their "
                                "token tables.")
    parser.add_argument("source", metavar="IN", type=Path, help="prefix file of any form: .pt, .bin or .safetensors")
    parser.add_argument("target", metavar="OUT", type=Path, help=".safetensors file to write, with clip_l (the prefix itself) and clip_g")
    parser.add_argument("--to", metavar="PRESET", help="preset whose ckpt_path is the target model; its other values are not used")
    parser.add_argument("--ckpt_path", metavar="PATH", type=Path,
                        help="SDXL checkpoint (file, diffusers folder, or owner/name of the Hub), instead of the preset's")

    add = parser.add_argument_group("route", "method that maps the first token table to the second").add_argument
    add("--route", choices=ROUTES, default="relative",
        help="relative: zero-shot prompt transfer (arXiv 2310.01691); ridge, procrustes: linear maps; mean: a control")
    add("--scale", choices=SCALES,
        help="target: mean and standard deviation of the target's table; ratio: each norm in its original ratio to the table's (default: "
             "target for relative, else the map's own)")
    add("--centred", action=SWITCH, default=False, help="center each table at its mean row before taking cosines; linear maps always do")
    add("--anchors", metavar="FILE", type=Path, nargs="+", help="texts whose tokens are used as anchors (default: the whole vocabulary)")
    add("--penalty", metavar="FLOAT", type=POSITIVE,
        help="ridge penalty, in units of the mean of diag(A_s^T A_s) (default: by cross-validation)")

    add = parser.add_argument_group("route relative").add_argument
    add("--top_k", metavar="K", type=number(int, 0),
        help="tokens kept per vector; 0 keeps all (default: 8192, as published, or all if fewer)")
    add("--steps", metavar="N", type=COUNT, default=2000, help="steps of Adam")
    add("--lr", metavar="FLOAT", type=POSITIVE, default=5e-3, help="learning rate of Adam")
    add("--seed", metavar="N", type=SEED, default=0, help="seed of the initial candidate")
    return parser
