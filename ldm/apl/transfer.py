"""A prefix of Stable Diffusion v1 for SDXL, without training: python -m ldm.apl.transfer IN OUT --to PRESET [--route NAME]

    python -m ldm.apl.transfer embeddings/apl-20000.pt embeddings/apl-sdxl.safetensors --to sdxl
    python -m ldm.apl.transfer embeddings/apl-20000.pt embeddings/apl-sdxl-ridge.safetensors --to sdxl --route ridge

SDXL's first text encoder is that of Stable Diffusion v1 and takes the prefix unchanged. The vectors for its second one, OpenCLIP bigG, are
computed from the token tables of both encoders, see transfer_routes.py. Nothing else is read from the checkpoint.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from args.transfer_args import USED, parse_transfer_args
from ldm.util import UserError, exit_with_sentence

if TYPE_CHECKING:
    from torch import Tensor


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_transfer_args(argv)
    # Imported here so that --help and a mistyped flag are answered at once.
    from ldm.apl.transfer_files import anchor_tokens, check_place, read_prefix, read_token_tables
    from ldm.apl.transfer_routes import code_metrics
    from ldm.loading import file_hash
    from ldm.modules.embedding_file import SDXL_KEYS, carried_metadata, write_safetensors_file

    prefix, file = read_prefix(args.source)
    carried = carried_metadata(args.source, file)
    tables = read_token_tables(args.ckpt_path)
    check_width(args, prefix, tables[0])
    check_place(args.target)
    if args.anchors:
        tokens = anchor_tokens(args.anchors)
        if tokens[-1] >= len(tables[0]):
            raise UserError(f"{args.ckpt_path} has {len(tables[0])} tokens, not those of CLIP; leave out --anchors")
        tables = tables[0][tokens], tables[1][tokens]
    vectors, metrics = transferred(args, prefix, *tables)
    metrics |= code_metrics(prefix, vectors, *tables, centred=args.centred)
    settings = {"route": args.route, "centred": args.centred, "anchors": args.anchors and [file_hash(path) for path in args.anchors]}
    settings |= {flag: getattr(args, flag) for flag in USED[args.route]}
    pair = dict(zip(SDXL_KEYS, (prefix, vectors), strict=True))
    write_safetensors_file(args.target, pair, step=carried["step"], metadata=settings | {
        "figures": metrics, "source": file_hash(args.source), "target": file_hash(args.ckpt_path), "learned_from": carried["metadata"]})
    print(report(settings, metrics, prefix, vectors, args.target))


def transferred(args: argparse.Namespace, prefix: "Tensor", source: "Tensor", target: "Tensor") -> "tuple[Tensor, dict[str, float]]":
    """Vectors (m, d_t) and metrics of the route given by the flags; see transfer_routes.py."""
    from ldm.apl.transfer_routes import PUBLISHED_TOP_K, linear, mean_row, penalty_by_validation, procrustes, relative, ridge

    if args.route == "relative":
        top_k = min(PUBLISHED_TOP_K, len(source)) if args.top_k is None else args.top_k
        return relative(prefix, source, target, top_k=top_k, centred=args.centred, scale=args.scale, steps=args.steps, lr=args.lr,
                        seed=args.seed)
    if args.route == "mean":
        return mean_row(prefix, target)
    if args.route == "procrustes":
        return linear(prefix, source, target, procrustes, scale=args.scale)
    penalty, held_out = (args.penalty, None) if args.penalty else penalty_by_validation(source, target)
    vectors, metrics = linear(prefix, source, target, lambda rows, wanted: ridge(rows, wanted, penalty), scale=args.scale)
    return vectors, metrics | {"penalty": penalty} | ({} if held_out is None else {"held_out": held_out})


def check_width(args: argparse.Namespace, prefix: "Tensor", source: "Tensor") -> None:
    """Raise UserError unless the prefix is as wide as the token embeddings of the first encoder."""
    if prefix.shape[1] != source.shape[1]:
        raise UserError(f"the vectors of {args.source} are {prefix.shape[1]} wide, but the tokens of the first encoder of {args.ckpt_path} "
                        f"{source.shape[1]}; give a prefix learned with that encoder, or another target")


def report(settings: dict, metrics: dict[str, float], prefix: "Tensor", vectors: "Tensor", target: Path) -> str:
    """The final message of the command."""
    origin = "the tables' mean rows" if settings["centred"] else "the origin"
    lines = [f"{len(prefix)} vectors, {prefix.shape[1]} -> {vectors.shape[1]} wide, by route {settings['route']}",
             f"codes, seen from {origin}: mean cosine of two of the prefix {metrics['likeness']:.4f}, of two of the transferred "
             f"{metrics['likeness_transferred']:.4f}, of each with its own {metrics['agreement']:.4f}"]
    if "loss" in metrics:
        lines.append(f"loss of the search {metrics['loss']:.6f}; the least possible {metrics['least_loss']:.6f}")
    if "explained" in metrics:
        lines.append(f"the map explains {metrics['explained']:.4f} of the target table's variance")
    if "held_out" in metrics:
        lines.append(f"penalty {metrics['penalty']:g} by five-fold cross-validation, where the map explains {metrics['held_out']:.4f} of "
                     "the tokens held out")
    return "\n".join([*lines, f"written to {target}", "Nothing says yet that it anonymizes: measure it with test_id.py "
                      "on the target model, or learn both parts there with train.py."])


if __name__ == "__main__":
    main()
