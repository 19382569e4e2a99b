"""Command line of python -m ldm.apl.transfer."""

import argparse
from pathlib import Path

from args.common import COUNT, NOT_NEGATIVE, POSITIVE, SEED, SWITCH, Parser, model_of_preset, number, preset_flags, typed_flags
from args.paths import check_paths, keep_pipes

USED = {"relative": ("top_k", "scale", "steps", "lr", "seed"), "ridge": ("penalty", "scale"), "procrustes": ("scale",),
        "mlp": ("scale", "steps", "lr", "seed"), "nearest": (), "mean": (), "zeros": (),
        "text": ("alpha", "steps", "lr", "seed")}  # route -> its own flags
ROUTES = tuple(USED)
TEXTS = ("config_path", "people", "templates", "caption_images")  # files that only the route text reads
SEARCH = {"relative": (2000, 5e-3), "mlp": (1000, 1e-3), "text": (200, 1e-2)}  # route -> steps and learning rate
SCALES = ("target", "ratio")


def parse_transfer_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, with the `ckpt_path` that --to names; an invalid value exits with a sentence and status 2. IN is not checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
    keep_pipes(args)
    own = {*USED[args.route], *(TEXTS if args.route == "text" else ("centred", "anchors"))}
    unused = sorted(typed_flags(argv) & {*TEXTS, "centred", "anchors", *(flag for flags in USED.values() for flag in flags)} - own)
    if unused:
        parser.error(f"--{unused[0]} has no use with --route {args.route}; leave it out")
    if args.to is not None:
        args.ckpt_path = args.ckpt_path or model_of_preset(parser, args.to)["ckpt_path"]  # not its `scale`, the guidance scale
        if args.ckpt_path is None:
            parser.error(f"--to {args.to} names no checkpoint; give a preset that does, or --ckpt_path PATH")
    elif args.ckpt_path is None:
        parser.error("there is no target model; give --to PRESET, or --ckpt_path PATH of an SDXL checkpoint")
    needed = TEXTS if args.route == "text" else ()
    if args.to is not None and needed:
        of_preset = Parser(prog="train.py", add_help=False)  # whose keys in the preset apply
        _add_texts(of_preset)
        for flag, path in vars(of_preset.parse_args(preset_flags(of_preset, args.to))).items():
            setattr(args, flag, getattr(args, flag) or path)
    checked = argparse.Namespace(**{flag: getattr(args, flag) for flag in ("ckpt_path", "anchors", *needed)})
    check_paths(parser, checked, needed)
    vars(args).update(vars(checked))
    if args.target.suffix != ".safetensors":
        parser.error(f"OUT {args.target} does not end in .safetensors, as files for SDXL do; give a name that does")
    if args.target.is_dir():
        parser.error(f"OUT {args.target} is a folder; give the name of a file in it")
    for flag, path in (("IN", args.source), ("--ckpt_path", args.ckpt_path)):
        if args.target.resolve() == path.resolve():
            parser.error(f"OUT {args.target} is {flag} itself, which would be overwritten; give another OUT")
    if args.route == "relative" and args.scale is None:
        args.scale = "target"
    steps, lr = SEARCH.get(args.route, (None, None))
    args.steps, args.lr = args.steps or steps, args.lr or lr
    return args


def _add_texts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("route text", "files of its own (default: those of --to for train.py)").add_argument
    add("--config_path", metavar="FILE", type=Path, help="config of the target model, for its text encoders")
    add("--people", metavar="CSV", type=Path, help="people: name, group, attributes; the group train is used")
    add("--templates", metavar="FILE", type=Path, help="prompt templates, one per line, used for both c1 and c2")
    add("--caption_images", metavar="DIR", type=Path, help="S_Reg, of which only the captions are read")


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
        help="relative: zero-shot prompt transfer (arXiv 2310.01691); ridge, procrustes: linear maps; mlp: a perceptron; nearest: the "
             "nearest token; mean, zeros: controls; text: fit the second encoder's states on texts, in minutes")
    add("--scale", choices=SCALES,
        help="target: mean and standard deviation of the target's table; ratio: each norm in its original ratio to the table's (default: "
             "target for relative, else the map's own)")
    add("--centred", action=SWITCH, default=False, help="center each table at its mean row before taking cosines; linear maps always do")
    add("--anchors", metavar="FILE", type=Path, nargs="+", help="texts whose tokens are used as anchors (default: the whole vocabulary)")
    add("--penalty", metavar="FLOAT", type=POSITIVE,
        help="ridge penalty, in units of the mean of diag(A_s^T A_s) (default: by cross-validation)")

    add = parser.add_argument_group("routes relative, mlp and text").add_argument
    add("--top_k", metavar="K", type=number(int, 0),
        help="tokens kept per vector; 0 keeps all (default: 8192, as published, or all if fewer)")
    add("--alpha", metavar="FLOAT", type=NOT_NEGATIVE, default=1.0, help="text: strength of the anonymization (Eq. 5)")
    add("--steps", metavar="N", type=COUNT, help="steps of Adam (default: 2000; mlp: 1000; text: 200, of 8 texts)")
    add("--lr", metavar="FLOAT", type=POSITIVE, help="learning rate of Adam (default: 5e-3; mlp: 1e-3; text: 1e-2)")
    add("--seed", metavar="N", type=SEED, default=0, help="seed of the initial candidate or network, and with text of the texts' order")
    _add_texts(parser)
    return parser
