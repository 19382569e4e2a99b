"""A prefix of Stable Diffusion v1 for SDXL, without training: python -m ldm.apl.transfer IN OUT --to PRESET [--route NAME]

    python -m ldm.apl.transfer embeddings/apl-20000.pt embeddings/apl-sdxl.safetensors --to sdxl
    python -m ldm.apl.transfer embeddings/apl-20000.pt embeddings/apl-sdxl-ridge.safetensors --to sdxl --route ridge
    python -m ldm.apl.transfer embeddings/apl-20000.pt embeddings/apl-sdxl-text.safetensors --to sdxl --route text

SDXL's first text encoder is that of Stable Diffusion v1 and takes the prefix unchanged. The vectors for its second one, OpenCLIP bigG, are
computed from the token tables of both encoders, see transfer_routes.py; nothing else is
used of the checkpoint. The route text uses the whole encoders, people with attributes and captions, see transfer_text.py.
"""

from args.transfer_args import USED, parse_transfer_args
from ldm.util import UserError, exit_with_sentence

SENTENCES = {  # by a metric that a sentence needs; not every route has each
    "agreement": "codes, seen from {origin}: mean cosine of two of the prefix {likeness:.4f}, of two of the transferred "
                 "{likeness_transferred:.4f}, of each with its own {agreement:.4f}",
    "loss": "loss of the search {loss:.6f}; the least possible {least_loss:.6f}",
    "loss_id": "losses at the end: of names {loss_id:.4f}, of captions {loss_reg:.4f}",
    "explained": "the map explains {explained:.4f} of the target table's variance",
    "cosine_held_out": "mean cosine of the perceptron's output with the rows of tokens held out {cosine_held_out:.4f}",
    "cosine_nearest": "mean cosine of a vector with its nearest token {cosine_nearest:.4f}",
    "held_out": "penalty {penalty:g} by five-fold cross-validation, where the map explains {held_out:.4f} of the tokens held out",
}


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_transfer_args(argv)
    # Imported here so that --help and a mistyped flag are answered at once.
    from ldm.apl.transfer_files import anchor_tokens, check_output, read_prefix, read_token_tables
    from ldm.apl.transfer_routes import code_metrics, transfer
    from ldm.loading import file_hash
    from ldm.modules.embedding_file import SDXL_KEYS, carried_metadata, write_safetensors_file

    prefix, file = read_prefix(args.source)
    carried = carried_metadata(args.source, file)
    tables = read_token_tables(args.ckpt_path)
    if prefix.shape[1] != tables[0].shape[1]:
        raise UserError(f"the vectors of {args.source} are {prefix.shape[1]} wide, but the tokens of the first encoder of {args.ckpt_path} "
                        f"{tables[0].shape[1]}; give a prefix learned with that encoder, or another target")
    check_output(args.target)
    if args.anchors:
        tokens = anchor_tokens(args.anchors)
        if tokens[-1] >= len(tables[0]):
            raise UserError(f"{args.ckpt_path} has {len(tables[0])} tokens, not those of CLIP; leave out --anchors")
        tables = tables[0][tokens], tables[1][tokens]
    options = {flag: getattr(args, flag) for flag in USED[args.route]}
    if args.route == "text":
        from ldm.apl.transfer_text import by_texts, read_text_encoders, texts

        data = texts(args.people, args.templates, args.caption_images, args.seed)
        vectors, metrics = by_texts(prefix, read_text_encoders(args.config_path, args.ckpt_path), data, **options)
    else:
        vectors, metrics = transfer(args.route, prefix, *tables, centred=args.centred, **options)
    metrics |= code_metrics(prefix, vectors, *tables, centred=args.centred)
    anchors = args.anchors and [file_hash(path) for path in args.anchors]
    pair = dict(zip(SDXL_KEYS, (prefix, vectors), strict=True))
    write_safetensors_file(args.target, pair, step=carried["step"], metadata={
        "route": args.route, "centred": args.centred, "anchors": anchors, **options, "figures": metrics, "source": file_hash(args.source),
        "target": file_hash(args.ckpt_path), "learned_from": carried["metadata"]})
    print(f"{len(prefix)} vectors, {prefix.shape[1]} -> {vectors.shape[1]} wide, by route {args.route}")
    for metric, sentence in SENTENCES.items():
        if metric in metrics:
            print(sentence.format(origin="the tables' mean rows" if args.centred else "the origin", **metrics))
    print(f"written to {args.target}\nNothing says yet that it anonymizes: measure it with test_id.py on the target model, or learn both "
          "parts there with train.py.")


if __name__ == "__main__":
    main()
