"""Plot of the benchmark table: bars of the ratios, and one curve per quantity that grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.util import write_atomically

BARS = {"naive / this": "released loop's work / this (longer is better)", "ours / diffusers": "ours / diffusers (shorter is better)"}
AXES = {"growth batch": "samples in a step", "growth m": "vectors of the prefix (m)", "growth devices": "devices",
        "growth sampling batch": "images per batch"}


def draw_plot(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> None:
    """Write plot.png: one panel per unit of `BARS`, with bars from low to high, and one per growth; rows keep their order.

    Writes nothing if there is neither.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = {unit: [row for row in rows if row["unit"] == unit and row["low"] is not None] for unit in BARS}
    curves = {what: [row for row in rows if row["what"] == what] for what in AXES}
    bars, curves = ({name: found for name, found in panels.items() if found} for panels in (bars, curves))
    if not bars and not curves:
        return
    lines = [max(6, len(found)) for found in bars.values()] + [12] * ((len(curves) + 1) // 2)
    figure = pyplot.figure(figsize=(11, 1.5 + 0.27 * sum(lines)), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(len(lines), 2, height_ratios=lines)
    for number, (unit, found) in enumerate(bars.items()):
        _bars(figure.add_subplot(grid[number, :]), found, BARS[unit])
    for number, (what, found) in enumerate(curves.items()):
        _curve(figure.add_subplot(grid[len(bars) + number // 2, number % 2]), found, AXES[what])
    write_atomically(path, lambda target: figure.savefig(target, dpi=120))
    pyplot.close(figure)


def _bars(axes: Any, rows: Sequence[dict[str, Any]], label: str) -> None:
    places = [len(rows) - number for number in range(len(rows))]  # the first row on top
    medians = [row["ratio"] for row in rows]
    reach = [[row["ratio"] - row["low"] for row in rows], [row["high"] - row["ratio"] for row in rows]]
    colours = ["tab:blue" if row["variant"].startswith("ours") else "tab:gray" for row in rows]
    axes.barh(places, medians, xerr=reach, color=colours, ecolor="black", capsize=2)
    axes.set_yticks(places, [f"{row['what']}: {row['variant']}" for row in rows], fontsize=8)
    for place, row in zip(places, rows, strict=True):
        axes.annotate(f"{row['ratio']:.2f}", (row["high"], place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.margins(x=0.1, y=0.02)
    axes.set_xlabel(label)


def _curve(axes: Any, rows: Sequence[dict[str, Any]], label: str) -> None:
    values = [int(row["variant"]) for row in rows]
    axes.plot(values, [row["seconds"] for row in rows], marker="o")
    axes.set_xticks(values, [f"{value}" for value in values])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("s an image" if "sampling" in rows[0]["what"] else "s a sample")
    axes.grid(alpha=0.3)
