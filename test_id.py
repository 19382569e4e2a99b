"""Identity accuracy (ID-ACC) of generated portraits, without and with anonymization prompts (paper Table 1).

    python test_id.py --preset mini
    python test_id.py --preset sd-v1-5 --embedding embeddings/apl-20000.pt --gallery data/gallery.npz --out_dir runs/id
    python test_id.py --preset mini --images my_pictures      # my_pictures/<name>/*.png; no diffusion model is loaded
    python test_id.py --preset mini --models mini mini-sd-b mini-sepia    # the same prefix on several models, Figure 3

Writes images, manifest, images.csv, identities.csv, grid.png and the table (results.json, .csv, .md) into --out_dir.
"""

from args.test_id_args import parse_test_id_args
from ldm.util import exit_with_sentence

SHOWN = ("prefix", "group", "id_acc_mean", "id_acc_low", "id_acc_high", "id_acc_max", "detection_rate", "rank1", "tar",
         "n_without_face")


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_test_id_args(argv)
    # Imported here so that --help and a mistyped flag are answered at once.
    from ldm.evaluation.tables import console_tables, write_results

    if args.models:
        from ldm.experiments.several_models import portability_table
        rows, table = portability_table(args)
    else:
        from ldm.experiments.identity_table import identity_table
        rows = identity_table(args)
        table = [{column: row[column] for column in SHOWN if column in row} for row in rows if "group" in row]
    if rows:
        write_results(rows, args.out_dir)
        print(console_tables(table, [row for row in rows if "mse" in row]))
        print(f"written to {args.out_dir}")


if __name__ == "__main__":
    main()
