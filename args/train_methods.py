"""Baselines and attacks of train.py: their published settings, the flags that each method reads, and checks."""

import argparse
from pathlib import Path
from typing import Any

from args.common import COUNT, NOT_NEGATIVE, POSITIVE, SWITCH, Parser

ROBUST, TEXT = "apl-robust", "apl-text"
INNER, ALTERNATING = FORMS = "inner", "alternating"  # of apl-robust
PREFIX, MAP = ("apl", "apl-released", "apl-no-reg", ROBUST, TEXT), "apl-map"  # they learn vectors in front, or a map of the context
APL = (*PREFIX, MAP)
WITH_UNET = tuple(method for method in APL if method != TEXT)
CLOSED_FORM = ("uce", "speed")  # without training
ERASERS = ("esd", "concept_ablation", *CLOSED_FORM, "forget_me_not")
ATTACKS = ("dreambooth", "textual_inversion")
METHODS = (*APL, *ERASERS, *ATTACKS)
# Published settings of the methods other than APL's, for one concept; of speed for a hundred people.
PUBLISHED: dict[str, dict[str, Any]] = {
    TEXT: {"iterations": 200, "lr": 1e-2, "lr_decay": 0.7, "batch_size": 8, "init": "vocab", "save_every": 200, "val_every": 0},  # ours
    "esd": {"iterations": 1000, "lr": 1e-5, "batch_size": 1, "lr_decay": 0.0, "variant": "esd-x"},
    "concept_ablation": {"iterations": 100, "lr": 1.6e-5, "batch_size": 8, "lr_decay": 0.0, "variant": "model-based",
                         "parameters": "xattn-kv", "prior_weight": 0.0, "n_prior_images": 1000},
    "uce": {"variant": "last-token"},
    "speed": {"variant": "unfiltered", "anchor": "person", "lamb": 0.05},
    "forget_me_not": {"iterations": 35, "lr": 2e-6, "batch_size": 1, "lr_decay": 0.0, "variant": "with-ti", "parameters": "full"},
    "dreambooth": {"iterations": 800, "lr": 2e-6, "batch_size": 1, "lr_decay": 0.0, "save_every": 100, "prior_weight": 1.0,
                   "n_prior_images": 200},
    "textual_inversion": {"iterations": 5000, "lr": 5e-3, "batch_size": 4, "lr_decay": 0.0, "save_every": 500},
}
VARIANTS = {"esd": ("esd-x", "esd-x-strict", "esd-u", "esd-full"), "concept_ablation": ("model-based", "noise-based"),
            "uce": ("last-token", "to-end"), "speed": ("filtered", "unfiltered"),
            "forget_me_not": ("with-ti", "without-ti")}
PARAMETERS = ("xattn-kv", "xattn", "noxattn", "full")
# Flags that only some methods read, with these methods; all methods read the other flags.
READ_BY = {flag: methods for methods, flags in (
    (APL, "alpha mix data_seed caption_images val_every lr_decay embeddings_dir n_identities"),
    (WITH_UNET, "lookahead target_cache target_cache_gb grad_accum checkpointing compile"),
    ((*PREFIX[:3], MAP), "cuda_graphs"), ((ROBUST,), "robust_form attack_vectors attack_steps attack_radius attack_rounds attack_names"),
    (PREFIX, "init initializer_words num_vectors"), ((MAP,), "map_rank"), ((*PREFIX, "textual_inversion"), "placeholder"),
    ((*WITH_UNET, "esd"), "ddim_steps"), ((*WITH_UNET, "esd", "forget_me_not"), "identity_images"),
    ((*APL, "esd", "concept_ablation", "forget_me_not", *ATTACKS), "iterations lr batch_size save_every log_every log_to"),
    ((*APL, "concept_ablation", "textual_inversion"), "templates"), (ERASERS, "variant names_file"),
    (("esd", "concept_ablation", "forget_me_not"), "iters_per_concept"), (("concept_ablation", "forget_me_not"), "parameters"),
    (("esd",), "negative_guidance start_guidance z_t"), (("concept_ablation", *CLOSED_FORM), "anchor"),
    (("concept_ablation",), "anchor_prompts augment"), (("concept_ablation", "dreambooth"), "prior_weight n_prior_images"),
    (("apl", MAP, ROBUST, *CLOSED_FORM), "keep_names"), (CLOSED_FORM, "preserve_prompts lamb"), (("uce",), "erase_scale preserve_scale"),
    (("forget_me_not",), "ti_iterations"),
    (ATTACKS, "photos token class_word embedding"), (("dreambooth",), "train_text_encoder"),
    ((*APL, *ERASERS), "people gallery face_pack clip prompts_file eval_names eval_samples threshold det_size det_thresh c2"),
) for flag in flags.split()}


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the baselines of Table 2, and of the attacks of section 4.4."""
    add = parser.add_argument_group("competing methods", "edit the model's weights so that it no longer generates some people").add_argument
    add("--names_file", metavar="FILE", type=Path, help="names to erase, one per line (default: S_ID of --people)")
    add("--iters_per_concept", metavar="N", type=COUNT, help="optimizer steps per name, instead of --iterations for all of them")
    add("--variant", metavar="NAME", help="; ".join(f"{name}: {', '.join(some)}" for name, some in VARIANTS.items()))
    add("--parameters", choices=PARAMETERS, default="full",
        help="parameters of the U-Net that concept_ablation and forget_me_not train: keys and values of cross-attention, all of "
             "cross-attention, everything else, or everything")
    add("--negative_guidance", metavar="ETA", type=NOT_NEGATIVE, default=1.0, help="esd: strength of the erasure")
    add("--start_guidance", metavar="FLOAT", type=NOT_NEGATIVE, default=3.0, help="esd: guidance scale for sampling z_t")
    add("--z_t", choices=("sampled", "noised"), default="sampled",
        help="esd: sample z_t with the model, or add noise to an image of --identity_images")
    add("--anchor", metavar="TEXT", default="a person", help="concept_ablation, uce, speed: phrase that replaces a name")
    add("--anchor_prompts", metavar="FILE", type=Path,
        help="concept_ablation: prompts with the anchor, one per line (default: --templates)")
    add("--augment", action=SWITCH, default=True, help="concept_ablation: scale images randomly and describe the scale in the prompt")
    add("--preserve_prompts", metavar="FILE", type=Path, nargs="+",
        help="uce, speed: texts to preserve: one per line, COCO .json, .jsonl or .csv")
    add("--erase_scale", metavar="FLOAT", type=NOT_NEGATIVE, default=1.0, help="uce: weight of each name")
    add("--preserve_scale", metavar="FLOAT", type=NOT_NEGATIVE, default=1.0, help="uce: weight of each preserved text")
    add("--lamb", metavar="FLOAT", type=POSITIVE, default=0.5, help="uce, speed: weight of the original matrices")
    add("--ti_iterations", metavar="N", type=COUNT, default=500, help="forget_me_not with-ti: steps of textual inversion per name")

    add = parser.add_argument_group("attacks", "teach the model a new person from photos").add_argument
    add("--photos", metavar="DIR", type=Path, help="photos of one person")
    add("--token", metavar="WORD", default="sks", help="word for the person; must be one CLIP token")
    add("--class_word", metavar="WORD", default="person", help="word after the token, and prompt word of the class")
    add("--train_text_encoder", action=SWITCH, default=False, help="dreambooth: train the text encoder as well as the U-Net")
    add("--embedding", metavar="FILE", type=Path,
        help="prefix or context map for textual_inversion, and for the last row of the image grid")
    add("--n_prior_images", metavar="N", type=COUNT, default=200,
        help="generated images of the anchor (concept_ablation) or of the class (dreambooth)")
    add("--prior_weight", metavar="FLOAT", type=NOT_NEGATIVE, default=1.0, help="weight of the loss on those images; 0: none")


def check_others(parser: Parser, args: argparse.Namespace, typed: set[str]) -> None:
    """Check the flags of the baselines and the attacks; `typed` are those on the command line."""
    for flag, other, is_useless in (
            ("iterations", "iters_per_concept", args.iters_per_concept is not None), ("identity_images", "z_t", args.z_t == "sampled"),
            ("start_guidance", "z_t", args.z_t == "noised"), ("templates", "anchor_prompts", args.anchor_prompts is not None)):
        if flag in typed and is_useless:
            parser.error(f"--{flag} has no use with --{other} {getattr(args, other)}; leave out one of them")
    variants = VARIANTS.get(args.train_method, ())
    if args.variant not in (variants or (None,)):
        parser.error(f"--variant '{args.variant}' is none of --train_method {args.train_method}; give one of {', '.join(variants)}")
    if args.train_method == "esd" and args.z_t != "noised":
        args.identity_images = None
    if args.dry_run:
        parser.error(f"--dry_run has no use with --train_method {args.train_method}; leave it out")


def check_robust(parser: Parser, args: argparse.Namespace, typed: set[str]) -> None:
    """Check the flags of apl-robust, and fill in those of its form."""
    unread = ("attack_rounds", "attack_names") if args.robust_form == INNER else ("attack_radius",)
    for flag in sorted(typed & {*unread}):
        parser.error(f"--{flag} has no use with --robust_form {args.robust_form}; leave it out")
    vars(args).update(dict.fromkeys(unread))
    if args.attack_steps is None:
        args.attack_steps = 5 if args.robust_form == INNER else 150
    if args.robust_form == ALTERNATING and args.attack_rounds > args.iterations:
        parser.error(f"--attack_rounds {args.attack_rounds} are more than --iterations {args.iterations}; give at most one per step")


def needed_by(args: argparse.Namespace) -> tuple[str, ...]:
    """Flags of files that the method needs; APL's trainer reports missing files itself."""
    names = () if args.names_file else ("people",)
    return {"esd": (*names, *["identity_images"] * (args.z_t == "noised")), "concept_ablation": names, **dict.fromkeys(CLOSED_FORM, names),
            "forget_me_not": (*names, "identity_images"), **dict.fromkeys(ATTACKS, ("photos",))}.get(args.train_method, ())


def method_asked_for(argv: list[str] | None) -> str:
    """--train_method of a command line, not checked yet."""
    asked = Parser(add_help=False)
    asked.add_argument("--train_method", default=APL[0])
    return asked.parse_known_args(argv)[0].train_method
