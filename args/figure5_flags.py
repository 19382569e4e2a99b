"""Flags of python -m ldm.paper figure5, and the settings of its portraits and of face recognition."""

import argparse
from pathlib import Path

from args.common import Parser, check_paths, number, parse_with_preset
from args.test_id_args import build_parser

FIGURE5_FLAGS = {"photos", "embedding", "n_people", "n_photos", "n_samples", "keep_checkpoints"}
OF_KNOWN_PEOPLE = ("people", "gallery", "embedding", "clip", "drift_prompts")  # flags of test_id.py without a use here


def add_figure5_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of figure5 to those of all tables and figures."""
    group = parser.add_argument_group("figure5", "attacks that teach the model new people, paper section 4.4")
    group.add_argument("--photos", metavar="DIR", type=Path, help="folder with one sub-folder of photos per person, as in VGGFace2")
    group.add_argument("--embedding", metavar="FILE", type=Path,
                       help="prefix file to attack (default: Table 1's prefix of each seed)")
    group.add_argument("--n_people", metavar="N", type=number(int, 1),
                       help="number of people of --photos, from the first (default: the paper's 50)")
    group.add_argument("--n_photos", metavar="N", type=number(int, 1),
                       help="training photos per person; the others define the reference face (default: 5)")
    group.add_argument("--n_samples", metavar="N", type=number(int, 1), help="images per checkpoint and prefix (default: 4)")
    group.add_argument("--keep_checkpoints", action="store_true",
                       help="keep each attack's checkpoints (whole U-Nets for DreamBooth) after their images are generated")


def portrait_arguments(preset: str) -> argparse.Namespace:
    """The preset's flags of test_id.py: Figure 5 generates and scores images with Table 1's settings."""
    parser: Parser = build_parser()
    args = parse_with_preset(parser, ["--preset", preset])
    vars(args).update(dict.fromkeys(OF_KNOWN_PEOPLE))
    check_paths(parser, args, ("config_path", "ckpt_path", "face_pack"))
    return args
