"""The same prefix on several models, in the layout of the paper's Table 1, and its Figure 3 (section 4.2)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.identities import GROUPS, Person
from ldm.edited_weights import is_edited_weights
from ldm.evaluation.tables import Row, write_results
from ldm.experiments.identity import table_of_model
from ldm.experiments.identity_table import IdentityOptions
from ldm.images import sheet_of_files
from ldm.loading import ModelFiles, has_two_encoders
from ldm.modules.context_map import is_map_file
from ldm.modules.embedding_file import read_embedding_file
from ldm.run_folder import image_path, write_json
from ldm.sharing import Devices
from ldm.util import UserError, warn, write_atomically

PEOPLE_SHOWN = 2  # in Figure 3
ENCODERS = {1: "one text encoder", 2: "two text encoders"}


def table_of_models(options: IdentityOptions, people: Mapping[str, Person], names: Mapping[str, Sequence[str]],
                    models: Sequence[ModelFiles], embedding: Sequence[Path], fabric: Devices, precision: str,
                    arguments: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """Rows of `table_of_model` for all models, and the same in the layout of Table 1; empty except on rank 0.

    Each model has its own folder in --out_dir, next to table1.json, .csv and .md and figure3.png. Raises UserError if two models have the
    same name, a prefix fits none of them, or a model cannot be used.
    """
    by_name, fitting = prefixes_that_fit(models, embedding)
    rows = []
    for name, files in by_name.items():
        if embedding and not fitting[name] and fabric.is_global_zero:
            encoders = ENCODERS[1 + has_two_encoders(files.config_path)]
            warn(f"none of the prefixes given is for {encoders}, which {name} has; it runs without a prefix")
        own = replace(options, out_dir=options.out_dir / name)
        rows += table_of_model(own, people, names, files, fitting[name], fabric, precision,
                               {**arguments, **asdict(files), "embedding": fitting[name], "out_dir": own.out_dir, "models": None})
    if not fabric.is_global_zero:
        return [], []
    table = table1_layout(rows)
    write_results(table, options.out_dir, name="table1")
    write_json(options.out_dir / "arguments.json", arguments)
    variants = {name: ["none", *(path.stem for path in fitting[name])] for name in by_name}
    write_atomically(options.out_dir / "figure3.png", figure3(variants, names, options.out_dir).save)
    return rows, table


def prefixes_that_fit(models: Sequence[ModelFiles], embedding: Sequence[Path]) -> tuple[dict[str, ModelFiles], dict[str, list[Path]]]:
    """Models by name, and the prefixes that fit each of them; raises the errors of `table_of_models`."""
    by_name = {files.name: files for files in models}
    if len(by_name) < len(models):
        raise UserError(f"--models {' '.join(files.name for files in models)} gives two models one name, and their images would share a "
                        "folder; rename one of the files")
    if changed := next(filter(is_edited_weights, embedding), None):
        raise UserError(f"{changed} holds edited weights, which fit only the checkpoint that they were made for, and --models compares "
                        "several models; leave out --models, or name there a YAML file with the lines 'like: PRESET' and "
                        "'edited_weights: FILE'")
    encoders = {name: 1 + has_two_encoders(files.config_path) for name, files in by_name.items()}
    made_for = {path: 1 if is_map_file(path) or read_embedding_file(path).pair is None else 2 for path in embedding}
    for path, count in made_for.items():
        if count not in encoders.values():
            raise UserError(f"the prefix {path} is for {ENCODERS[count]}, and none of the models asked for has as many; leave it out")
    return by_name, {name: [path for path in embedding if made_for[path] == count] for name, count in encoders.items()}


def table1_layout(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per model and prefix: mean and max ID-ACC on S_ID and S_test, of the base model and with the prefix.

    Args:
        rows: rows with model, prefix, group, id_acc_mean and id_acc_max; the prefixes "none" and "c2" are the base model.
            Rows without a group are ignored.
    """
    rows = [row for row in rows if "group" in row]
    by_key = {(row["model"], row["prefix"], row["group"]): row for row in rows}
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        prefixes = dict.fromkeys(row["prefix"] for row in rows if row["model"] == model and row["prefix"] not in ("none", "c2"))
        for prefix in prefixes or [None]:
            cells: dict[str, Any] = {"model": model, "prefix": prefix or "none"}
            for group, (label, source) in itertools.product(GROUPS, (("base", "none"), ("+ APL", prefix))):
                row = by_key.get((model, source, group), {})
                cells |= {f"{group} {label}": row.get("id_acc_mean"), f"{group} {label} max": row.get("id_acc_max")}
            table.append(cells)
    return [{key: value for key, value in cells.items() if any(row[key] is not None for row in table)} for cells in table]


def figure3(models: Mapping[str, Sequence[str]], people: Mapping[str, Sequence[str]], out_dir: Path) -> Image.Image:
    """Image grid with the first sample of two people: one column per person and model, the base model above, each prefix below.

    Args:
        models: name of each model, with a sub-folder in `out_dir` -> labels of its variants, with "none" first.
        people: group -> names; one person per group if there are several groups.
    """
    names = [name for group in people.values() for name in group[:max(1, PEOPLE_SHOWN // len(people))]][:PEOPLE_SHOWN]
    depth = max(map(len, models.values()))
    titles = ["base", *[f"+ APL {number}" if depth > 2 else "+ APL" for number in range(1, depth)]]
    columns = list(itertools.product(names, models))
    rows = {title: [image_path(out_dir / model, models[model][number], name, 0) if number < len(models[model]) else None
                    for name, model in columns] for number, title in enumerate(titles)}
    return sheet_of_files(rows, [f"{name}, {model}" for name, model in columns])
