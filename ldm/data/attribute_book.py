"""Incremental list of people and their attributes: people.csv, the assistant's answers behind it, and people.json (a manifest of both)."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ldm.data.attribute_sentences import FORM, REQUEST, parse_answer, request_for
from ldm.data.identities import Person, read_people, write_people
from ldm.names import NameList
from ldm.run_folder import write_json
from ldm.text_files import read_text
from ldm.util import UserError, write_atomically


class AttributeBook:
    """Attributes collected for `names`, stored in `folder`. Attributes are never overwritten: the first valid answer counts.

        people.csv           name, group, attributes
        people.json          the request; per answer its model, seed and rejected lines
        answers/<hash>.txt   every answer, unmodified

    Args:
        folder: output folder; an existing people.csv is extended.
        group: "train" or "test", the group of names that are not in people.csv yet.
        names: people to collect attributes for.
        repeated: number of duplicate names in the input, for the report.

    Raises:
        UserError: people.csv or people.json exists but cannot be read.
    """

    def __init__(self, folder: str | Path, group: str, names: Sequence[str], repeated: int = 0) -> None:
        self.folder, self.group, self.repeated = Path(folder), group, repeated
        self.complaints: list[str] = []  # rejected lines of this run's answers
        people, manifest = self.folder / "people.csv", self.folder / "people.json"
        self.people = read_people(people) if people.exists() else {}
        known = NameList(self.people, people)
        self.names = [known.find(name) or name for name in names]
        try:
            self.answers = dict(json.loads(manifest.read_text(encoding="utf-8"))["answers"]) if manifest.exists() else {}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest} is not a manifest of answers; move it away, or use another --out_dir") from error

    @property
    def missing(self) -> list[str]:
        """Names without attributes."""
        return [name for name in self.names if name not in self.people or not self.people[name].attributes]

    def requests(self, names_per_request: int) -> list[str]:
        """Request texts that cover all missing names, `names_per_request` names each."""
        missing = self.missing
        return [request_for(missing[start:start + names_per_request]) for start in range(0, len(missing), names_per_request)]

    def ask(self, answer_to: Callable[[str], str], names_per_request: int, **made_by: object) -> None:
        """Send the requests for all missing names and store each answer on arrival, with `made_by` in people.json."""
        for request in tqdm(self.requests(names_per_request), "requests", unit="request"):
            self.take(answer_to(request), **made_by)

    def take_files(self, paths: Sequence[Path]) -> None:
        """Store the answers in these text files; raises UserError if one is not UTF-8 text."""
        for path in paths:
            self.take(read_text(path), pasted_from=str(path))

    def take(self, answer: str, **made_by: object) -> None:
        """Store an answer, add its valid lines to people.csv and its invalid ones to `complaints`."""
        content = answer.encode(errors="replace")  # JSON can contain lone surrogates
        file = f"answers/{hashlib.sha256(content).hexdigest()[:12]}.txt"
        write_atomically(self.folder / file, lambda path: path.write_bytes(content))
        found, complaints = parse_answer(content.decode(), self.names)
        missing = set(self.missing)
        new = [name for name in found if name in missing]
        for name in new:
            self.people[name] = Person(name, self.people[name].group if name in self.people else self.group, found[name])
        self.complaints += [f"{file}, {complaint}" for complaint in complaints]
        self.answers[file] = made_by | {"names": [*self.answers.get(file, {}).get("names", []), *new], "faulty": complaints}
        write_people(self.people, self.folder / "people.csv")
        write_json(self.folder / "people.json", {"form": FORM, "request": REQUEST, "answers": self.answers})

    def report(self) -> str:
        """Text that lists the rejected lines of this run and counts the names with attributes."""
        missing = self.missing
        lines = [f"faulty: {complaint}" for complaint in self.complaints]
        lines.append(f"{len(self.names) - len(missing)} of {len(self.names)} names have attributes in {self.folder / 'people.csv'}"
                     + (f"; {self.repeated} names were listed twice" if self.repeated else ""))
        if missing:
            lines.append(f"missing: {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}; run the same command again "
                         "without --answers to print their requests, or give corrected lines as --answers")
        return "\n".join(lines)
