"""The same prefix on several models, in the layout of the paper's Table 1, and its Figure 3 (section 4.2)."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.apl.launch import launch
from ldm.data.identities import GROUPS
from ldm.evaluation.id_acc import Row
from ldm.evaluation.tables import write_results
from ldm.loading import ModelFiles, has_two_encoders
from ldm.modules.embedding_file import SDXL_KEYS, read_embedding_file
from ldm.paper.table1 import draw_and_score, people_asked_for
from ldm.pictures import picture_grid, read_image
from ldm.run_folder import image_path, write_json
from ldm.util import UserError, warn, write_atomically

PEOPLE_SHOWN = 2  # in Figure 3


def portability_table(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows as `identity_table` gives them, of all --models, and the same as rows of Table 1.

    Each model has a folder of its own in --out_dir; table1.json, .csv and .md and figure3.png are beside them.

    Raises:
        UserError: two models have one name, a prefix fits none of them, or one of them cannot be used.
    """
    models = {ModelFiles(**model).name: model for model in args.models}
    if len(models) < len(args.models):
        raise UserError(f"--models {' '.join(ModelFiles(**model).name for model in args.models)} names two models alike, and their "
                        "pictures would share a folder; rename one of the files")
    prefixes = {name: [path for path in args.embedding or [] if fits(path, model["config_path"])] for name, model in models.items()}
    for path in args.embedding or []:
        if not any(path in fitting for fitting in prefixes.values()):
            raise UserError(f"the prefix {path} is for {'two text encoders' if is_pair(path) else 'one text encoder'}, and none of the "
                            "models asked for has as many; leave it out")
    people, fabric = people_asked_for(args), launch(args.devices, num_nodes=args.num_nodes)
    rows = []
    for name, model in models.items():
        if args.embedding and not prefixes[name] and fabric.is_global_zero:
            encoders = "two text encoders" if has_two_encoders(model["config_path"]) else "one text encoder"
            warn(f"none of the prefixes given is for {encoders}, which {name} has; it is drawn without one")
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


def is_pair(path: Path) -> bool:
    """Whether a prefix has vectors for two text encoders."""
    return set(read_embedding_file(path).vectors) == set(SDXL_KEYS)


def fits(path: Path, config_path: Path) -> bool:
    """Whether a prefix is for as many text encoders as the model of a config has."""
    return is_pair(path) == has_two_encoders(config_path)


def table1_layout(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row a model and prefix: mean and max ID-ACC of S_ID and S_test, of the base model and with the prefix.

    Args:
        rows: with model, prefix, group, id_acc_mean, id_acc_max; "none" and "c2" as prefixes are the model as it is.
            Rows without a group are passed over.
    """
    rows = [row for row in rows if "group" in row]
    by_key: Mapping[tuple, Row] = {(row["model"], row["prefix"], row["group"]): row for row in rows}
    table = []
    prefixes: dict[str, dict[str, None]] = {}  # of each model, in order
    for row in rows:
        prefixes.setdefault(row["model"], {}).update({} if row["prefix"] in ("none", "c2") else {row["prefix"]: None})
    for model, prefix in ((model, prefix) for model, used in prefixes.items() for prefix in used or ["none"]):
        cells: dict[str, Any] = {"model": model, "prefix": prefix}
        for group in GROUPS:
            for label, source in (("base", "none"), ("+ APL", prefix)):
                row = by_key.get((model, source, group), {}) if label == "base" or prefix != "none" else {}
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
