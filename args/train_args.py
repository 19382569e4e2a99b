"""Command line of train.py."""

import argparse
import re
from pathlib import Path
from typing import Any

from args.common import (
    PORTRAIT,
    Input,
    Parser,
    add_attribute_arguments,
    add_devices_argument,
    add_face_arguments,
    add_model_arguments,
    add_preset_argument,
    check_devices,
    check_paths,
    inputs_of,
    number,
    parse_with_preset,
    typed_flags,
)
from args.paths import found
from args.train_methods import (
    APL,
    MAP,
    METHODS,
    PREFIX,
    PUBLISHED,
    READ_BY,
    add_attack_arguments,
    add_eraser_arguments,
    check_others,
    method_asked_for,
    needed_by,
)

INITIALIZATIONS = ("uniform01", "vocab")
LONGEST_PREFIX = 60  # of CLIP's 77 tokens; the remaining ones are for the prompt, see ldm/modules/embedding_manager.py
NEEDED = ("config_path", "ckpt_path")
ONLY_FOR_THE_TABLE = ("face_pack", "gallery", "clip")


def parse_train_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags of train.py; an invalid value exits with a sentence and status 2.

    `out_dir` and `embeddings_dir` are filled in. With --eval_names 0, flags that only the final table reads are None. With --dry_run,
    files may be missing; see `train_inputs`.
    """
    parser = build_parser(method_asked_for(argv))
    args = parse_with_preset(parser, argv)
    if args.train_method != method_asked_for(argv):  # a preset's
        parser = build_parser(args.train_method)
        args = parse_with_preset(parser, argv)
    method, typed = args.train_method, typed_flags(argv)
    for flag in sorted(typed & {flag for flag, methods in READ_BY.items() if method not in methods}):
        parser.error(f"--{flag} has no use with --train_method {method}; leave it out")
    vars(args).update({flag: None for flag, methods in READ_BY.items() if method not in methods})
    args.prompt = args.prompt or ("apl" if method in PREFIX else method)
    if not re.fullmatch(r"[\w+=-][\w.+= -]*", args.prompt):
        parser.error(f"--prompt '{args.prompt}' is part of file names; give letters, digits, '-', '_' or '.'")
    if method in APL:
        check_apl(parser, args)
    else:
        check_others(parser, args, typed)
    check_devices(parser, args)
    args.embeddings_dir = args.embeddings_dir or (args.out_dir / "embeddings" if args.out_dir else Path("embeddings"))
    args.out_dir = args.out_dir or Path("runs") / args.prompt
    if args.eval_names == 0:
        vars(args).update(dict.fromkeys(ONLY_FOR_THE_TABLE))
    if not args.dry_run:
        check_paths(parser, args, (*NEEDED, *needed_by(args)))
    return args


def check_apl(parser: Parser, args: argparse.Namespace) -> None:
    """Check the flags of APL's own methods."""
    if args.train_method != MAP:
        args.init = args.init if args.init in INITIALIZATIONS else str(found(args.init))
        if args.init not in INITIALIZATIONS and not Path(args.init).is_file():
            parser.error(f"--init '{args.init}' is neither {' nor '.join(INITIALIZATIONS)}, nor an existing prefix file")
    if args.grad_accum > args.batch_size:
        parser.error(f"--grad_accum {args.grad_accum} parts need more than --batch_size {args.batch_size} samples; give a larger batch")
    args.data_seed = args.seed if args.data_seed is None else args.data_seed


def train_inputs(args: argparse.Namespace) -> list[Input]:
    """Input files and folders of a training, with their flaws."""
    return inputs_of(build_parser(), args)


def table_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the images in the final table, by the flags of test_id.py."""
    return {"prompt_template": PORTRAIT, "n_samples": args.eval_samples, "ddim_steps": args.eval_ddim_steps, "seed": 0, "batch_size": 16,
            "drift_prompts": args.prompts_file}


def build_parser(method: str = APL[0]) -> Parser:
    """Flags of train.py, with the published values of the method as defaults."""
    parser = Parser(prog="train.py", description="Learn an anonymization prompt for a frozen text-to-image model; or edit the model by a "
                                                 "competing method, or attack it.")
    parser.sections = tuple(PUBLISHED)
    if method in PUBLISHED:
        parser.section, parser.own = method, frozenset(PUBLISHED[method])
    add_preset_argument(parser)
    add_model_arguments(parser)
    add_devices_argument(parser)

    group = parser.add_argument_group("anonymization prompt", "the learnable prefix [AP], paper Eq. 2")
    group.add_argument("--prompt", metavar="NAME",
                       help="name of the run; its prefixes are NAME-STEP.pt in --embeddings_dir, maps .safetensors "
                                                   "(default: apl, or the --train_method)")
    group.add_argument("--placeholder", metavar="WORD", default="alz",
                       help="placeholder word of the prefix; must be one CLIP token")
    group.add_argument("--num_vectors", metavar="M", type=number(int, 1, LONGEST_PREFIX), default=10,
                       help="number of learnable vectors (m)")
    group.add_argument("--init", metavar="KIND", default="uniform01",
                       help="initial vectors: uniform01 (U[0, 1)), vocab (normal, with the token table's mean and standard deviation), "
                            "or a prefix file")
    group.add_argument("--initializer_words", metavar="TEXT",
                       help="text whose token embeddings are the initial vectors, instead of --init")
    group.add_argument("--map_rank", metavar="R", type=number(int, 0), default=16,
                       help="apl-map: rank of the linear map of the context that is learned instead of the vectors; 0: full")

    group = parser.add_argument_group("objective", "paper Eq. 5 to 7")
    group.add_argument("--train_method", choices=METHODS, default="apl",
                       help="apl: the paper; apl-released: the released code; apl-no-reg: without L_Reg; apl-map: a linear "
                            "map of the context in place of the vectors, ours and not the paper's; the others: see below")
    group.add_argument("--alpha", metavar="FLOAT", type=number(float, 0), default=1.0,
                       help="strength of the anonymization (Eq. 5)")
    group.add_argument("--mix", metavar="P", type=number(float, 0, 1), default=0.5,
                       help="probability that a sample is from S_ID, else S_Reg")
    group.add_argument("--ddim_steps", metavar="N", type=number(int, 1, 1000), default=50,
                       help="number of bins of the 1000 timesteps from which t is sampled (apl, esd)")

    group = parser.add_argument_group("optimization", "Adam, on the prefix only; for the published values of another method: "
                                                      "train.py --train_method esd --help")
    group.add_argument("--iterations", metavar="N", type=number(int, 1), default=20_000, help="optimizer steps")
    group.add_argument("--lr", metavar="FLOAT", type=number(float, 0, above=True), default=1e-3, help="learning rate")
    group.add_argument("--lr_decay", metavar="SHARE", type=number(float, 0, 1), default=0.0,
                       help="final share of the steps over which the learning rate decays to 0")
    group.add_argument("--batch_size", metavar="B", type=number(int, 1), default=1, help="samples per step, total over all devices")
    group.add_argument("--seed", metavar="N", type=number(int, 0, 2**63 - 1), default=0,
                       help="seed of samples, timesteps, noise and initial vectors")
    group.add_argument("--data_seed", metavar="N", type=number(int, 0, 2**63 - 1),
                       help="seed of samples, timesteps and noise only (default: --seed)")

    add_eraser_arguments(parser)
    add_attack_arguments(parser)

    group = parser.add_argument_group("speed and memory", "the same steps, faster or with less memory")
    group.add_argument("--lookahead", metavar="STEPS", type=number(int, 1),
                       help="steps whose frozen predictions share a batch (default: those of 16 samples, fewer if memory is short)")
    group.add_argument("--target_cache", metavar="DIR", type=Path,
                       help="cache of frozen predictions, shared by runs that differ in alpha, m, lr, init or --seed (not --data_seed)")
    group.add_argument("--target_cache_gb", metavar="GB", type=number(float, 0), default=20.0,
                       help="maximum size of --target_cache, in 1e9 bytes")
    group.add_argument("--grad_accum", metavar="N", type=number(int, 1), default=1,
                       help="number of parts into which each device splits its samples of a step (gradient accumulation)")
    group.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False,
                       help="recompute activations of the U-Net in the backward pass instead of storing them (gradient checkpointing)")
    group.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False,
                       help="compile the U-Net's blocks (torch.compile); faster on a GPU, after minutes of compilation")
    group.add_argument("--cuda_graphs", action=argparse.BooleanOptionalAction, default=False,
                       help="replay the whole step as one CUDA graph; faster for batches of up to 4 on one GPU")

    group = parser.add_argument_group("training data")
    group.add_argument("--identity_images", metavar="DIR", type=Path, help="S_ID: images of the people of --people")
    group.add_argument("--n_identities", metavar="N", type=number(int, 1),
                       help="use only the first N people of S_ID (default: all)")
    group.add_argument("--caption_images", metavar="DIR", type=Path, help="S_Reg: images with captions")
    group.add_argument("--templates", metavar="FILE", type=Path,
                       help="prompt templates, one per line, used for both c1 and c2")

    group = parser.add_argument_group("final table", "identity accuracy and drift, without and with the prefix; not for attacks")
    add_face_arguments(group)
    add_attribute_arguments(group)
    group.add_argument("--prompts_file", metavar="FILE", type=Path, nargs="+",
                       help="prompts without names, one per line; one row of drift per file")
    group.add_argument("--eval_names", metavar="N", type=number(int, 0), default=100,
                       help="number of names per group; 0: no table, only before-after.png")
    group.add_argument("--eval_samples", metavar="N", type=number(int, 1), default=4, help="images per name")
    group.add_argument("--eval_ddim_steps", metavar="N", type=number(int, 1, 1000), default=20, help="DDIM steps")
    group.add_argument("--scale", metavar="FLOAT", type=number(float, 0), default=7.0, help="guidance scale")

    group = parser.add_argument_group("output")
    group.add_argument("--out_dir", metavar="DIR", type=Path,
                       help="folder of log, tables and images (default: runs/NAME)")
    group.add_argument("--embeddings_dir", metavar="DIR", type=Path,
                       help="folder of the saved prefixes (default: embeddings, or embeddings in a given --out_dir)")
    group.add_argument("--save_every", metavar="N", type=number(int, 1), default=1000,
                       help="steps between saved prefixes")
    group.add_argument("--val_every", metavar="N", type=number(int, 0), default=1000,
                       help="steps between image grids; 0: none")
    group.add_argument("--log_every", metavar="N", type=number(int, 1), default=50, help="steps between logged losses")
    group.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                       help="resume an interrupted run of the same arguments")
    group.add_argument("--dry_run", action="store_true", help="print existing and missing inputs, and the memory and time needed")
    parser.set_defaults(**PUBLISHED.get(method, {}))
    return parser
