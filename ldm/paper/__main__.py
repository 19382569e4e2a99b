"""A table or a figure of the paper in one command, from the trainings to the numbers: python -m ldm.paper WHAT [--preset NAME]

    python -m ldm.paper table2 --preset mini                           # Table 2 and Figure 4, the competing methods beside ours
    python -m ldm.paper figure5 --preset mini                          # Figure 5, attacks that teach the model new people
    python -m ldm.paper table2 --preset sd-v1-5 --devices 0,1,2,3

Trains what is missing, draws, scores, and writes everything into --out_dir. The same command again goes on where it stopped.
"""

from args.paper_args import parse_paper_args
from ldm.util import exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_paper_args(argv)
    # Imported here so that --help and a mistyped flag are answered at once.
    if args.what == "table2":
        from ldm.paper.competition import competition
        competition(args)
    else:
        from ldm.paper.figure5 import figure5
        figure5(args)


if __name__ == "__main__":
    main()
