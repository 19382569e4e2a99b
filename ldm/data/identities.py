"""S_ID: images of named people with the attributes of each person (paper section 4.1)."""

import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm.data.images import ImageSource, read_collection
from ldm.left_out import KEEP_GROUP, TEST_GROUP, LeftOut, Report
from ldm.names import NameList, normal_form
from ldm.text_files import read_text, rows_of, write_csv
from ldm.util import UserError, warn

GROUPS = ("train", "test")  # S_ID and S_test, whose images are scored
KEEP = "keep"               # S_keep: names that may be shown, neither trained on nor scored


@dataclass(frozen=True)
class Person:
    """A row of people.csv. `attributes` is c2, "A [gender] [race] [occupation], [facial attributes]"."""

    name: str
    group: str  # "train" (S_ID), "test" (S_test) or "keep" (S_keep)
    attributes: str


@dataclass(frozen=True)
class IdentityImage:
    """An image of S_ID with the name that fills c1 and the attributes that fill c2."""

    source: ImageSource
    name: str
    attributes: str


def read_people(path: str | Path) -> dict[str, Person]:
    """People by name, read from a CSV with the header name,group,attributes.

    Raises UserError if the file, a column or every row is missing, a name is empty or occurs twice in any spelling, or a group is another
    one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the list of people {path} does not exist; give a CSV with the header name,group,attributes")
    people: dict[str, Person] = {}
    first: dict[str, tuple[int, str]] = {}  # normal form -> line and spelling
    for line, fields in rows_of(read_text(path), path, ("name", "group", "attributes")):
        name, attributes = (" ".join(unicodedata.normalize("NFC", fields.get(key, "")).split()) for key in ("name", "attributes"))
        group = fields.get("group", "").casefold()
        if not normal_form(name):
            raise UserError(f"{path}, line {line}: the name is empty; give every person a row with a name")
        if group not in (*GROUPS, KEEP):
            raise UserError(f"{path}, line {line}, puts '{name}' into the group '{group}'; the groups are train, test and keep; correct it")
        earlier, other = first.setdefault(normal_form(name), (line, name))
        if earlier != line:
            raise UserError(f"{path}: the name '{other}' of line {earlier} is listed twice, as '{name}' in line {line}; give every person "
                            "one row")
        people[name] = Person(name, group, attributes)
    if not people:
        raise UserError(f"the list of people {path} has a header and no row; add a row name,group,attributes per person")
    return people


def write_people(people: Mapping[str, Person], path: str | Path) -> None:
    """Write the CSV that `read_people` reads."""
    write_csv([asdict(person) for person in people.values()], path, ["name", "group", "attributes"])


def identity_images(folder: str | Path, people: Mapping[str, Person], report: Report | None = None, *,
                    keep: bool = False) -> list[IdentityImage]:
    """Images of people of the train group, and with `keep` of the keep group, in the order of `read_collection`.

    `read_collection` defines the layouts and `report`. The person's name comes from the metadata (column name) or else from the
    sub-folder, in any spelling (ldm/names.py). Images of the other groups are left out: S_test must stay unseen, and S_keep may be shown.
    Raises UserError for no image, an image without a name, a name without attributes, or no image of the train group.
    """
    images, known, report = [], NameList(people), report or LeftOut(strict=True)
    spelled: dict[str, set[str]] = {}
    for source, fields in read_collection(folder, report).items():
        in_sub_folder = not source.member and source.path.parent != Path(folder)
        name = fields.get("name", "") or (source.path.parent.name if in_sub_folder else "")
        if not name:
            raise UserError(f"the person shown by {source} is unknown; put it into a sub-folder with the person's name or "
                            "add it to metadata.jsonl with file_name and name")
        person = people.get(known.find(name) or "")
        if person is None or not person.attributes and person.group in GROUPS:
            raise UserError(f"'{name}', shown by {source}, has no attributes in the list of people{'' if person else known.hint(name)}; "
                            "add a row name,group,attributes for this name, remove the image, or give --identity_images with images "
                            "of the people of your list alone")
        spelled.setdefault(person.name, set()).add(name)
        if person.group == "train" or (keep and person.group == KEEP):
            images.append(IdentityImage(source, person.name, person.attributes))
        else:
            reason, why = (KEEP_GROUP, "may be shown") if person.group == KEEP else (TEST_GROUP, "must stay unseen")
            report(reason, f"{source} shows {person.name} of the {person.group} group, who {why}")
    for name, spellings in spelled.items():
        if len(spellings) > 1:
            warn(f"{folder} has images of one person under the names {', '.join(map(repr, sorted(spellings)))}; all are used as '{name}'")
    if not any(people[image.name].group == "train" for image in images):
        raise UserError(f"the folder {folder} shows nobody of the train group; put images of S_ID into it")
    return images
