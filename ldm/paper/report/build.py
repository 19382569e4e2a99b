"""The report: all finished tables and figures with published and measured values, and the claims, as HTML and Markdown.

    python -m ldm.paper report --preset mini

    <out_dir>/report.html    one self-contained file
    <out_dir>/report.md      the same as Markdown; links images such as <out_dir>/figure1.webp
"""

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ldm.paper.config import slug
from ldm.paper.report.files import NAMES, Finished, read_claims, read_finished
from ldm.paper.report.numbers import Column, Numbers, Value, duration, ends, meanings, numbers, summary
from ldm.paper.report.render import ReportImage, markdown_numbers, render
from ldm.util import UserError, write_atomically, write_text

BEGIN, END = "<!-- results: python -m ldm.paper report -->", "<!-- end of results -->"
VERDICTS = ("holds", "inconclusive", "does not hold", "not measured")
WHAT = ("Ten learned vectors stand in front of every prompt of a frozen Stable Diffusion, so that a name yields somebody else "
        "(Anonymization Prompt Learning, arXiv 2405.16895). This report shows the paper's published values next to the values that this "
        "repository measures.")
MINIATURE = ("All values were measured on the miniature Stable Diffusion that this repository trains and ships, with people, a face "
             "recognizer and a CLIP of its own. Rows can be compared with each other. The published values are those of the full Stable "
             "Diffusion, measured by other networks: compare directions, not digits.")
READING = ("A measured value is the mean over trainings with different seeds ± their standard deviation, then the 95 % interval of the "
           "mean, over trainings and over people or prompts; of FID over trainings alone. ↓: lower is better, ↑: higher. The best measured "
           "value of each column is bold. –: not published, or not measured.")


def write_report(out_dir: Path, preset: str) -> list[Path]:
    """Write report.html, report.md and the images that it links, and return them; UserError if nothing is finished."""
    finished, claims = read_finished(out_dir), read_claims(out_dir)
    if not finished:
        raise UserError(f"nothing is finished in {out_dir}; make something first, as with python -m ldm.paper table1 --preset {preset}")
    shown = report(finished, claims, preset)
    for name, form in {"report.html": "html", "report.md": "markdown"}.items():
        write_text(out_dir / name, render(form, shown))
    images = [image for part in [shown["before_after"] or {"images": []}, *shown["parts"]] for image in part["images"]]
    for image in images:
        write_atomically(out_dir / image.name, partial(Path.write_bytes, data=image.encoded[1]))
    return [out_dir / name for name in ("report.html", "report.md", *(image.name for image in images))]


def publish(out_dir: Path, folder: Path) -> list[Path]:
    """Copy the report of `out_dir` and the images that it links into a folder; UserError if there is no report."""
    report = out_dir / "report.md"
    linked = re.findall(r"^!\[.*\]\(([\w-]+\.(?:png|webp))\)$", report.read_text("utf-8") if report.exists() else "", re.MULTILINE)
    names = ["report.html", "report.md", *linked]
    for name in names:
        if not (out_dir / name).is_file():
            raise UserError(f"{out_dir / name} is not there; write the report first with python -m ldm.paper report")
        write_atomically(folder / name, partial(shutil.copyfile, out_dir / name))
    return [folder / name for name in names]


def update_readme(readme: Path, out_dir: Path) -> None:
    """Write the summary of Table 2 and the count of verdicts between BEGIN and END; UserError without these lines or Table 2."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme} has no place for the results; add the lines '{BEGIN}' and '{END}', each once")
    finished, claims = read_finished(out_dir), read_claims(out_dir)
    if "table2" not in finished:
        raise UserError(f"table2 is not finished in {out_dir}; make it first with python -m ldm.paper table2")
    table2 = finished["table2"]
    said = f"Trainings: {_trainings(table2.seeds)}, with the preset {table2.preset}. {_count(claims)}".strip()
    before, behind = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme, "\n\n".join([f"{before}{BEGIN}", markdown_numbers(summary(table2)), said, f"{END}{behind}"]))


def report(finished: Mapping[str, Finished], claims: Sequence[Mapping[str, str]], preset: str) -> dict[str, Any]:
    """Variables of report.jinja."""
    parts, table2, figure1 = list(finished.values()), finished.get("table2"), finished.get("figure1")
    before_after = {"title": figure1.title, "images": _images(figure1)} if figure1 and figure1.images else None
    missing = [name for name in NAMES if name not in finished]
    links = [*[("Images", "before-after")] * bool(before_after), ("Claims", "claims"), *[("Summary", "summary")] * bool(table2),
             ("Reading", "reading"), *((part.label, slug(part.name)) for part in parts), ("Settings", "settings")]
    spent = {part.label: part.spent for part in parts}
    spent["all, what several share counted once"] = {piece: seconds for part in parts for piece, seconds in part.spent.items()}
    times = [(label, [Value(duration(sum(pieces.values())))]) for label, pieces in spent.items()]
    return {
        "title": "Anonymization Prompt Learning: published and measured", "links": links,
        "introduction": [WHAT, MINIATURE] if preset.startswith("mini") else [WHAT],
        "ran_on": {"preset": preset, "finished": max(part.day for part in parts),
                   "trainings": _trainings(max(part.seeds for part in parts)),
                   "devices": ", ".join(sorted({part.devices for part in parts})), "versions": _versions(parts)}.items(),
        "missing": missing and f"python -m ldm.paper {' '.join(missing)} --preset {preset}", "before_after": before_after,
        "claims": claims, "count": _count(claims), "check": f"python -m ldm.paper report --preset {preset}",
        "summary": table2 and summary(table2), "reading": READING, "meanings": meanings(parts), "parts": [*map(_section, parts)],
        "settings": _settings(parts), "versions": _versions(parts), "times": Numbers("Times", "", [Column("computation")], times)}


def _section(part: Finished) -> dict[str, Any]:
    """A table or figure: numbers, images, remark, and the commands that make it again."""
    shown = ends(part)
    again = [("All of it", [f"python -m ldm.paper {part.source} --preset {part.preset} --seeds {part.seeds}"])]
    for (commands, seconds), rows in groupby(part.rows, key=lambda row: (row["commands"], row["seconds"])):
        first, *_, last = [row["name"] for row in rows] * 2
        name = first if first == last else f"{first} to {last}"
        took = f", {duration(seconds)}" if seconds else ""
        again.append((f"{name}{took}", commands) if commands else (f"{name}: nothing is trained", []))
    return {"label": part.label, "title": part.title, "anchor": slug(part.name), "section": part.section, "remark": part.remark,
            "numbers": numbers(part, shown), "all_numbers": shown and numbers(part), "again": again,
            "images": [] if part.name == "figure1" else _images(part)}  # those of Figure 1 are at the top


def _images(part: Finished) -> list[ReportImage]:
    rows = ", ".join(row["name"] for row in part.rows)
    found = []
    for path in part.images:
        is_curve = path.name == "figure5.png" or (part.kind in ("curve", "bars", "grid") and not path.stem.endswith("-pictures"))
        if is_curve:
            shows, caption = f"{'curves' if part.kind not in ('bars', 'grid') else 'rates'} of {', '.join(part.columns)}", part.title
        elif part.name == "figure5":
            shows, caption = "photos of each person, and images of the attacked model", "one column per person whom the attacks teach"
        else:
            shows, caption = f"images, one row for each of: {rows}", "the same prompts with the same noise in each row"
        found.append(ReportImage(path, f"{part.label}, {part.title}: {shows}", f"{part.label}: {caption}.", not is_curve))
    return found


def _settings(parts: Sequence[Finished]) -> list[tuple[str, str]]:
    """Tables and figures that share settings, and the settings as flags."""
    settings: dict[str, list[str]] = {}
    for part in parts:
        settings.setdefault(" ".join(f"--{key} {value}" for key, value in part.settings.items()), []).append(part.label)
    return [(", ".join(labels), flags) for flags, labels in settings.items() if flags]


def _versions(parts: Sequence[Finished]) -> str:
    """Each library with its versions, several if the tables were made with several."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for library, version in part.versions.items():
            found.setdefault(str(library), set()).add(str(version))
    return ", ".join(f"{library} {' and '.join(sorted(versions))}" for library, versions in found.items())


def _count(claims: Sequence[Mapping[str, str]]) -> str:
    """"Of 15 claims: holds 11, does not hold 4."; nothing without claims."""
    count = Counter(claim["verdict"] for claim in claims)
    said = ", ".join(f"{verdict} {count[verdict]}" for verdict in VERDICTS if count[verdict])
    return f"Of {len(claims)} claims: {said}." if said else ""


def _trainings(seeds: int) -> str:
    return f"{'one' if seeds == 1 else f'up to {seeds}'} of each row"
