"""Command line of dataset_generation.py: one set of flags for each of its four subcommands."""

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

from args.common import (
    Parser,
    add_devices_argument,
    add_face_pack_arguments,
    add_model_arguments,
    add_preset_argument,
    check_devices,
    check_paths,
    number,
    parse_with_preset,
    take_one_device,
)

COMMANDS = {
    "attributes": "S_ID's c2: a sentence of attributes for every name, from any assistant",
    "faces": "S_ID's pictures: every name, drawn by the frozen model",
    "gallery": "the true face of everybody, from photos in folders of names",
    "captions": "S_Reg: pictures with captions, from any public layout, filtered",
}
NEEDED = {"attributes": ("names",), "faces": ("config_path", "ckpt_path", "people", "templates"), "gallery": ("photos", "face_pack"),
          "captions": ("images",)}
NEGATIVE_PROMPT = ("painting, drawing, cartoon, 3d render, blurry, out of focus, low quality, cropped, out of frame, deformed face, "
                   "bad anatomy, several people, text, watermark, signature")


def parse_dataset_generation_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, `command` among them; a wrong value ends with a sentence and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    lines = "\n".join(f"  {name:11} {what}" for name, what in COMMANDS.items())
    chooser = Parser(prog="dataset_generation.py", usage="dataset_generation.py COMMAND [--preset NAME] [flags]",
                     description=f"Make the datasets of the paper's section 4.1:\n\n{lines}\n\nCOMMAND --help shows its flags.")
    chooser.formatter_class = argparse.RawDescriptionHelpFormatter
    chooser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    command = chooser.parse_args(argv[:1]).command
    parser = build_parser(command)
    args = parse_with_preset(parser, argv[1:])
    args.command = command
    if command == "faces" and not args.one_face:
        args.face_pack = None
    check_paths(parser, args, NEEDED[command] + (("face_pack",) if command == "faces" and args.one_face else ()))
    if command in ("faces", "gallery"):
        check_devices(parser, args)
    if command == "gallery":
        take_one_device(args)
    if command == "attributes" and args.base_url:
        _check_endpoint(parser, args)
    if command == "captions" and args.out_dir.resolve().is_relative_to(args.images.resolve()):
        parser.error(f"--out_dir {args.out_dir} lies in --images {args.images} and would be read again; give another folder")
    return args


def build_parser(command: str | None = None) -> Parser:
    """Flags of one subcommand; without one, of all together, for the keys of presets."""
    prog = " ".join(["dataset_generation.py", *([command] if command else [])])
    parser = Parser(prog=prog, description=COMMANDS.get(command or ""), conflict_handler="resolve")
    add_preset_argument(parser)
    for name, add in (("attributes", _add_attributes), ("faces", _add_faces), ("gallery", _add_gallery), ("captions", _add_captions)):
        if command in (None, name):
            add(parser)
            parser.add_argument("--out_dir", metavar="DIR", type=Path, default=Path("runs") / name,
                                help="folder of everything that is written")
    return parser


def _add_attributes(parser: Parser) -> None:
    parser.add_argument("--names", metavar="FILE", type=Path, help="names, one a line")
    parser.add_argument("--group", choices=("train", "test"), default="train", help="of new names: S_ID (train) or S_test")
    parser.add_argument("--answers", metavar="FILE", type=Path, nargs="+", help="answers of an assistant, as text")
    parser.add_argument("--names_per_request", metavar="N", type=number(int, 1, 200), default=20, help="names in one request")
    group = parser.add_argument_group("endpoint", "asked instead of printing the requests")
    group.add_argument("--base_url", metavar="URL", help="of an OpenAI-compatible server, such as http://localhost:8000/v1")
    group.add_argument("--model", metavar="NAME", help="the assistant's name on that server")
    group.add_argument("--api_key_env", metavar="NAME", default="OPENAI_API_KEY",
                       help="environment variable that holds the key, if one is needed")
    group.add_argument("--seed", metavar="N", type=number(int, 0, 2**31 - 1), default=0, help="sent along")


def _add_faces(parser: Parser) -> None:
    add_model_arguments(parser)
    add_devices_argument(parser)
    group = parser.add_argument_group("what is drawn")
    group.add_argument("--people", metavar="CSV", type=Path, help="people: name, group (train|test), attributes")
    group.add_argument("--group", choices=("train", "test", "all"), default="train", help="people of S_ID, of S_test, or both")
    group.add_argument("--n_names", metavar="N", type=number(int, 1), help="the first names (default: all)")
    group.add_argument("--n_samples", metavar="N", type=number(int, 1), default=100, help="images a name")
    group.add_argument("--templates", metavar="FILE", type=Path, help="prompt templates, one a line; each image takes one")
    group.add_argument("--negative_prompt", metavar="TEXT", default=NEGATIVE_PROMPT, help="what guidance leads away from")
    group.add_argument("--ddim_steps", metavar="N", type=number(int, 1, 1000), default=20, help="DDIM steps")
    group.add_argument("--scale", metavar="FLOAT", type=number(float, 0), default=7.0, help="guidance scale")
    group.add_argument("--seed", metavar="N", type=number(int, 0, 2**63 - 1), default=0, help="of the images' noise and templates")
    group.add_argument("--batch_size", metavar="B", type=number(int, 1), default=4, help="images at once, on each device")
    group = parser.add_argument_group("what is kept")
    group.add_argument("--one_face", action=argparse.BooleanOptionalAction, default=True,
                       help="draw again what does not show exactly one face")
    group.add_argument("--max_redraws", metavar="N", type=number(int, 0, 1000), default=10, help="attempts after the first, an image")
    add_face_pack_arguments(group)
    _add_resume(parser)


def _add_gallery(parser: Parser) -> None:
    parser.add_argument("--photos", metavar="DIR", type=Path, help="a folder of photos for each person, or what 'faces' has drawn")
    parser.add_argument("--people", metavar="CSV", type=Path, help="people whom the gallery should have, under these names")
    parser.add_argument("--identity_meta", metavar="CSV", type=Path, help="VGGFace2's identity_meta.csv: names of its folders")
    parser.add_argument("--max_photos", metavar="N", type=number(int, 1), help="the first photos of each person (default: all)")
    parser.add_argument("--onto", metavar="NPZ", type=Path, help="a gallery whose people are kept beside those of --photos")
    parser.add_argument("--keep_doubtful", action=argparse.BooleanOptionalAction, default=False,
                        help="average photos with several faces, and faces unlike the person's others, too")
    add_devices_argument(parser)
    add_face_pack_arguments(parser)


def _add_captions(parser: Parser) -> None:
    parser.add_argument("--images", metavar="DIR", type=Path,
                        help="pictures with .txt, .json or metadata.jsonl/.csv beside them, .tar shards, or parquet tables")
    parser.add_argument("--captions", metavar="FILE", type=Path,
                        help="COCO's captions .json, or a text file with a line for each numbered picture (default: beside the pictures)")
    group = parser.add_argument_group("filters")
    group.add_argument("--people", metavar="CSV", type=Path, help="people: captions that name one of them are left out")
    group.add_argument("--min_size", metavar="PIXELS", type=number(int, 1), default=256, help="of the shorter side")
    group.add_argument("--max_images", metavar="N", type=number(int, 1), help="stop at so many (default: all)")
    _add_resume(parser)


def _add_resume(parser: Parser) -> None:
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="keep images of the same settings that are already there")


def _check_endpoint(parser: Parser, args: argparse.Namespace) -> None:
    try:
        url = urlsplit(args.base_url)
    except ValueError:  # a bracket of an IPv6 address is missing
        url = urlsplit("")
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
        parser.error("--base_url is no plain http or https address; give one such as http://localhost:8000/v1, and the key in the "
                     "environment")
    if not args.model:
        parser.error("--model is missing; give the assistant's name on that server")
