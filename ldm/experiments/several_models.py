"""The same prefix on several models, in the layout of the paper's Table 1, and its Figure 3 (section 4.2)."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.apl.launch import launch
from ldm.data.identities import GROUPS
from ldm.edited_weights import is_edited_weights
from ldm.evaluation.id_acc import Row
from ldm.evaluation.tables import write_results
from ldm.experiments.identity_table import draw_and_score, people_asked_for
from ldm.loading import ModelFiles, has_two_encoders
from ldm.modules.embedding_file import read_embedding_file
from ldm.pictures import picture_grid, read_image
from ldm.run_folder import image_path, write_json
from ldm.util import UserError, warn, write_atomically

PEOPLE_SHOWN = 2  # in Figure 3
ENCODERS = {1: "one text encoder", 2: "two text encoders"}


def portability_table(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows as `identity_table` gives them, of all --models, and the same as rows of Table 1.

    Each model has a folder of its own in --out_dir; table1.json, .csv and .md and figure3.png are beside them.

    Raises:
        UserError: two models have one name, a prefix fits none of them, or one of them cannot be used.
    """
    names = [ModelFiles(**model).name for model in args.models]
    models = dict(zip(names, args.models, strict=True))
    if len(models) < len(names):
        raise UserError(f"--models {' '.join(names)} names two models alike, and their pictures would share a folder; "
                        "rename one of the files")
    if changed := next(filter(is_edited_weights, args.embedding or []), None):
        raise UserError(f"{changed} holds edited weights, which fit the checkpoint that they were made for alone, and --models compares "
                        "several models; leave out --models, or name there a YAML file with the lines 'like: PRESET' and "
                        "'edited_weights: FILE'")
    encoders = {name: 2 if has_two_encoders(model["config_path"]) else 1 for name, model in models.items()}
    made_for = {path: 1 if read_embedding_file(path).pair is None else 2 for path in args.embedding or []}  # so many encoders
    for path, count in made_for.items():
        if count not in encoders.values():
            raise UserError(f"the prefix {path} is for {ENCODERS[count]}, and none of the models asked for has as many; leave it out")
    prefixes = {name: [path for path in args.embedding or [] if made_for[path] == count] for name, count in encoders.items()}
    people, fabric = people_asked_for(args), launch(args.devices, num_nodes=args.num_nodes)
    rows = []
    for name, model in models.items():
        if made_for and not prefixes[name] and fabric.is_global_zero:
            warn(f"none of the prefixes given is for {ENCODERS[encoders[name]]}, which {name} has; it is drawn without one")
        own = argparse.Namespace(**vars(args) | model | {"embedding": prefixes[name], "out_dir": args.out_dir / name, "models": None})
        rows += draw_and_score(own, people, fabric)
    if not fabric.is_global_zero:
        return [], []
    table = table1_layout(rows)
    write_results(table, args.out_dir, name="table1")
    write_json(args.out_dir / "arguments.json", vars(args))
    figure = figure3([(name, [None, *prefixes[name]]) for name in models], people, args.out_dir)
    write_atomically(args.out_dir / "figure3.png", figure.save)
    return rows, table


def table1_layout(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row a model and prefix: mean and max ID-ACC of S_ID and S_test, of the base model and with the prefix.

    Args:
        rows: with model, prefix, group, id_acc_mean, id_acc_max; "none" and "c2" as prefixes are the model as it is.
            Rows without a group are passed over.
    """
    rows = [row for row in rows if "group" in row]
    by_key: Mapping[tuple, Row] = {(row["model"], row["prefix"], row["group"]): row for row in rows}
    table = []
    used: dict[str, dict[str, None]] = {row["model"]: {} for row in rows}  # prefixes of each model, in order
    for row in rows:
        if row["prefix"] not in ("none", "c2"):
            used[row["model"]][row["prefix"]] = None
    for model, prefix in ((model, prefix) for model, prefixes in used.items() for prefix in prefixes or [None]):
        cells: dict[str, Any] = {"model": model, "prefix": prefix or "none"}
        for group in GROUPS:
            for label, source in (("base", "none"), ("+ APL", prefix)):
                row = by_key.get((model, source, group), {})
                cells |= {f"{group} {label}": row.get("id_acc_mean"), f"{group} {label} max": row.get("id_acc_max")}
        table.append(cells)
    return [{key: value for key, value in cells.items() if any(row[key] is not None for row in table)} for cells in table]


def figure3(models: Sequence[tuple[str, Sequence[Path | None]]], people: Mapping[str, Sequence[str]], out_dir: Path) -> Image.Image:
    """The first sample of two people: a column for each person and model, the base model above, with each prefix below.

    Args:
        models: name, and None for the base model followed by its prefixes.
        people: group -> names; one is taken of each group while there are several.
        out_dir: has a folder for each model.
    """
    names = [name for group in people.values() for name in group[:max(1, PEOPLE_SHOWN // len(people))]][:PEOPLE_SHOWN]
    depth = max(len(prefixes) for _, prefixes in models)
    rows = []
    for number in range(depth):
        row = []
        for name in names:
            for model, prefixes in models:
                label = "none" if number == 0 else prefixes[number].stem if number < len(prefixes) else None
                path = None if label is None else image_path(out_dir / model, label, name, 0)
                row.append(read_image(path) if path else None)
        rows.append(row)
    return picture_grid(rows, ["base", *[f"+ APL {number}" if depth > 2 else "+ APL" for number in range(1, depth)]],
                        [f"{name}, {model}" for name in names for model, _ in models])
