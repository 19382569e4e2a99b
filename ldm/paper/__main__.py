"""Reproduce the paper's tables and figures, with published and measured values: python -m ldm.paper WHAT [--preset NAME]

    python -m ldm.paper list                                           # all tables and figures with their progress
    python -m ldm.paper table3 figure6 --preset mini --seeds 3         # trains, generates and scores what is missing
    python -m ldm.paper all --preset sd-v1-5 --devices 0,1,2,3         # all of them, the claims and the report
    python -m ldm.paper report                                         # one page of all finished results

The same command resumes an interrupted run.
"""

import os
import sys

from args.common import options_of
from args.paper_args import CLAIMED, parse_paper_args
from ldm.util import exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_paper_args(argv)
    # Imported here so that --help and errors in flags do not wait for torch.
    from ldm.device import places
    from ldm.paper.commands import claims_table, list_tables, pieces_of, read_tables
    from ldm.paper.report.build import publish, update_readme, write_report
    from ldm.paper.runner.attacks import AttackOptions
    from ldm.paper.runner.processes import PLACE, make

    if args.task != "report":
        tables = read_tables(args.what, args.seeds, options_of(AttackOptions, args))
        pieces = pieces_of(tables)
        if args.task == "list":
            print(list_tables(tables))
            return
        make(pieces, places(args.devices), args.out_dir, ", ".join(args.what[:3]) + ", ..." * (len(args.what) > 3))
        if PLACE in os.environ:
            return
        for table in tables:
            print(f"{table.table.title} ({table.name})\n\n{table.write(vars(args))}\n\n{args.out_dir / table.name / table.name}.md\n")
        if any(table.name in CLAIMED for table in tables):
            print(claims_table(args.out_dir, args.preset))
    else:
        claims_table(args.out_dir, args.preset)
    if args.task == "report" or args.whole:
        written = write_report(args.out_dir, args.preset)
        print(f"report: {', '.join(map(str, written))}")
        if args.publish:
            publish(args.out_dir, args.publish)
        if args.readme:
            update_readme(args.readme, args.out_dir)


if __name__ == "__main__":
    sys.exit(main())
