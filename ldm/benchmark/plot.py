"""Plot of the benchmark table: bars of the ratios, and one curve per quantity that grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.util import write_atomically

BARS = {"naive / this": "released loop's work / this (longer is better)", "ours / diffusers": "ours / diffusers (shorter is better)"}
AXES = {"growth batch": "samples in a step", "growth m": "vectors of the prefix (m)", "growth devices": "devices",
        "growth sampling batch": "images per batch"}


def write_plot(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> None:
    """Write plot.png: one panel per unit of `BARS`, with bars from low to high, and one per growth; nothing if there is neither."""
    from matplotlib.figure import Figure

    panels = [(_bars, label, [row for row in rows if row["unit"] == unit and row["low"] is not None]) for unit, label in BARS.items()]
    panels += [(_curve, label, [row for row in rows if row["what"] == what]) for what, label in AXES.items()]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return
    heights = [max(6, len(found)) if plot is _bars else 12 for plot, _, found in panels]
    figure = Figure(figsize=(11, 1.5 + 0.27 * sum(heights)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for (plot, label, found), place in zip(panels, axes, strict=True):
        plot(place, found)
        place.set_xlabel(label)
    write_atomically(path, lambda target: figure.savefig(target, dpi=120))


def _bars(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    places = range(len(rows), 0, -1)  # the first row on top
    reach = [[row["ratio"] - row["low"] for row in rows], [row["high"] - row["ratio"] for row in rows]]
    colors = ["tab:blue" if row["variant"].startswith("ours") else "tab:gray" for row in rows]
    bars = axes.barh(places, [row["ratio"] for row in rows], xerr=reach, color=colors, ecolor="black", capsize=2)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=8)
    axes.set_yticks(places, [f"{row['what']}: {row['variant']}" for row in rows], fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.margins(x=0.1, y=0.02)


def _curve(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    values = [int(row["variant"]) for row in rows]
    axes.plot(values, [row["seconds"] for row in rows], marker="o")
    axes.set_xticks(values, [f"{value}" for value in values])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("s per image" if "sampling" in rows[0]["what"] else "s per sample")
    axes.grid(alpha=0.3)
