"""FID, KID, CLIP score, ID-ACC and Attr-ACC without and with anonymization prompts (both halves of the paper's Table 2).

    python test_fid_clip_score.py --preset mini
    python test_fid_clip_score.py --preset sd-v1-5 --embedding embeddings/apl-20000.pt --devices 0,1 --keep_images 100
    python test_fid_clip_score.py --preset mini --images theirs_without theirs_with      # no diffusion model is loaded

Writes images, scores, a sheet of image pairs per half, the paper's table (table2.json, .csv, .md) and one row per half and prefix
(results.json, .csv, .md) to --out_dir. The same command resumes an interrupted run.
"""

from args.common import options_of
from args.test_fid_clip_score_args import parse_test_fid_clip_score_args
from ldm.util import exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_test_fid_clip_score_args(argv)
    # Imported here so that --help and errors in flags do not wait for torch.
    from ldm.apl.launch import launch, set_precision
    from ldm.device import pick_precision
    from ldm.evaluation.tables import console_table, write_results
    from ldm.experiments.quality_table import QualityOptions, QualityTable, papers_table
    from ldm.experiments.variants import load_variants
    from ldm.loading import ModelFiles

    fabric = launch(args.devices, num_nodes=args.num_nodes)
    table = QualityTable(options_of(QualityOptions, args), fabric.device)
    if args.images:
        rows = table.existing(*args.images, args.out_dir, vars(args))
    else:
        precision = pick_precision(args.precision, fabric.device)
        files = options_of(ModelFiles, args)
        model = files.load(fabric.device)
        set_precision(model, precision)
        rows = table.generated(fabric, model, files, load_variants(model, args.embedding or [], files), precision, args.out_dir, vars(args),
                               keep_images=args.keep_images, resume=args.resume)
    if fabric.is_global_zero:
        write_results(rows, args.out_dir)
        write_results(papers_table(rows), args.out_dir, name="table2")
        print(f"{console_table(papers_table(rows))}\n\nFID and KID by the protocol '{args.fid_protocol}'; written to {args.out_dir}")


if __name__ == "__main__":
    main()
