"""Benchmark of this repository on this machine: python -m ldm.benchmark [--preset mini|narrow|sd-v1-5|...] [--parts step sampling]

    python -m ldm.benchmark                                                  # the miniature, a few minutes
    python -m ldm.benchmark --preset narrow                                  # Stable Diffusion v1 made narrow
    python -m ldm.benchmark --preset sd-v1-5 --devices 0 --repeats 10        # at full size, on a GPU

The weights are random, so nothing is downloaded. Our training step alternates with the work of the released loop, and our sampling with
that of diffusers, in one process. A ratio is the median over the pairs; low and high are the smallest and the largest. The results are
results.json, .csv, .md, plot.png and arguments.json in --out_dir.
"""

from args.benchmark_args import parse_benchmark_args
from args.common import options_of
from ldm.util import exit_with_sentence

SHOWN = ("what", "variant", "ratio", "low", "high", "unit", "seconds", "peak_mb")


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_benchmark_args(argv)
    # Imported here so that --help and a mistyped flag are answered at once.
    from ldm.benchmark.parts import Benchmark, BenchmarkOptions
    from ldm.benchmark.plot import write_plot
    from ldm.evaluation.tables import console_table, write_results
    from ldm.run_folder import versions, write_json

    benchmark = Benchmark(options_of(BenchmarkOptions, args))
    rows = [{column: row.get(column) for column in SHOWN} for row in benchmark.rows()]
    write_results(rows, args.out_dir)
    write_json(args.out_dir / "arguments.json", {"arguments": vars(args), "setting": benchmark.setting,
                                                 "versions": versions() | {"diffusers": benchmark.diffusers}})
    write_plot(rows, args.out_dir / "plot.png", title=benchmark.setting)
    print(console_table(rows))
    print("\n".join(["", benchmark.setting, *(f"left out: {what}" for what in benchmark.left_out), f"written to {args.out_dir}"]))


if __name__ == "__main__":
    main()
