"""S_ID: images of named people with the attributes of each person (paper section 4.1)."""

import csv
import io
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import ImageSource, Record, read_collection
from ldm.left_out import TEST_GROUP, LeftOut, Report
from ldm.names import NameList, normal_form
from ldm.text_files import read_text, rows_of
from ldm.util import UserError, warn, write_text

GROUPS = ("train", "test")


@dataclass(frozen=True)
class Person:
    """A row of people.csv. `attributes` is c2, "A [gender] [race] [occupation], [facial attributes]"."""

    name: str
    group: str  # "train" (S_ID) or "test" (S_test)
    attributes: str


@dataclass(frozen=True)
class IdentityImage:
    """An image of S_ID with the name that fills c1 and the attributes that fill c2."""

    source: ImageSource
    name: str
    attributes: str


def read_people(path: str | Path) -> dict[str, Person]:
    """People by name, read from a CSV with the header name,group,attributes.

    Raises:
        UserError: the file or a column is missing, a name is empty or occurs twice in any spelling, a group is not train or test.
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
        if group not in GROUPS:
            raise UserError(f"{path}, line {line}, puts '{name}' into the group '{group}'; the groups are train and test; correct it")
        earlier, other = first.setdefault(normal_form(name), (line, name))
        if earlier != line:
            raise UserError(f"{path}: the name '{other}' of line {earlier} is listed twice, as '{name}' in line {line}; give every person "
                            "one row")
        people[name] = Person(name, group, attributes)
    return people


def write_people(people: Mapping[str, Person], path: str | Path) -> None:
    """Write the CSV that `read_people` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "group", "attributes"])
    writer.writerows([person.name, person.group, person.attributes] for person in people.values())
    write_text(path, text.getvalue())


def identity_images(folder: str | Path, people: dict[str, Person], report: Report | None = None) -> list[IdentityImage]:
    """Images of people of the train group, in the order of `read_collection`, which defines the layouts and `report`.

    The person's name comes from the metadata (column name) or else from the sub-folder, in any spelling (ldm/names.py).
    Images of the test group are left out: S_test must stay unseen.

    Raises:
        UserError: no image, an image without a name, a name without attributes, or no image of the train group.
    """
    images, known, report = [], NameList(people), report or LeftOut(strict=True)
    spelled: dict[str, set[str]] = {}
    for record in read_collection(folder, report):
        name = _name_of(record, Path(folder))
        person = _person_called(name, record, people, known)
        spelled.setdefault(person.name, set()).add(name)
        if person.group == "train":
            images.append(IdentityImage(record.source, person.name, person.attributes))
        else:
            report(TEST_GROUP, f"{record.source} shows {person.name} of the test group, who must stay unseen")
    for name, spellings in spelled.items():
        if len(spellings) > 1:
            warn(f"{folder} has images of one person under the names {', '.join(map(repr, sorted(spellings)))}; all are used as '{name}'")
    if not images:
        raise UserError(f"the folder {folder} shows nobody of the train group; put images of S_ID into it")
    return images


def _name_of(record: Record, folder: Path) -> str:
    name = record.fields.get("name", "")
    if not name and record.source.path.parent != folder and not record.source.member:
        name = record.source.path.parent.name
    if not name:
        raise UserError(f"the person shown by {record.source} is unknown; put it into a sub-folder with the person's name or "
                        "add it to metadata.jsonl with file_name and name")
    return name


def _person_called(name: str, record: Record, people: dict[str, Person], known: NameList) -> Person:
    person = people.get(known.find(name) or "")
    if person is None or not person.attributes:
        raise UserError(f"'{name}', shown by {record.source}, has no attributes in the list of people{'' if person else known.hint(name)}; "
                        "add a row name,group,attributes for this name, remove the image, or give --identity_images with images "
                        "of the people of your list alone")
    return person
