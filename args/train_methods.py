"""Baselines and attacks of train.py: their published settings, the flags that each method reads, and checks."""

import argparse
from pathlib import Path
from typing import Any

from args.common import Parser, number

PREFIX, MAP = ("apl", "apl-released", "apl-no-reg"), "apl-map"  # what they learn: vectors in front, or a map of the context
APL = (*PREFIX, MAP)
ERASERS = ("esd", "concept_ablation", "uce", "forget_me_not")
ATTACKS = ("dreambooth", "textual_inversion")
METHODS = (*APL, *ERASERS, *ATTACKS)
# Published settings of the methods other than APL's, for one concept.
PUBLISHED: dict[str, dict[str, Any]] = {
    "esd": {"iterations": 1000, "lr": 1e-5, "batch_size": 1, "lr_decay": 0.0, "variant": "esd-x"},
    "concept_ablation": {"iterations": 100, "lr": 1.6e-5, "batch_size": 8, "lr_decay": 0.0, "variant": "model-based",
                         "parameters": "xattn-kv", "prior_weight": 0.0, "n_prior_images": 1000},
    "uce": {"variant": "last-token"},
    "forget_me_not": {"iterations": 35, "lr": 2e-6, "batch_size": 1, "lr_decay": 0.0, "variant": "with-ti", "parameters": "full"},
    "dreambooth": {"iterations": 800, "lr": 2e-6, "batch_size": 1, "lr_decay": 0.0, "save_every": 100, "prior_weight": 1.0,
                   "n_prior_images": 200},
    "textual_inversion": {"iterations": 5000, "lr": 5e-3, "batch_size": 4, "lr_decay": 0.0, "save_every": 500},
}
VARIANTS = {"esd": ("esd-x", "esd-x-strict", "esd-u", "esd-full"), "concept_ablation": ("model-based", "noise-based"),
            "uce": ("last-token", "to-end"), "forget_me_not": ("with-ti", "without-ti")}
PARAMETERS = ("xattn-kv", "xattn", "noxattn", "full")
Z_T = ("sampled", "noised")
# Flags that only some methods read, with these methods; all methods read the other flags.
READ_BY = {
    **dict.fromkeys(("alpha", "mix", "data_seed", "lookahead", "target_cache", "target_cache_gb", "grad_accum",
                     "checkpointing", "compile", "cuda_graphs", "caption_images", "val_every", "lr_decay", "embeddings_dir"), APL),
    **dict.fromkeys(("init", "initializer_words", "num_vectors"), PREFIX), "placeholder": (*PREFIX, "textual_inversion"),
    "map_rank": (MAP,), "n_identities": APL, "ddim_steps": (*APL, "esd"),
    **dict.fromkeys(("lr", "batch_size", "save_every", "log_every"), (*APL, *ERASERS[:2], "forget_me_not", *ATTACKS)),
    "iterations": (*APL, *ERASERS[:2], "forget_me_not", *ATTACKS), "identity_images": (*APL, "esd", "forget_me_not"),
    "templates": (*APL, "concept_ablation", "textual_inversion"), "variant": ERASERS, "names_file": ERASERS,
    "iters_per_concept": ("esd", "concept_ablation", "forget_me_not"), "parameters": ("concept_ablation", "forget_me_not"),
    **dict.fromkeys(("negative_guidance", "start_guidance", "z_t"), ("esd",)), "anchor": ("concept_ablation", "uce"),
    **dict.fromkeys(("anchor_prompts", "augment"), ("concept_ablation",)),
    **dict.fromkeys(("prior_weight", "n_prior_images"), ("concept_ablation", "dreambooth")),
    **dict.fromkeys(("preserve_prompts", "erase_scale", "preserve_scale", "lamb"), ("uce",)), "ti_iterations": ("forget_me_not",),
    **dict.fromkeys(("photos", "token", "class_word"), ATTACKS), "train_text_encoder": ("dreambooth",), "embedding": ATTACKS,
    **dict.fromkeys(("people", "gallery", "face_pack", "clip", "prompts_file", "eval_names", "eval_samples", "threshold", "det_size",
                     "det_thresh", "c2"), (*APL, *ERASERS)),
}
WITHOUT_USE = (  # (flag, other flag that makes it useless, value of the other flag or None for any)
    ("iterations", "iters_per_concept", None), ("identity_images", "z_t", "sampled"), ("start_guidance", "z_t", "noised"),
    ("templates", "anchor_prompts", None))


def add_eraser_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the baselines of Table 2."""
    group = parser.add_argument_group("competing methods", "edit the model's weights so that it no longer generates some people")
    group.add_argument("--names_file", metavar="FILE", type=Path, help="names to erase, one per line (default: S_ID of --people)")
    group.add_argument("--iters_per_concept", metavar="N", type=number(int, 1),
                       help="optimizer steps per name, instead of --iterations, whose published values are for one concept")
    group.add_argument("--variant", metavar="NAME", help="; ".join(f"{name}: {', '.join(some)}" for name, some in VARIANTS.items()))
    group.add_argument("--parameters", choices=PARAMETERS, default="full",
                       help="parameters of the U-Net that concept_ablation and forget_me_not train: keys and values of cross-attention, "
                            "all of cross-attention, everything else, or everything")
    group.add_argument("--negative_guidance", metavar="ETA", type=number(float, 0), default=1.0, help="esd: strength of the erasure")
    group.add_argument("--start_guidance", metavar="FLOAT", type=number(float, 0), default=3.0, help="esd: guidance scale for sampling z_t")
    group.add_argument("--z_t", choices=Z_T, default=Z_T[0],
                       help="esd: sample z_t with the model (up to --ddim_steps calls per step), or add noise to an image of "
                            "--identity_images")
    group.add_argument("--anchor", metavar="TEXT", default="a person", help="concept_ablation, uce: phrase that replaces a name")
    group.add_argument("--anchor_prompts", metavar="FILE", type=Path,
                       help="concept_ablation: prompts that contain the anchor, one per line (default: --templates with the anchor)")
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True,
                       help="concept_ablation: scale images randomly and describe the scale in the prompt")
    group.add_argument("--preserve_prompts", metavar="FILE", type=Path, nargs="+",
                       help="uce: texts to preserve: one per line, COCO captions .json, .jsonl or .csv")
    group.add_argument("--erase_scale", metavar="FLOAT", type=number(float, 0), default=1.0, help="uce: weight of each name")
    group.add_argument("--preserve_scale", metavar="FLOAT", type=number(float, 0), default=1.0, help="uce: weight of each preserved text")
    group.add_argument("--lamb", metavar="FLOAT", type=number(float, 0, above=True), default=0.5,
                       help="uce: weight of the original matrices")
    group.add_argument("--ti_iterations", metavar="N", type=number(int, 1), default=500,
                       help="forget_me_not with-ti: steps of textual inversion per name")


def add_attack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the attacks of section 4.4; concept_ablation shares the last two."""
    group = parser.add_argument_group("attacks", "teach the model a new person from photos")
    group.add_argument("--photos", metavar="DIR", type=Path, help="photos of one person")
    group.add_argument("--token", metavar="WORD", default="sks", help="word for the person; must be one CLIP token")
    group.add_argument("--class_word", metavar="WORD", default="person", help="word after the token, and prompt word of the class")
    group.add_argument("--train_text_encoder", action=argparse.BooleanOptionalAction, default=False,
                       help="dreambooth: train the text encoder as well as the U-Net")
    group.add_argument("--embedding", metavar="FILE", type=Path,
                       help="prefix, or context map, for the prompts of textual_inversion, and for the last row of the image grid")
    group.add_argument("--n_prior_images", metavar="N", type=number(int, 1), default=200,
                       help="images of the anchor (concept_ablation) or of the class (dreambooth) that the frozen model generates")
    group.add_argument("--prior_weight", metavar="FLOAT", type=number(float, 0), default=1.0,
                       help="weight of the loss on those images with their own prompts; 0: none")


def check_others(parser: Parser, args: argparse.Namespace, typed: set[str]) -> None:
    """Check the flags of the baselines and the attacks; `typed` are those on the command line."""
    for flag, other, value in WITHOUT_USE:
        given = getattr(args, other)
        if flag in typed and given is not None and value in (None, given):
            parser.error(f"--{flag} has no use with --{other} {given}; leave out one of them")
    variants = VARIANTS.get(args.train_method, ())
    if args.variant not in (variants or (None,)):
        parser.error(f"--variant '{args.variant}' is none of --train_method {args.train_method}; give one of {', '.join(variants)}")
    if args.train_method == "esd" and args.z_t != "noised":
        args.identity_images = None
    if args.dry_run:
        parser.error(f"--dry_run has no use with --train_method {args.train_method}; leave it out")


def needed_by(args: argparse.Namespace) -> tuple[str, ...]:
    """Flags of files that the method needs; APL's trainer reports missing files itself."""
    names = () if args.names_file else ("people",)
    return {"esd": (*names, *["identity_images"] * (args.z_t == "noised")), "concept_ablation": names, "uce": names,
            "forget_me_not": (*names, "identity_images"), **dict.fromkeys(ATTACKS, ("photos",))}.get(args.train_method, ())


def method_asked_for(argv: list[str] | None) -> str:
    """--train_method of a command line, not checked yet."""
    asked = Parser(add_help=False)
    asked.add_argument("--train_method", default=APL[0])
    return asked.parse_known_args(argv)[0].train_method
