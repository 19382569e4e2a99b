"""S_ID: pictures of named people with the attributes of each (paper section 4.1)."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import ImageSource, Record, read_collection
from ldm.left_out import TEST_GROUP, LeftOut, Report
from ldm.text_files import read_text
from ldm.util import UserError, write_atomically

GROUPS = ("train", "test")


@dataclass(frozen=True)
class Person:
    """A row of people.csv: `attributes` is c2, "A [gender] [race] [occupation], [facial attributes]"."""

    name: str
    group: str  # "train" (S_ID) or "test" (S_test)
    attributes: str


@dataclass(frozen=True)
class IdentityImage:
    """A picture of S_ID, the name that c1 is made of and the attributes that c2 is made of."""

    source: ImageSource
    name: str
    attributes: str


def read_people(path: str | Path) -> dict[str, Person]:
    """People by name, from a CSV with the header name,group,attributes.

    Raises:
        UserError: no such file, a missing column, a name twice, a group other than train and test.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the list of people {path} does not exist; give a CSV with the header name,group,attributes")
    people: dict[str, Person] = {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        missing = {"name", "group", "attributes"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{path} has the columns {reader.fieldnames} but no {', '.join(sorted(missing))}; "
                            "its header must be name,group,attributes")
        for row in reader:
            person = Person(*((row[key] or "").strip() for key in ("name", "group", "attributes")))
            if person.group not in GROUPS:
                raise UserError(f"{path} puts '{person.name}' into the group '{person.group}'; "
                                "the groups are train and test; correct it")
            if not person.name or person.name in people:
                raise UserError(f"{path}, line {reader.line_num}: the name '{person.name}' is empty or there twice; "
                                "give every person one row")
            people[person.name] = person
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({error}); correct it") from error
    return people


def write_people(people: Mapping[str, Person], path: str | Path) -> None:
    """The CSV that `read_people` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "group", "attributes"])
    writer.writerows([person.name, person.group, person.attributes] for person in people.values())
    write_atomically(path, lambda target: target.write_text(text.getvalue(), encoding="utf-8"))


def identity_images(folder: str | Path, people: dict[str, Person], report: Report | None = None) -> list[IdentityImage]:
    """The pictures of a folder that show people of the train group, in the order of their paths; report as `read_collection`.

    A picture's name comes from the metadata (column name) or else from its sub-folder; underscores may stand for
    spaces. Pictures of the test group are left out: S_test must stay unseen.

    Raises:
        UserError: no picture, a picture without a name, a name without attributes, or nobody of the train group.
    """
    images, report = [], report or LeftOut(strict=True)
    for record in read_collection(folder, report):
        person = _person_in(record, Path(folder), people)
        if person.group == "train":
            images.append(IdentityImage(record.source, person.name, person.attributes))
        else:
            report(TEST_GROUP, f"{record.source} shows {person.name} of the test group, who must stay unseen")
    if not images:
        raise UserError(f"the folder {folder} shows nobody of the train group; put pictures of S_ID into it")
    return images


def _person_in(record: Record, folder: Path, people: dict[str, Person]) -> Person:
    name = record.fields.get("name", "")
    if not name and record.source.path.parent != folder and not record.source.member:
        name = record.source.path.parent.name
    if not name:
        raise UserError(f"nothing says whom {record.source} shows; put it into a sub-folder with the person's name or "
                        "add it to metadata.jsonl with file_name and name")
    person = people.get(name) or people.get(name.replace("_", " "))
    if person is None or not person.attributes:
        raise UserError(f"'{name}', shown by {record.source}, has no attributes in the list of people; "
                        "add a row name,group,attributes for this name, take the picture away, or give --identity_images with pictures "
                        "of the people of your list alone")
    return person
