"""Command line of python -m ldm.paper."""

import argparse
from pathlib import Path

from args.common import ROOT, Parser, add_devices_argument, add_preset_argument, check_devices, check_paths, parse_with_preset, typed_flags
from args.figure5_flags import FIGURE5_FLAGS, FIGURE5_NEEDED, add_figure5_arguments

SHOWN = {"table2": "competing methods beside ours, in numbers (Table 2) and pictures (Figure 4)",
         "figure5": "identities that an attacker teaches the model, without and with the prefix"}


def parse_paper_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, `what` among them; a wrong value ends with a sentence and exit status 2. `out_dir` and `rows` are filled in."""
    parser = build_parser()
    args = parse_with_preset(parser, argv)
    if args.what is None:
        parser.error(f"it is not said what to make; give one of {', '.join(SHOWN)}, as in python -m ldm.paper table2")
    check_devices(parser, args)
    if args.num_nodes != 1:
        parser.error(f"--num_nodes {args.num_nodes} has no use here, for the trainings are started on this machine; leave it out")
    without_use = {"rows"} if args.what == "figure5" else FIGURE5_FLAGS
    for flag in sorted(typed_flags(argv) & without_use):
        parser.error(f"--{flag} has no use with {args.what}; leave it out")
    vars(args).update(dict.fromkeys(without_use))
    if args.what == "table2":
        args.rows = args.rows or ROOT / "configs" / "paper" / "table2.yaml"
    args.out_dir = args.out_dir or Path("runs") / "paper" / args.what
    check_paths(parser, args, FIGURE5_NEEDED if args.what == "figure5" else ())
    return args


def build_parser() -> Parser:
    """Flags of the paper's tables and figures."""
    lines = "\n".join(f"  {name:8} {what}" for name, what in SHOWN.items())
    parser = Parser(prog="paper.py", usage="python -m ldm.paper WHAT [--preset NAME] [--devices LIST] [--out_dir DIR]",
                    description=f"Train what is missing, draw, score and print; the tables in --out_dir have the published values "
                                f"beside:\n\n{lines}\n\n"
                                "The same command again goes on where it stopped.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", metavar="WHAT", nargs="?", choices=SHOWN, help=f"one of {', '.join(SHOWN)}")
    add_preset_argument(parser)
    add_devices_argument(parser)
    parser.add_argument("--rows", metavar="FILE", type=Path, help="rows of table2, YAML (default: configs/paper/table2.yaml)")
    add_figure5_arguments(parser)
    parser.add_argument("--out_dir", metavar="DIR", type=Path,
                        help="folder of trainings, pictures and tables (default: runs/paper/WHAT)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="keep what is already there; without, its trainings and pictures are deleted first")
    return parser
