"""Table 2 with the competing methods, and Figure 4 (paper section 4.3): what is missing is trained, then all rows are drawn and scored.

    <out_dir>/training/<row>-<hash of its flags>/    what train.py writes
    <out_dir>/pictures/<part>/                       see ldm/paper/quality.py; S_ID and S_test: people; prompts: no names
    <out_dir>/table2.csv, .json, .md                 published beside measured
    <out_dir>/results.csv, .json, .md                a row a part and method, with all that was measured
    <out_dir>/figure4.png

Other flags of a row are another training, and another result has other pictures: nothing is taken for what it is not.
"""

import argparse
import hashlib
import json
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from args.common import as_flags
from args.test_fid_clip_score_args import build_parser as score_parser
from args.test_fid_clip_score_args import parse_test_fid_clip_score_args
from args.train_args import build_parser as train_parser
from args.train_args import parse_train_args
from ldm.apl.launch import launch, set_precision
from ldm.apl.workers import STARTED_BY
from ldm.device import pick_precision
from ldm.evaluation.id_acc import Row
from ldm.evaluation.tables import console_table, write_results
from ldm.fabric import Fabric
from ldm.loading import ModelFiles, file_hash
from ldm.paper.identity import Prefix, load_prefixes
from ldm.paper.quality import LABEL
from ldm.paper.rows import Table, TableRow, read_table
from ldm.paper.runs import train_missing
from ldm.paper.table2 import QualityTable
from ldm.pictures import picture_grid, read_image
from ldm.run_folder import image_path, versions, write_json
from ldm.util import UserError, write_atomically

PARTS = {"S_ID": ("--half", "id", "--group", "train"), "S_test": ("--half", "id", "--group", "test"),
         "prompts": ("--half", "non_id")}  # what is drawn, by the flags of test_fid_clip_score.py
COLUMNS = {"ID-ACC": ("S_ID", "id_acc_mean"), "ID-ACC, S_test": ("S_test", "id_acc_mean"), "faces": ("S_ID", "detection_rate"),
           "Attr-ACC": ("S_ID", "attr_acc"), "FID (id)": ("S_ID", "fid"), "FID (non-id)": ("prompts", "fid"), "CLIP": ("prompts", "clip")}
PUBLISHED = ("ID-ACC", "Attr-ACC", "FID (id)", "FID (non-id)", "CLIP")
COSTS = {"seconds": ("seconds", 1), "memory MB": ("peak_memory_bytes", 1e6), "result kB": ("result_bytes", 1e3)}  # column: key, unit
BESIDE = ("out_dir", "embeddings_dir", "devices", "num_nodes", "resume", "dry_run", "preset")  # what no result depends on
SHOWN = {"S_ID": 2, "S_test": 2, "prompts": 4}  # columns of Figure 4

REMARK = """ID-ACC, faces found, Attr-ACC and FID (id) are of S_ID, whose names the methods erase; nobody has told them those of S_test.
seconds and memory: of each training as it ran on --devices {devices}
published values, pictures and all that was measured: {out_dir}"""

Cost = Mapping[str, Any]


class Drawn(NamedTuple):
    """What was drawn and scored."""

    prefixes: Sequence[Prefix]  # or edited weights, of each method
    rows: Sequence[Row]         # of each part and method; none but on the first device
    texts: Mapping[str, Sequence[tuple[str, int]]]  # of each part: name or prompt, and number of the noise


def competition(args: argparse.Namespace) -> None:
    """The table and the figure, from the flags of python -m ldm.paper table2."""
    table = read_table(args.rows, Path(args.preset).stem, PUBLISHED)
    parts = {part: _quality_args(args, table, part) for part in PARTS}  # what is missing is said before hours of training
    trainings = {method.name: _training(args, method) for method in table.methods if method.train}
    if not args.resume and STARTED_BY not in os.environ:
        for folder in ("training", "pictures"):
            shutil.rmtree(args.out_dir / folder, ignore_errors=True)
    # Before `launch`, whose processes would wait for each other too long; those that it starts find nothing missing.
    train_missing(dict(trainings.values()), devices=args.devices, label="Table 2, trainings")
    costs = {method.name: _cost(method, trainings) for method in table.methods}

    fabric = launch(args.devices)
    drawn = draw_and_score(fabric, table.methods, parts, costs)
    if fabric.is_global_zero:
        measured = table2_layout(table.methods, drawn.rows)
        write_results(drawn.rows, args.out_dir)
        write_results(beside_published(table.methods, measured), args.out_dir, name="table2")
        write_json(args.out_dir / "arguments.json", {"arguments": vars(args), "versions": versions()})
        sheet = figure4(table.methods, drawn, parts)
        write_atomically(args.out_dir / "figure4.png", sheet.save)
        print(f"{console_table(measured)}\n\n{REMARK.format(devices=args.devices, out_dir=args.out_dir)}")


def draw_and_score(fabric: Fabric, methods: Sequence[TableRow], parts: Mapping[str, argparse.Namespace],
                   costs: Mapping[str, Cost]) -> Drawn:
    """Draws and scores all parts with all methods, on all devices together."""
    args = next(iter(parts.values()))
    files, precision = ModelFiles.of(args), pick_precision(args.precision, fabric.device)
    model = files.load(fabric.device)
    set_precision(model, precision)
    results = [Path(costs[method.name]["result"]) for method in methods[1:]]
    labels = [f"{method.slug}-{file_hash(result)[:8]}" for method, result in zip(methods[1:], results, strict=True)]
    prefixes = load_prefixes(model, results, files, labels)
    rows, texts = [], {}
    for part, part_args in parts.items():
        part_args.embedding, part_args.anonymize = results, True
        table = QualityTable(part_args, fabric.device)
        drawn, texts[part] = table.drawn(fabric, model, prefixes, precision), table.texts[part_args.half[0]]
        rows += [row | {"method": method.name, "part": part} | {key: costs[method.name].get(key) for key, _ in COSTS.values()}
                 for method, row in zip(methods if drawn else (), drawn, strict=True)]
    return Drawn(prefixes, rows, texts)


def table2_layout(methods: Sequence[TableRow], rows: Sequence[Row]) -> list[Row]:
    """One row a method: `COLUMNS`, then what it has cost."""
    found = {(row["method"], row["part"]): row for row in rows}
    return [{"method": method.name} | {column: found[method.name, part][key] for column, (part, key) in COLUMNS.items()}
            | {column: _rounded(found[method.name, "S_ID"][key], unit) for column, (key, unit) in COSTS.items()} for method in methods]


def beside_published(methods: Sequence[TableRow], measured: Sequence[Row]) -> list[Row]:
    """The rows of `table2_layout` with the paper's values behind those columns for which there are any."""
    known = {column for method in methods for column in method.published}
    return [{title: value for column, own in row.items() for title, value in
             [(column, own), *([(f"{column} (paper)", method.published.get(column))] if column in known else [])]}
            for method, row in zip(methods, measured, strict=True)]


def figure4(methods: Sequence[TableRow], drawn: Drawn, parts: Mapping[str, argparse.Namespace]) -> Image.Image:
    """A row a method that is shown there, a column a person or prompt; the pictures are the table's, of equal noise in a column."""
    labels, columns = [], []
    for part, args in parts.items():
        texts = drawn.texts[part][:SHOWN[part]]
        turns = len(args.benchmark or [part])  # files of prompts take turns; here each has its columns together
        for text, sample in (text for first in range(turns) for text in texts[first::turns]):
            labels.append(textwrap.shorten(text, LABEL) if part == "prompts" else f"{text} ({part})")
            columns.append((args.out_dir / args.half[0], text, sample))
    shown = [(method.name, prefix.label) for method, prefix in zip(methods, drawn.prefixes, strict=True) if method.figure4]
    files = [[image_path(folder, label, text, sample) for folder, text, sample in columns] for _, label in shown]
    pictures = [[read_image(file) if file.exists() else None for file in row] for row in files]  # --keep_images may be small
    return picture_grid(pictures, [name for name, _ in shown], labels, cell=160)


def _quality_args(args: argparse.Namespace, table: Table, part: str) -> argparse.Namespace:
    """The checked flags of test_fid_clip_score.py for one part, without prefixes."""
    flags = as_flags(score_parser(), table.score, str(args.rows))
    return parse_test_fid_clip_score_args(["--preset", args.preset, *flags, *PARTS[part], "--no-anonymize", "--devices", args.devices,
                                           "--out_dir", str(args.out_dir / "pictures" / part)])


def _training(args: argparse.Namespace, method: TableRow) -> tuple[Path, list[str]]:
    """The folder of a training, and the flags of train.py, which have been checked."""
    flags = ["--preset", args.preset, "--prompt", method.slug, "--eval_names", "0",
             *as_flags(train_parser(), method.train, f"{args.rows}, row '{method.name}',")]
    resolved = {flag: file_hash(value) if isinstance(value, Path) and value.is_file() else str(value)
                for flag, value in vars(parse_train_args(flags)).items() if flag not in BESIDE}
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:8]
    return args.out_dir / "training" / f"{method.slug}-{digest}", flags


def _cost(method: TableRow, trainings: Mapping[str, tuple[Path, list[str]]]) -> Cost:
    """What train.py says of a finished training; of a file that was there, its size alone; nothing of the model as it is."""
    if method.result:
        return {"result": method.result, "result_bytes": method.result.stat().st_size}
    if method.name not in trainings:
        return {}
    folder = trainings[method.name][0]
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    if not Path(cost["result"]).is_file():
        raise UserError(f"{cost['result']}, which the training in {folder} has made, is not there; put it back, or delete {folder} to "
                        "train it again")
    return cost


def _rounded(value: float | None, unit: float) -> int | None:
    return None if value is None else round(value / unit)
