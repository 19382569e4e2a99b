"""Command line of python -m ldm.benchmark."""

import argparse
from pathlib import Path

from args.common import Parser, add_devices_argument, add_preset_argument, check_devices, check_paths, number, parse_with_preset

PARTS = ("machine", "step", "memory", "sampling", "growth", "devices")
KINDS = ("identity", "regularising", "apl-released")


def parse_benchmark_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags; an invalid value exits with a sentence and status 2. No checkpoint is needed, since the weights are random."""
    parser = build_parser()
    args = parse_with_preset(parser, argv)
    check_devices(parser, args)
    if args.num_nodes != 1:
        parser.error(f"--num_nodes {args.num_nodes} has no use here, since one machine is measured; leave it out")
    args.parts, args.kinds = list(dict.fromkeys(args.parts)), list(dict.fromkeys(args.kinds))
    if args.devices.startswith("cpu:"):
        parser.error(f"--devices {args.devices} names processes, which the part 'devices' starts by itself; give cpu")
    check_paths(parser, args, ("config_path",))
    return args


def build_parser() -> Parser:
    """Flags of the benchmark."""
    parser = Parser(prog="benchmark.py", usage="python -m ldm.benchmark [--preset NAME] [--parts ...] [--repeats N] ...",
                    description="Compare our training step to the released loop's, and our sampling to diffusers', in paired runs.")
    add_preset_argument(parser)
    parser.add_argument("--config_path", metavar="FILE", type=Path, help="model config, target:/params: schema; weights are random")
    add_devices_argument(parser)

    group = parser.add_argument_group("measurements")
    group.add_argument("--against", choices=("released",), default="released",
                       help="code that the naive step reimplements, see ldm/benchmark/naive.py")
    group.add_argument("--parts", metavar="PART", nargs="+", choices=PARTS, default=list(PARTS), help=f"parts, of {', '.join(PARTS)}")
    group.add_argument("--kinds", metavar="KIND", nargs="+", choices=KINDS, default=list(KINDS),
                       help=f"kinds of steps, of {', '.join(KINDS)}")
    group.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"],
                       help="precisions of our frozen model, one row each; bf16 is skipped if the device does not support it")

    group.add_argument("--compile", action="store_true", help="also our step with compiled blocks, which takes minutes to compile")

    group = parser.add_argument_group("method")
    group.add_argument("--threads", metavar="N", type=number(int, 1), default=1,
                       help="CPU threads; with 1, time on a CPU is processor time, else wall time")
    group.add_argument("--repeats", metavar="N", type=number(int, 1), default=5, help="pairs of runs, after one warm-up pair")
    group.add_argument("--seed", metavar="N", type=number(int, 0, 2**63 - 1), default=0, help="seed of weights, images and noise")
    group.add_argument("--out_dir", metavar="DIR", type=Path, default=Path("runs/benchmark"),
                       help="folder of results.json, .csv, .md, plot.png and arguments.json")
    return parser
