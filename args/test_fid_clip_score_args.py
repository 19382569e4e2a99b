"""Command line of test_fid_clip_score.py."""

import argparse
from pathlib import Path

from args.common import (
    Parser,
    add_devices_argument,
    add_face_arguments,
    add_model_arguments,
    add_preset_argument,
    add_prompt_template_argument,
    check_devices,
    check_paths,
    check_prompt_template,
    number,
    parse_with_preset,
    take_one_device,
)

PROTOCOLS = ("clean", "tf", "torchmetrics", "clip")


def parse_test_fid_clip_score_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags of test_fid_clip_score.py; an invalid value exits with a sentence and status 2.

    `half` becomes a list, and flags of files that are not needed are None.
    """
    parser = build_parser()
    args = parse_with_preset(parser, argv)
    check_devices(parser, args)
    check_prompt_template(parser, args)
    args.half = ["non_id", "id"] if args.half == "both" else [args.half]
    if args.images:
        args.half = args.half[:1]
        take_one_device(args)
    generated, prompts, faces = args.images is None, "non_id" in args.half, "id" in args.half
    features = args.attribute_features if faces else "none"
    needed = {"config_path": generated, "ckpt_path": generated, "embedding": generated and args.anonymize,
              "benchmark": generated and prompts,
              "people": faces, "face_pack": faces or (prompts and args.count_faces), "gallery": faces, "farl_weights": features == "farl",
              "inception_weights": args.fid_protocol != "clip", "clip": "clip" in (args.fid_protocol, features)}
    optional = {"clip"} if prompts else set()
    vars(args).update({flag: None for flag, is_needed in needed.items() if not is_needed and flag not in optional})
    check_paths(parser, args, tuple(flag for flag, is_needed in needed.items() if is_needed))
    return args


def build_parser() -> Parser:
    """Flags of test_fid_clip_score.py, with the paper's values as defaults."""
    parser = Parser(prog="test_fid_clip_score.py", description="FID, KID, CLIP score, ID-ACC and Attr-ACC with and without a "
                                                               "prefix: both halves of the paper's Table 2.")
    add_preset_argument(parser)
    add_model_arguments(parser)
    add_devices_argument(parser)

    group = parser.add_argument_group("generation")
    group.add_argument("--half", choices=("both", "id", "non_id"), default="both",
                       help="prompts that name people (id), prompts of the benchmark (non_id), or both")
    group.add_argument("--embedding", metavar="FILE", type=Path, nargs="+",
                       help="files of prefixes, context maps or edited weights; one row each in each half")
    group.add_argument("--anonymize", action=argparse.BooleanOptionalAction, default=True,
                       help="use the prefixes; --no-anonymize measures only the base model")
    group.add_argument("--benchmark", metavar="FILE", type=Path, nargs="+",
                       help="prompts of the half non_id: .txt (one per line), COCO captions .json, .jsonl or .csv; several are interleaved")
    group.add_argument("--n_prompts", metavar="N", type=number(int, 2), default=30_000, help="number of prompts of the benchmark")
    add_prompt_template_argument(group, help="prompt of the half id, with {name}")
    group.add_argument("--group", choices=("train", "test", "all"), default="test", help="people of S_ID, of S_test, or both")
    group.add_argument("--n_names", metavar="N", type=number(int, 1), help="number of names per group (default: all)")
    group.add_argument("--n_samples", metavar="N", type=number(int, 1), default=40, help="images per name")
    group.add_argument("--ddim_steps", metavar="N", type=number(int, 1, 1000), default=20, help="DDIM steps")
    group.add_argument("--scale", metavar="FLOAT", type=number(float, 0), default=7.5, help="guidance scale")
    group.add_argument("--seed", metavar="N", type=number(int, 0, 2**63 - 1), default=0, help="seed of the images' noise")
    group.add_argument("--batch_size", metavar="B", type=number(int, 1, 64), default=16,
                       help="images per batch on each device; 64 are scored together")
    group.add_argument("--images", metavar="DIR", type=Path, nargs=2,
                       help="score the second folder against the first instead; with --half id, folders of DIR/<name>/*.png")

    group = parser.add_argument_group("scoring")
    group.add_argument("--fid_protocol", choices=PROTOCOLS, default="clean",
                       help="clean: antialiased bicubic resize as clean-fid; tf: bilinear as the original; torchmetrics: antialiased "
                            "bilinear; clip: features of --clip instead of Inception's")
    group.add_argument("--inception_weights", metavar="FILE", type=Path,
                       help="original Inception of 2015-12-05: the .pth of pytorch-fid or torch-fidelity, or clean-fid's .pt")
    group.add_argument("--clip", metavar="FILE", type=Path, help="open_clip weights; the CLIP score needs them")
    group.add_argument("--clip_model", metavar="NAME",
                       help="open_clip model of --clip, such as ViT-L-14 or ViT-B-32, for OpenAI's weights with -quickgelu "
                            "(default: the .json next to --clip, or else ViT-g-14)")
    group.add_argument("--apl_compat", action="store_true",
                       help="CLIP score with the released code's preprocessing: nearest neighbour, no normalization")
    group.add_argument("--count_faces", action="store_true", help="also report the share of images of the half non_id with a detected face")
    group.add_argument("--attribute_features", choices=("farl", "clip", "none"), default="farl",
                       help="features of Attr-ACC: FaRL on the aligned face, or --clip on the whole image")
    group.add_argument("--farl_weights", metavar="FILE", type=Path, help="FaRL, FaRL-Base-Patch16-LAIONFace20M-ep16.pth")
    add_face_arguments(group)

    group = parser.add_argument_group("output")
    group.add_argument("--out_dir", metavar="DIR", type=Path, default=Path("runs/test_fid_clip_score"),
                       help="folder of images, scores, tables and sheets of pairs")
    group.add_argument("--keep_images", metavar="N", type=number(int, 1),
                       help="number of images to keep per half and prefix; others are deleted once scored (default: all)")
    group.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                       help="keep existing images and scores of the same settings")
    return parser
