"""The model card of a prefix or a context map: README.md of its folder on the Hugging Face Hub.

Everything that comes from a file is rendered as text: the Hub's Markdown and HTML cannot be reached from metadata or results.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from jinja2 import Template

LONGEST, MOST = 120, 60  # characters of a value, rows of a table
HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
TAGS = ["anonymization-prompt", "textual-inversion", "privacy", "stable-diffusion"]
# Columns of results.json: number formats, of which the first two cells are texts.
IDENTITY = {"prefix": "", "group": "", "id_acc_mean": ".3f", "rank1": ".3f", "detection_rate": ".3f", "attr_kept": ".3f",
            "n_identities": "d", "n_images": "d"}
DRIFT = {"prefix": "", "prompts": "", "mse": ".4f", "recognised": ".3f"}


@dataclass(frozen=True)
class Described:
    """What a card tells of a prefix or a context map."""

    kind: str                # "prefix", "pair" (of prefixes, for SDXL) or "map"
    form: str                # such as "10 vectors of width 768"
    file: str                # the file that other programs load; its stem is the word in their prompts
    title: str = "Anonymization prompt"
    token: str = "alz"
    base_model: str | None = None  # name on the Hub
    license: str | None = None
    image: str | None = None       # file of before-and-after images
    results: Sequence[Mapping[str, Any]] = ()  # rows of results.json
    training: Mapping[str, Any] = field(default_factory=dict)  # arguments


def model_card(described: Described) -> ModelCard:
    """A card whose header and text huggingface_hub accepts."""
    base = described.base_model if described.base_model and re.fullmatch(HUB_ID, described.base_model) else None
    header = ModelCardData(base_model=base, license=described.license, library_name="diffusers", pipeline_tag="text-to-image",
                           tags=TAGS + ["stable-diffusion-xl"] * (described.kind == "pair"))
    tables = [_table(described.results, columns, needed) for columns, needed in ((IDENTITY, "id_acc_mean"), (DRIFT, "mse"))]
    training = sorted((as_text(key), as_text(value)) for key, value in described.training.items() if value is not None)[:MOST]
    text = _template().render(card=described, base=base, stem=Path(described.file).stem, identity=tables[0], drift=tables[1],
                              training=training)
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}\n")


def as_text(value: object) -> str:
    """A value that Markdown and HTML show as it is, on one line: entities in the place of everything but letters, digits, spaces."""
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    text = "".join(filter(str.isprintable, text))
    text = text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"
    return re.sub(r"[^\w .,-]|_|(?<!\d)\.|\.(?!\d)", lambda match: f"&#{ord(match[0])};", text)


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], needed: str) -> list[list[str]]:
    """The rows with the column `needed`, as cells; ID-ACC with its interval."""
    return [[_cell(row, column, form) for column, form in columns.items()] for row in rows if needed in row][:MOST]


def _cell(row: Mapping[str, Any], column: str, form: str) -> str:
    if not form:
        return as_text(row.get(column, "–"))
    values = [row.get(name) for name in ((column, "id_acc_low", "id_acc_high") if column == "id_acc_mean" else (column,))]
    numbers = [format(int(value) if form == "d" else float(value), form) for value in values
               if isinstance(value, int | float) and math.isfinite(value)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(numbers) == 3 else numbers[0] if numbers else "–"


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined  # only cards need it

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["text"] = as_text
    return environment.from_string(Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8"))
