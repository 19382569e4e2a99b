"""Command line of test_fid_clip_score.py."""

import argparse
from pathlib import Path

from args import common
from args.common import COUNT, SWITCH, Parser, number
from args.paths import check_paths


def parse_test_fid_clip_score_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags; an invalid value exits with status 2. `half` becomes a list, and flags of files that are not needed are None."""
    parser = build_parser()
    args = common.parse_with_preset(parser, argv)
    args.half = ["non_id", "id"] if args.half == "both" else [args.half]
    if args.images:
        args.half = args.half[:1]
        common.take_one_device(args)
    generated, prompts, faces = args.images is None, "non_id" in args.half, "id" in args.half
    features = args.attribute_features if faces else "none"
    needed = {"config_path": generated, "ckpt_path": generated, "embedding": generated and args.anonymize,
              "benchmark": generated and prompts, "people": faces, "face_pack": faces or (prompts and args.count_faces), "gallery": faces,
              "farl_weights": features == "farl", "inception_weights": args.fid_protocol != "clip",
              "clip": "clip" in (args.fid_protocol, features)}
    optional = {"clip"} if prompts else set()
    vars(args).update({flag: None for flag, is_needed in needed.items() if not is_needed and flag not in optional})
    check_paths(parser, args, tuple(flag for flag, is_needed in needed.items() if is_needed))
    return args


def build_parser() -> Parser:
    """Flags of test_fid_clip_score.py, with the paper's values as defaults."""
    parser = Parser(prog="test_fid_clip_score.py", description="FID, KID, CLIP score, ID-ACC and Attr-ACC with and without a "
                                                               "prefix: both halves of the paper's Table 2.")
    common.add_preset_argument(parser)
    common.add_model_arguments(parser)

    add = parser.add_argument_group("generation").add_argument
    add("--half", choices=("both", "id", "non_id"), default="both",
        help="prompts with names (id), prompts of the benchmark (non_id), or both")
    add("--embedding", metavar="FILE", type=Path, nargs="+",
        help="files of prefixes, context maps or edited weights; one row each per half")
    add("--anonymize", action=SWITCH, default=True, help="use the prefixes; --no-anonymize measures only the base model")
    add("--benchmark", metavar="FILE", type=Path, nargs="+",
        help="prompts of the half non_id: .txt (one per line), COCO captions .json, .jsonl or .csv; several are interleaved")
    add("--n_prompts", metavar="N", type=number(int, 2), default=30_000, help="number of prompts of the benchmark")
    common.add_prompt_template_argument(add, help="prompt of the half id, with {name}")
    common.add_sampling_arguments(add, people="test", n_samples=40, scale=7.5)
    add("--n_names", metavar="N", type=COUNT, help="number of names per group (default: all)")
    add("--batch_size", metavar="B", type=number(int, 1, 64), default=16, help="images per batch on each device; 64 are scored together")
    add("--images", metavar="DIR", type=Path, nargs=2,
        help="score the second folder against the first instead; --half id: DIR/<name>/*.png")

    add = parser.add_argument_group("scoring").add_argument
    add("--fid_protocol", choices=("clean", "tf", "torchmetrics", "clip"), default="clean",
        help="clean: antialiased bicubic resize as clean-fid; tf: bilinear as the original; torchmetrics: antialiased bilinear; clip: "
             "features of --clip instead of Inception's")
    add("--inception_weights", metavar="FILE", type=Path,
        help="Inception of 2015-12-05: .pth of pytorch-fid or torch-fidelity, or clean-fid's .pt")
    add("--clip", metavar="FILE", type=Path, help="open_clip weights; the CLIP score needs them")
    add("--clip_model", metavar="NAME",
        help="open_clip model of --clip, such as ViT-L-14 or ViT-B-32, for OpenAI's weights with -quickgelu (default: the .json next to "
             "--clip, or else ViT-g-14)")
    add("--apl_compat", action="store_true", help="CLIP score with the released code's preprocessing: nearest neighbour, no normalization")
    add("--count_faces", action="store_true", help="also report the share of images of the half non_id with a detected face")
    add("--attribute_features", choices=("farl", "clip", "none"), default="farl",
        help="features of Attr-ACC: FaRL on the aligned face, or --clip on the whole image")
    add("--farl_weights", metavar="FILE", type=Path, help="FaRL, FaRL-Base-Patch16-LAIONFace20M-ep16.pth")
    common.add_face_arguments(add)

    add = parser.add_argument_group("output").add_argument
    add("--out_dir", metavar="DIR", type=Path, default=Path("runs/test_fid_clip_score"), help="folder of images, scores and tables")
    add("--keep_images", metavar="N", type=COUNT, help="images to keep per half and prefix; others are deleted once scored (default: all)")
    common.add_resume_argument(add, "keep existing images and scores of the same settings")
    return parser
