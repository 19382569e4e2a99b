"""Command line of python -m ldm.benchmark."""

import argparse
from pathlib import Path

from args import common
from args.common import COUNT, SEED, Parser
from args.paths import check_paths

PARTS = ("machine", "step", "memory", "sampling", "growth", "devices")
KINDS = ("identity", "regularising", "apl-released")


def parse_benchmark_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags; an invalid value exits with a sentence and status 2. No checkpoint is needed, since the weights are random."""
    parser = build_parser()
    args = common.parse_with_preset(parser, argv)
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
    common.add_preset_argument(parser)
    parser.add_argument("--config_path", metavar="FILE", type=Path, help="model config, target:/params: schema; weights are random")
    common.add_devices_argument(parser)

    add = parser.add_argument_group("measurements").add_argument
    add("--against", choices=("released",), default="released", help="code that the naive step reimplements, see ldm/benchmark/naive.py")
    add("--parts", metavar="PART", nargs="+", choices=PARTS, default=list(PARTS), help=f"parts, of {', '.join(PARTS)}")
    add("--kinds", metavar="KIND", nargs="+", choices=KINDS, default=list(KINDS), help=f"kinds of steps, of {', '.join(KINDS)}")
    add("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"],
        help="precisions of our frozen model, one row each; bf16 is skipped if the device does not support it")
    add("--compile", action="store_true", help="also our step with compiled blocks, which takes minutes to compile")

    add = parser.add_argument_group("method").add_argument
    add("--threads", metavar="N", type=COUNT, default=1, help="CPU threads; with 1, time on a CPU is processor time, else wall time")
    add("--repeats", metavar="N", type=COUNT, default=5, help="pairs of runs, after one warm-up pair")
    add("--seed", metavar="N", type=SEED, default=0, help="seed of weights, images and noise")
    add("--out_dir", metavar="DIR", type=Path, default=Path("runs/benchmark"), help="folder of results, plot.png and arguments.json")
    return parser
