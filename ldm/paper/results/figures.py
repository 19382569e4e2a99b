"""Grids of images from the same noise (Figures 1, 3, 4, 7), and plots of curves with intervals (Figures 5, 6 and 8)."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.images import sheet_of_files
from ldm.paper.config import PARTS
from ldm.paper.results.cells import Cell
from ldm.paper.runner.evaluations import Part
from ldm.util import UserError, write_atomically

CELL = 160  # side of an image in pixels


@dataclass(frozen=True)
class Panel:
    """Curves in one plot."""

    title: str
    y: str                                             # label of the vertical axis
    lines: Mapping[str, Sequence[tuple[float, Cell]]]  # label -> points (x, cell)
    level: tuple[str, float] | None = None             # label and height of a dotted horizontal line


def image_sheet(rows: Mapping[str, Mapping[str, Part]], figure: Mapping[str, Any]) -> Image.Image:
    """Image grid with one row for each of `rows` and one column per person or prompt; UserError if an image does not exist.

    `rows` maps labels to parts by name, `figure` maps parts to numbers of columns.
    """
    labels: list[str] = []
    files: dict[str, list[Path]] = {row: [] for row in rows}
    for name in PARTS:
        for text, sample in next(iter(rows.values()))[name].texts[:figure.get(name, 0)]:
            labels.append(text if name == "prompts" else f"{text} ({name})")
            for row, parts in rows.items():
                path = parts[name].image(text, sample)
                if not path.exists():
                    raise UserError(f"{path} is not there for the figure; delete {parts[name].folder}, and the same command generates it "
                                    "again (the table's 'keep_images' must be as large as the figure)")
                files[row].append(path)
    return sheet_of_files(files, labels, cell=CELL)


def plot_panels(panels: Sequence[Panel], x: str, path: Path, *, is_log: bool = False) -> None:
    """Plot the panels side by side, with means and 95 % intervals; `x` is the label of all horizontal axes, logarithmic but for 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, points in panel.lines.items():
            places = [place for place, _ in points]
            line, = axis.plot(places, [cell.mean for _, cell in points], marker="o", label=label)
            low, high = (np.array(ends, float) for ends in ([cell.low for _, cell in points], [cell.high for _, cell in points]))
            axis.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        if panel.level:
            axis.axhline(panel.level[1], color="black", linestyle=":", label=panel.level[0])
        axis.set(title=panel.title, xlabel=x, ylabel=panel.y)
        if is_log:
            axis.set_xscale("symlog", linthresh=min((place for points in panel.lines.values() for place, _ in points if place), default=1))
        axis.grid(alpha=0.3)
        if panel.lines:
            axis.legend()
    write_atomically(path, lambda target: figure.savefig(target, dpi=120))


def plot_grid(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell | None]], label: str, path: Path) -> None:
    """Plot a grid of cells, colored by their means from 0 to 1, with mean and 95 % interval in each; `label` is that of the colors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 1.5 * len(columns), 1.5 + 0.7 * len(rows)), layout="constrained")
    axis = figure.subplots()
    means = [[np.nan if cell is None or cell.mean is None else cell.mean for cell in row] for row in cells]
    figure.colorbar(axis.imshow(np.array(means, float), vmin=0, vmax=1, cmap="viridis_r", aspect="auto"), label=label)
    for place, mean in np.ndenumerate(means):
        cell = cells[place[0]][place[1]]
        text = "no face" if np.isnan(mean) else f"{mean:.2f}\n{cell.interval.strip()}"
        axis.text(place[1], place[0], text, ha="center", va="center", fontsize=8, color="white" if mean > 0.5 else "black")
    axis.set_xticks(range(len(columns)), [textwrap.fill(column, 16) for column in columns])
    axis.set_yticks(range(len(rows)), rows)
    write_atomically(path, lambda target: figure.savefig(target, dpi=120))


def plot_bars(rows: Sequence[str], bars: Mapping[str, Sequence[Cell | None]], x: str, path: Path) -> None:
    """Plot horizontal bars with 95 % intervals, one group per row and one bar in it for each of `bars`; `x` is the label of the axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(bars)
    for number, (label, cells) in enumerate(bars.items()):
        known = [(place + number * height, cell) for place, cell in enumerate(cells) if cell is not None and cell.mean is not None]
        if not known:
            continue
        spread = [[max(cell.mean - cell.low, 0) for _, cell in known], [max(cell.high - cell.mean, 0) for _, cell in known]]
        axis.barh([place for place, _ in known], [cell.mean for _, cell in known], height, xerr=spread, label=label)
    axis.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], rows)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set(xlabel=x)
    axis.grid(alpha=0.3, axis="x")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(bars))  # within the axis it hides bars
    write_atomically(path, lambda target: figure.savefig(target, dpi=120))
