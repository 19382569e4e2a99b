"""Command line of python -m ldm.page."""

import argparse
from pathlib import Path

from args import common
from args.common import COUNT, Parser, number, typed_flags
from args.paths import MODEL_FILES, check_paths
from args.test_id_args import models_asked_for


def parse_page_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, with the files of each model by flag in `models`; an invalid value exits with status 2."""
    parser = build_parser()
    args = common.parse_with_preset(parser, argv)
    common.take_one_device(args)
    check_paths(parser, args, ("embedding", "face_pack", "gallery", *(() if args.models else ("config_path", "ckpt_path"))))
    args.models = (models_asked_for(parser, args, typed_flags(argv)) if args.models else
                   [{flag: getattr(args, flag) for flag in MODEL_FILES}])
    args.ddim_steps = min(args.ddim_steps, args.max_steps)
    return args


def build_parser() -> Parser:
    """Flags of the page; a preset's values for test_id.py are also the page's."""
    parser = Parser(prog="page.py", usage="python -m ldm.page --preset PRESET [options]",
                    description="Serve a web page that compares images of prompts without and with prefixes, from the same noise.")
    parser.section, parser.sections = "test_id", {"test_id": ()}
    common.add_preset_argument(parser)
    common.add_model_arguments(parser)

    add = parser.add_argument_group("choices on the page").add_argument
    add("--embedding", metavar="FILE", type=Path, nargs="+", help="files of prefixes or context maps")
    add("--models", metavar="MODEL", nargs="+", help="models: presets, or checkpoints of --config_path; one is in memory at a time")
    add("--ddim_steps", metavar="N", type=common.DDIM_STEPS, default=20, help="initial number of DDIM steps")
    add("--scale", metavar="FLOAT", type=number(float, 0, 20), default=7.0, help="initial guidance scale")
    add("--seed", metavar="N", type=number(int, 0, 2**53 - 1), default=0, help="initial seed of the images' noise")

    add = parser.add_argument_group("faces").add_argument
    add("--gallery", metavar="NPZ", type=Path, help="ArcFace embedding (512,) per name")
    common.add_face_pack_arguments(add)

    add = parser.add_argument_group("limits of one request").add_argument
    add("--max_images", metavar="N", type=number(int, 2), default=24, help="images, including those without a prefix")
    add("--max_length", metavar="N", type=COUNT, default=300, help="characters per prompt")
    add("--max_steps", metavar="N", type=common.DDIM_STEPS, default=50, help="DDIM steps")

    add = parser.add_argument_group("server").add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves every machine of the network, without a password")
    add("--port", metavar="N", type=number(int, 1, 65535), default=7860, help="port to listen on")
    return parser
