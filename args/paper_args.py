"""Command line of python -m ldm.paper."""

import argparse
from pathlib import Path

from args import common, test_id_args
from args.common import COUNT, IMAGES, Parser, number, typed_flags
from args.paths import ROOT, check_paths, found

CONFIGS = ROOT / "configs" / "paper"
TABLES = {"table1": "the prefix on other models, metrics", "figure1": "effect of the prefix, images",
          "figure3": "the prefix on other models, images", "table3": "by prompt length m", "table4": "by alpha",
          "figure6": "over the training", "figure7": "without L_Reg", "figure8": "by the number of identities",
          "table2": "competing methods, metrics", "figure4": "competing methods, images",
          "figure5": "attacks that teach the model new people"}  # in the order in which they are made
OWN = {"attacks": "attacks on the prefix, which the paper does not have",  # not in "all"
       "robust": "a prefix trained against uploaded embeddings, not in the paper",
       "robust_grid": "vectors of the attack by vectors of the prefix, not in the paper",
       "celebrity100": "names to erase and names to keep, not in the paper"}  # made only by name, for it needs further inputs
CLAIMED = (*TABLES, "robust", "robust_grid")  # something is claimed about them
FIGURE5_FLAGS = {"photos", "embedding", "n_people", "n_photos", "n_samples", "keep_checkpoints"}
OTHERS = {"all": "all of them, the claims and the report", "list": "list of tables and figures with their progress",
          "report": "one page of all finished results, report.html and report.md"}


def parse_paper_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags; an invalid value exits with a sentence and status 2.

    `what` becomes a list of tables and figures, by name or as YAML files; `task` is "make", "list" or "report"; `whole` is whether "all"
    was given; `out_dir` is filled in.
    """
    parser = build_parser()
    args = common.parse_with_preset(parser, argv)
    if not args.what:
        parser.error(f"WHAT is missing; give some of {', '.join([*TABLES, *OWN, *OTHERS])}, as in python -m ldm.paper table1")
    if args.num_nodes != 1:
        parser.error(f"--num_nodes {args.num_nodes} has no use here; start the same command on each machine, with a shared --out_dir")
    alone = [word for word in args.what if word in OTHERS]
    if alone and len(args.what) > 1:
        parser.error(f"'{alone[0]}' cannot be combined; leave out {' '.join(word for word in args.what if word != alone[0])}")
    args.whole = alone == ["all"]
    args.task = alone[0] if alone and not args.whole else "make"
    asked = [str(found(word)) if word.endswith(common.YAML) else word for word in args.what]
    everything = [*TABLES, *(["attacks", "robust", "robust_grid"] if alone == ["list"] else [])]
    args.what = everything if alone else list(dict.fromkeys(asked))
    known = TABLES | OWN
    for word in args.what:
        if word not in known and not (word.endswith(common.YAML) and Path(word).is_file()):
            parser.error(f"there is no '{word}'; give some of {', '.join([*TABLES, *OWN, *OTHERS])}, or a YAML file such as "
                         "configs/paper/table3.yaml")
        names = [Path(one).stem for one in args.what if one != word]
        taken = word not in known and Path(word).stem in known and Path(word).resolve().parent != CONFIGS
        if Path(word).stem in names or taken:
            parser.error(f"{word} would overwrite another {Path(word).stem} in the same folder; rename the file")
        if Path(word).stem in ("training", "targets", "pictures", "adversary", "celebrities"):
            parser.error(f"{word} would use the folder of the {Path(word).stem} of all tables; rename the file")
    if "figure5" not in args.what:
        useless = FIGURE5_FLAGS - ({"embedding"} if "attacks" in args.what else set())
        for flag in sorted(typed_flags(argv) & useless):
            parser.error(f"--{flag} has no use without figure5; leave it out")
        vars(args).update(dict.fromkeys(useless))
    for flag in ("publish", "readme"):
        if getattr(args, flag) and not (args.whole or args.task == "report"):
            parser.error(f"--{flag} has no use without a report; leave it out, or give 'report' or 'all' in place of {' '.join(args.what)}")
    args.out_dir = args.out_dir or Path("runs") / "paper" / Path(args.preset).stem
    check_paths(parser, args, ("photos",) if "figure5" in args.what and args.task != "report" else ())
    if args.task == "report" and not args.out_dir.is_dir():
        parser.error(f"--out_dir {args.out_dir} is not there; give a folder with finished results")
    return args


def build_parser() -> Parser:
    """Flags of the paper's tables and figures."""
    lines = "\n".join(f"  {name:8} {what}" for name, what in (TABLES | OWN | OTHERS).items())
    parser = Parser(prog="paper.py", usage="python -m ldm.paper WHAT [WHAT ...] [--preset NAME] [--seeds N] [--devices LIST] [flags]",
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Reproduce the tables and figures of the paper: train what is missing, generate images, score them, and "
                                f"print published next to measured values.\n\n{lines}\n\n"
                                "The same command resumes an interrupted run; several machines can share one --out_dir.")
    parser.add_argument("what", metavar="WHAT", nargs="*", help="see above, or a YAML file like those of configs/paper")
    common.add_preset_argument(parser)
    parser.add_argument("--seeds", metavar="N", type=number(int, 1, 100), default=3, help="trainings per row, seeds 0 to N-1 (default: 3)")
    common.add_devices_argument(parser)
    parser.add_argument("--out_dir", metavar="DIR", type=Path, help="folder of trainings, tables and report (default: runs/paper/PRESET)")
    add = parser.add_argument_group("report").add_argument
    add("--publish", metavar="DIR", type=Path, help="folder for a copy of the report")
    add("--readme", metavar="FILE", type=Path, help="file into which the results are also written, between its two marks")
    add = parser.add_argument_group("figure5", "attacks that teach the model new people, paper section 4.4").add_argument
    add("--photos", metavar="DIR", type=Path, help="folder with one sub-folder of photos per person, as in VGGFace2")
    add("--embedding", metavar="FILE", type=Path,
        help="prefix file to attack, also by attacks (default: Table 1's prefix of each seed; of attacks see configs/paper/attacks.yaml)")
    add("--n_people", metavar="N", type=COUNT, help="number of people of --photos, from the first (default: the paper's 50)")
    add("--n_photos", metavar="N", type=COUNT, help="training photos per person; the others define the reference face (default: 5)")
    add("--n_samples", metavar="N", type=IMAGES, help="images per checkpoint and prefix (default: 4)")
    add("--keep_checkpoints", action="store_true",
        help="keep each attack's checkpoints (whole U-Nets for DreamBooth) when they are no longer needed")
    return parser


def portrait_arguments(preset: str) -> argparse.Namespace:
    """The preset's flags of test_id.py: Figure 5 generates and scores images with Table 1's settings."""
    parser = test_id_args.build_parser()
    args = common.parse_with_preset(parser, ["--preset", preset])
    vars(args).update(dict.fromkeys(("people", "gallery", "embedding", "clip", "drift_prompts")))  # of known people: without use here
    check_paths(parser, args, ("config_path", "ckpt_path", "face_pack"))
    return args
