"""Identity accuracy (ID-ACC) of generated portraits, without and with anonymization prompts (paper Table 1).

    python test_id.py --preset mini
    python test_id.py --preset sd-v1-5 --embedding embeddings/apl-20000.pt --gallery data/gallery.npz --out_dir runs/id
    python test_id.py --preset mini --target 0.5,1             # rows of c2, and of Eq. 5's target: the bound of every prefix
    python test_id.py --preset mini --images my_images        # my_images/<name>/*.png; no diffusion model is loaded
    python test_id.py --preset mini --models mini mini-sd-b mini-sepia    # the same prefix on several models, Figure 3

Writes images, manifest, images.csv, identities.csv, grid.png and the table (results.json, .csv, .md) to --out_dir.
"""

from args.common import options_of
from args.test_id_args import parse_test_id_args
from ldm.util import exit_with_sentence

SHOWN = ("prefix", "group", "id_acc_mean", "id_acc_low", "id_acc_high", "id_acc_max", "detection_rate", "rank1", "tar", "n_without_face")


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_test_id_args(argv)
    # Imported here so that --help and errors in flags do not wait for torch.
    from ldm.data.identities import read_people
    from ldm.device import pick_device
    from ldm.evaluation.tables import console_table, write_results
    from ldm.experiments.identity_table import IdentityOptions, people_asked_for, table_of_images

    people, options = read_people(args.people), options_of(IdentityOptions, args)
    names, table = people_asked_for(people, args.group, args.n_names), None
    if args.images:
        rows = table_of_images(options, people, names, args.images, pick_device(args.devices))
    else:  # existing images need no diffusion model
        from ldm.apl.launch import launch
        from ldm.experiments.identity import table_of_model
        from ldm.experiments.several_models import table_of_models
        from ldm.loading import ModelFiles

        given = options, people, names
        run = launch(args.devices, num_nodes=args.num_nodes), args.precision, vars(args)
        if args.models:
            rows, table = table_of_models(*given, [ModelFiles(**model) for model in args.models], args.embedding or [], *run)
        else:
            rows = table_of_model(*given, options_of(ModelFiles, args), args.embedding or [], *run)
    if rows:
        table = table or [{column: row[column] for column in SHOWN if column in row} for row in rows if "group" in row]
        write_results(rows, args.out_dir)
        print(console_table(table, [row for row in rows if "mse" in row]))
        print(f"written to {args.out_dir}")


if __name__ == "__main__":
    main()
