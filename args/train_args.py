"""Command line of train.py."""

import argparse
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from args import common, train_methods
from args.common import COUNT, DDIM_STEPS, NOT_NEGATIVE, PORTRAIT, POSITIVE, SEED, SWITCH, Parser, number, parse_with_preset, typed_flags
from args.paths import Input, check_paths, found, inputs_of
from args.train_methods import APL, MAP, PREFIX, PUBLISHED, READ_BY, ROBUST, TEXT, method_asked_for

INITIALIZATIONS = ("uniform01", "vocab")
LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")  # csv: log.csv in --out_dir; the others have packages of these names
LONGEST_PREFIX = 60  # of CLIP's 77 tokens; the remaining ones are for the prompt, see ldm/modules/embedding_manager.py


def parse_train_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Checked flags, with `out_dir` and `embeddings_dir` filled in; an invalid value exits with a sentence and status 2.

    With --eval_names 0, flags that only the final table reads are None. With --dry_run, files may be missing; see `train_inputs`.
    """
    parser = build_parser(method_asked_for(argv))
    args = parse_with_preset(parser, argv)
    if args.train_method != method_asked_for(argv):  # a preset's
        parser = build_parser(args.train_method)
        args = parse_with_preset(parser, argv)
    method, typed = args.train_method, typed_flags(argv)
    unused = {flag for flag, methods in READ_BY.items() if method not in methods}
    for flag in sorted(typed & unused):
        parser.error(f"--{flag} has no use with --train_method {method}; leave it out")
    vars(args).update(dict.fromkeys(unused))
    args.prompt = args.prompt or ("apl" if method in PREFIX and method not in (ROBUST, TEXT) else method)
    if not re.fullmatch(r"[\w+=-][\w.+= -]*", args.prompt):
        parser.error(f"--prompt '{args.prompt}' is part of file names; give letters, digits, '-', '_' or '.'")
    if method not in APL:
        train_methods.check_others(parser, args, typed)
    else:
        if method != MAP:
            args.init = args.init if args.init in INITIALIZATIONS else str(found(args.init))
            if args.init not in INITIALIZATIONS and not Path(args.init).is_file():
                parser.error(f"--init '{args.init}' is neither {' nor '.join(INITIALIZATIONS)}, nor an existing prefix file")
        if method == ROBUST and args.num_vectors + args.attack_vectors > LONGEST_PREFIX:
            parser.error(f"--attack_vectors {args.attack_vectors} and --num_vectors {args.num_vectors} leave no room for the prompt; give "
                         f"at most {LONGEST_PREFIX} together")
        if method == ROBUST:
            train_methods.check_robust(parser, args, typed)
        if method == TEXT and args.dry_run:
            parser.error(f"--dry_run has no use with --train_method {TEXT}, which takes a minute; leave it out")
        if method != TEXT and args.grad_accum > args.batch_size:
            parser.error(f"--grad_accum {args.grad_accum} parts need more than --batch_size {args.batch_size} samples; give a larger batch")
        args.data_seed = args.seed if args.data_seed is None else args.data_seed
    args.embeddings_dir = args.embeddings_dir or (args.out_dir / "embeddings" if args.out_dir else Path("embeddings"))
    args.out_dir = args.out_dir or Path("runs") / args.prompt
    if args.eval_names == 0:
        args.face_pack = args.gallery = args.clip = None
    if not args.dry_run:
        check_paths(parser, args, ("config_path", "ckpt_path", *train_methods.needed_by(args)))
    return args


def train_inputs(args: argparse.Namespace) -> list[Input]:
    """Input files and folders of a training, with their flaws."""
    return inputs_of(build_parser(), args)


def table_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the images in the final table, by the flags of test_id.py."""
    return {"prompt_template": PORTRAIT, "n_samples": args.eval_samples, "ddim_steps": args.eval_ddim_steps, "seed": 0, "batch_size": 16,
            "drift_prompts": args.prompts_file, "target": None}


def build_parser(method: str = APL[0]) -> Parser:
    """Flags of train.py, with the published values of the method as defaults."""
    parser = Parser(prog="train.py", description="Learn an anonymization prompt for a frozen text-to-image model; or edit the model by a "
                                                 "competing method, or attack it.")
    parser.sections, parser.section = PUBLISHED, method if method in PUBLISHED else None
    common.add_preset_argument(parser)
    common.add_model_arguments(parser)

    add = parser.add_argument_group("anonymization prompt", "the learnable prefix [AP], paper Eq. 2").add_argument
    add("--prompt", metavar="NAME",
        help="name of the run; its prefixes are NAME-STEP.pt in --embeddings_dir, maps .safetensors (default: apl, or the --train_method)")
    add("--placeholder", metavar="WORD", default="alz", help="placeholder word of the prefix; must be one CLIP token")
    add("--num_vectors", metavar="M", type=number(int, 1, LONGEST_PREFIX), default=10, help="number of learned vectors (m)")
    add("--init", metavar="KIND", default="uniform01",
        help="initial vectors: uniform01 (U[0, 1)), vocab (normal, with the token table's mean and standard deviation), or a prefix file")
    add("--initializer_words", metavar="TEXT", help="text whose token embeddings are the initial vectors, instead of --init")
    add("--map_rank", metavar="R", type=number(int, 0), default=16, help="apl-map: rank of the learned linear map of the context; 0: full")

    add = parser.add_argument_group("objective", "paper Eq. 5 to 7").add_argument
    add("--train_method", choices=train_methods.METHODS, default="apl",
        help="apl: the paper; apl-released: the released code; apl-no-reg: without L_Reg; apl-map: a linear map of the context in place "
             "of the vectors, apl-robust: vectors that withstand uploaded embeddings, apl-text: vectors from texts alone in a minute, all "
             "three ours and not the paper's; the others: see below")
    add("--alpha", metavar="FLOAT", type=NOT_NEGATIVE, default=1.0, help="strength of the anonymization (Eq. 5)")
    add("--attack_vectors", metavar="K", type=COUNT, default=4, help="apl-robust: vectors of the attack behind the prefix")
    add("--robust_form", choices=train_methods.FORMS, default=train_methods.INNER,
        help="apl-robust: inner steps attack each sample, or tokens are learned behind the prefix in rounds and join S_ID")
    add("--attack_steps", metavar="N", type=number(int, 0),
        help="apl-robust: steps of the attack, per sample (inner; default: 5) or per token (alternating; default: 150)")
    add("--attack_radius", metavar="RHO", type=NOT_NEGATIVE,
        help="inner: distance of the attack's vectors from the nearest token's; 0: tokens (default: any distance)")
    add("--attack_rounds", metavar="R", type=COUNT, default=3, help="alternating: rounds, at equal distances, the first at the start")
    add("--attack_names", metavar="N", type=COUNT, default=8, help="alternating: people of S_ID for whom each round learns a token")
    add("--mix", metavar="P", type=number(float, 0, 1), default=0.5, help="probability that a sample is from S_ID, else S_Reg")
    add("--ddim_steps", metavar="N", type=DDIM_STEPS, default=50, help="bins of the 1000 timesteps from which t is sampled (apl, esd)")

    add = parser.add_argument_group("optimization", "Adam, on the prefix only; for the published values of another method: "
                                                      "train.py --train_method esd --help").add_argument
    add("--iterations", metavar="N", type=COUNT, default=20_000, help="optimizer steps")
    add("--lr", metavar="FLOAT", type=POSITIVE, default=1e-3, help="learning rate")
    add("--lr_decay", metavar="SHARE", type=number(float, 0, 1), default=0.0, help="final share of the steps in which the rate decays to 0")
    add("--batch_size", metavar="B", type=COUNT, default=1, help="samples per step, total over all devices")
    add("--seed", metavar="N", type=SEED, default=0, help="seed of samples, timesteps, noise and initial vectors")
    add("--data_seed", metavar="N", type=SEED, help="seed of samples, timesteps and noise only (default: --seed)")

    train_methods.add_method_arguments(parser)

    add = parser.add_argument_group("speed and memory", "the same steps, faster or with less memory").add_argument
    add("--lookahead", metavar="STEPS", type=COUNT,
        help="steps whose frozen predictions share a batch (default: those of 16 samples, fewer if memory is short)")
    add("--target_cache", metavar="DIR", type=Path,
        help="cache of frozen predictions for runs of equal --data_seed that differ in alpha, m, lr or init")
    add("--target_cache_gb", metavar="GB", type=NOT_NEGATIVE, default=20.0, help="maximum size of --target_cache")
    add("--grad_accum", metavar="N", type=COUNT, default=1,
        help="parts into which each device splits its samples of a step (gradient accumulation)")
    add("--checkpointing", action=SWITCH, default=False,
        help="recompute the U-Net's activations in the backward pass (gradient checkpointing)")
    add("--compile", action=SWITCH, default=False, help="compile the U-Net's blocks in minutes (torch.compile); faster on a GPU")
    add("--cuda_graphs", action=SWITCH, default=False, help="replay the step as one CUDA graph; faster for batches of up to 4 on one GPU")

    add = parser.add_argument_group("training data").add_argument
    add("--identity_images", metavar="DIR", type=Path, help="S_ID: images of the people of --people")
    add("--n_identities", metavar="N", type=COUNT, help="use only the first N people of S_ID (default: all)")
    add("--caption_images", metavar="DIR", type=Path, help="S_Reg: images with captions")
    add("--keep_names", metavar="FILE", type=Path,
        help="S_keep: names that may be shown (apl, apl-map, apl-robust, uce, speed); one per line, people.csv, or MACE's celebrity table")
    add("--templates", metavar="FILE", type=Path, help="prompt templates, one per line, used for both c1 and c2")

    add = parser.add_argument_group("final table", "identity accuracy and drift, without and with the prefix; not for attacks").add_argument
    common.add_face_arguments(add)
    common.add_attribute_arguments(add)
    add("--prompts_file", metavar="FILE", type=Path, nargs="+", help="prompts without names, one per line; one row of drift per file")
    add("--eval_names", metavar="N", type=number(int, 0), default=100, help="number of names per group; 0: no table, only before-after.png")
    add("--eval_samples", metavar="N", type=common.IMAGES, default=4, help="images per name")
    add("--eval_ddim_steps", metavar="N", type=DDIM_STEPS, default=20, help="DDIM steps")
    add("--scale", metavar="FLOAT", type=NOT_NEGATIVE, default=7.0, help="guidance scale")

    add = parser.add_argument_group("output").add_argument
    add("--out_dir", metavar="DIR", type=Path, help="folder of log, tables and images (default: runs/NAME)")
    add("--embeddings_dir", metavar="DIR", type=Path, help="folder of saved prefixes (default: embeddings, or that in a given --out_dir)")
    add("--save_every", metavar="N", type=COUNT, default=1000, help="steps between saved prefixes")
    add("--val_every", metavar="N", type=number(int, 0), default=1000, help="steps between image grids; 0: none")
    add("--log_every", metavar="N", type=COUNT, default=50, help="steps between logged losses")
    add("--log_to", metavar="LIST", type=_loggers, default="tensorboard,csv",
        help=f"where losses and image grids are logged, separated by commas: {', '.join(LOGGERS)}")
    common.add_resume_argument(add, "resume an interrupted run of the same arguments")
    add("--dry_run", action="store_true", help="print existing and missing inputs, and the memory and time needed")
    parser.set_defaults(**PUBLISHED.get(method, {}))
    return parser


def _loggers(text: str) -> str:
    for name in text.split(","):
        if name not in LOGGERS:
            raise argparse.ArgumentTypeError(f"got '{name}'; give some of {','.join(LOGGERS)}")
        if name != "csv" and find_spec(name) is None:
            raise argparse.ArgumentTypeError(f"{name} is not installed; run: pip install {name}")
    return text
