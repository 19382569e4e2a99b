"""Flags of python -m ldm.paper figure5, and how its portraits are drawn and recognised."""

import argparse
from pathlib import Path

from args.common import Parser, check_paths, number, parse_with_preset
from args.test_id_args import build_parser

FIGURE5_FLAGS = {"photos", "embedding", "n_people", "n_photos", "n_samples", "keep_checkpoints"}
OF_KNOWN_PEOPLE = ("people", "gallery", "embedding", "clip", "drift_prompts")  # flags of test_id.py without a use here


def add_figure5_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of figure5 beside those of all tables and figures."""
    group = parser.add_argument_group("figure5", "identities that are learned later, paper section 4.4")
    group.add_argument("--photos", metavar="DIR", type=Path, help="a folder of photos for each person, as VGGFace2 has them")
    group.add_argument("--embedding", metavar="FILE", type=Path,
                       help="prefix file that is attacked (default: Table 1's, of each seed its own)")
    group.add_argument("--n_people", metavar="N", type=number(int, 1), help="the first people of --photos (default: the paper's 50)")
    group.add_argument("--n_photos", metavar="N", type=number(int, 1),
                       help="photos of each person to learn from, the others are the true face (default: 5)")
    group.add_argument("--n_samples", metavar="N", type=number(int, 1), help="images a checkpoint and prefix (default: 4)")
    group.add_argument("--keep_checkpoints", action="store_true",
                       help="keep each attack's checkpoints, of DreamBooth whole U-Nets, when their pictures are there")


def portrait_arguments(preset: str) -> argparse.Namespace:
    """The preset's flags of test_id.py: Figure 5 draws and recognises as Table 1 does."""
    parser: Parser = build_parser()
    args = parse_with_preset(parser, ["--preset", preset])
    vars(args).update(dict.fromkeys(OF_KNOWN_PEOPLE))
    check_paths(parser, args, ("config_path", "ckpt_path", "face_pack"))
    return args
