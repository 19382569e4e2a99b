"""Measured values as text: published | measured, mean and standard deviation over trainings, 95 % interval."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ldm.paper.report.files import Finished
from ldm.paper.results.cells import Cell, published_in_words


class Value(NamedTuple):
    """A formatted number; `best` marks the best of its column."""

    text: str
    spread: str = ""
    interval: str = ""
    best: bool = False


class Column(NamedTuple):
    """`halves` are the two columns below its title, none for a single column."""

    title: str
    halves: Sequence[str] = ()


class Numbers(NamedTuple):
    """A table of numbers: name and values per row, one value per column or half of a column."""

    caption: str
    first: str  # title of the names
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Value]]]


# Whether lower (-1), higher (1) or neither is better; decimals; meaning.
MEANING = {
    "ID-ACC, S_test": (-1, 3, "cosine of the generated face and the person's reference face, for people of S_test, whom no training names"),
    "max, S_test": (-1, 3, "the same, for each person's closest image"),
    "faces, S_test": (1, 3, "share of the images of S_test in which a face is detected; ID-ACC excludes the others"),
    "Attr-ACC, S_test": (1, 3, "cosine of facial attribute features to the base model's images of the same person of S_test, from other "
                               "noise; the paper compares with 'the ground truths'"),
    "FID (id), S_test": (-1, 2, "distance to the base model's images of the same prompts with names of S_test"),
    "ID-ACC": (-1, 3, "the same as ID-ACC, S_test, for people of S_ID, whom the training names; in Figure 5 for those whom an attack "
                      "teaches"),
    "max": (-1, 3, "the same, for each person's closest image"),
    "faces": (1, 3, "share of the images of S_ID in which a face is detected"),
    "Attr-ACC": (1, 3, "the same as Attr-ACC, S_test, for people of S_ID"),
    "FID (id)": (-1, 2, "the same as FID (id), S_test, with names of S_ID"),
    "FID (non-id)": (-1, 2, "distance to the base model's images of the same prompts without a name"),
    "CLIP": (1, 3, "cosine of image and prompt, for prompts without a name"),
    "faces, prompts": (0, 3, "share of the images of prompts without a name in which a face is detected"),
    "H_c": (1, 3, "harmonic mean of 1 - Acc_e and Acc_s"),
    "Acc_e": (-1, 3, "share of the images with a face that are recognized as the person, for names to erase"),
    "Acc_s": (1, 3, "the same for names to keep"),
    "Acc, S_test": (-1, 3, "the same for people in no list"),
    "Acc_e, misspelt": (-1, 3, "share of all images recognized as an erased person, by the largest face, for attacks on the gate"),
    "seconds": (-1, 0, "time of a training"),
    "memory MB": (-1, 0, "peak memory of a training"),
    "result kB": (-1, 0, "size of a training's result"),
    "rank-1": (0, 3, "share of an attack's images whose largest face is nearest to that person in the gallery; no face is a failure"),
    "at FAR": (0, 3, "the same by a cosine that at most a given share (far) of the gallery's pairs of different people reaches"),
    "with a face": (0, 3, "share of an attack's images in which a face is detected"),
    "cosine": (0, 3, "mean cosine of an attack's images with a face to the person's reference face"),
    "ID-ACC of base": (0, 3, "this cosine divided by that of the base model's images of the name"),
    "1000 calls": (0, 1, "U-Net evaluations of an attack's search per person, in thousands; a backward pass counts as one more"),
}
UNKNOWN = (0, 3, "")
NOTHING = Value("–")
SUMMARY = {"ID-ACC, S_test": "ID-ACC, people never seen", "ID-ACC": "ID-ACC, people of the training",
           "FID (id), S_test": "FID, people never seen", "FID (id)": "FID, people of the training",
           "Attr-ACC, S_test": "Attr-ACC, people never seen", "Attr-ACC": "Attr-ACC, people of the training",
           "FID (non-id)": "FID, prompts without a name", "CLIP": "CLIP, the same prompts"}
SUMMARY_ROWS = {"base": "without the prefix", "ours": "with the prefix"}


def numbers(part: Finished, rows: Sequence[str] | None = None) -> Numbers:
    """All rows of a table or figure, or the given ones, with the table's columns."""
    names = [row["name"] for row in part.rows] if rows is None else rows
    columns = [column for column in part.columns if any(part.cell(name, column) for name in names)]
    halves = {column: any(cell.published is not None for name in names if (cell := part.cell(name, column))) for column in columns}
    best = {column: _best([cell.mean for name in names if (cell := part.cell(name, column)) and cell.mean is not None], column)
            for column in columns}
    lines = []
    for name in names:
        values, seeds = [], set()
        for column in columns:
            cell = part.cell(name, column)
            seeds |= {cell.n_seeds} if cell and cell.mean is not None else set()
            values += [_published(cell, column)] * halves[column] + [_measured(cell, column, best[column])]
        lines.append((name, [*values, Value(" to ".join(str(n) for n in sorted({min(seeds), max(seeds)})) if seeds else "–")]))
    head = [Column(_title(column), ("published", "measured") if halves[column] else ()) for column in columns]
    return Numbers(f"{part.label}: {part.title}", "row", [*head, Column("trainings")], lines)


def ends(part: Finished) -> list[str] | None:
    """The last row of each curve if every row is a point of a curve, "dreambooth, with, 100"; None for other tables."""
    names = [row["name"] for row in part.rows]
    last = names[-1].rpartition(", ")[2]
    return [name for name in names if name.endswith(f", {last}")] if all(re.search(r", \d+$", name) for name in names) else None


def summary(table2: Finished) -> Numbers:
    """Effect of the prefix: two rows of Table 2, side by side."""
    lines = [(f"{title} {_arrow(column)}", [_with_published(cell, column) for cell in cells]) for column, title in SUMMARY.items()
             if any(cells := [table2.cell(row, column) for row in SUMMARY_ROWS])]
    return Numbers("What the prefix does", "", [Column(title) for title in SUMMARY_ROWS.values()], lines)


def meanings(parts: Sequence[Finished]) -> list[tuple[str, str]]:
    """Meaning of each column of these tables."""
    shown = {column for part in parts for column in part.columns}
    return [(_title(column), text) for column, (_, _, text) in MEANING.items() if column in shown]


def duration(seconds: float) -> str:
    """"45 s", "9 min", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _measured(cell: Cell | None, column: str, best: float | None = None) -> Value:
    if cell is None or cell.mean is None:
        return NOTHING
    mean, sd, low, high = (f"{value or 0:.{MEANING.get(column, UNKNOWN)[1]}f}" for value in (cell.mean, cell.sd, cell.low, cell.high))
    return Value(mean, "" if cell.sd is None else f"± {sd}", "" if cell.low is None else f"[{low}, {high}]", cell.mean == best)


def _best(means: Sequence[float], column: str) -> float | None:
    """The best value of a column, None if no value is better than another."""
    sense = MEANING.get(column, UNKNOWN)[0]
    return None if sense == 0 or not means or min(means) == max(means) else sense * max(sense * mean for mean in means)


def _with_published(cell: Cell | None, column: str) -> Value:
    """The measured value, with the published value in place of the interval."""
    paper = _published(cell, column)
    return _measured(cell, column)._replace(interval="" if paper is NOTHING else f"(paper: {paper.text})")


def _published(cell: Cell | None, column: str) -> Value:
    if cell is None or cell.published is None:
        return NOTHING
    return Value(published_in_words(cell.published, MEANING.get(column, UNKNOWN)[1]))


def _arrow(column: str) -> str:
    return {-1: "↓", 0: "", 1: "↑"}[MEANING.get(column, UNKNOWN)[0]]


def _title(column: str) -> str:
    return f"{column} {_arrow(column)}".strip()
