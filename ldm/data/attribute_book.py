"""The growing list of people with their attributes: people.csv, the answers it was made from, and people.json about both."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.data.attribute_sentences import FORM, REQUEST, parse_answer, request_for
from ldm.data.identities import Person, read_people, write_people
from ldm.names import NameList
from ldm.run_folder import write_json
from ldm.text_files import read_text
from ldm.util import UserError, write_atomically


class AttributeBook:
    """What is known of `names`, in `folder`: whoever has attributes keeps them, whatever answer comes later.

        people.csv           name, group, attributes
        people.json          the request, and for each answer its model, seed and faulty lines
        answers/<hash>.txt   every answer as it came

    Args:
        group: of the names that are not in the list yet, "train" or "test".
        repeated: how many names were listed twice, for the report.

    Raises:
        UserError: a list is there but cannot be read.
    """

    def __init__(self, folder: str | Path, group: str, names: Sequence[str], repeated: int = 0) -> None:
        self.folder, self.group, self.repeated = Path(folder), group, repeated
        self.complaints: list[str] = []  # about the answers of this run
        path = self.folder / "people.csv"
        self.people = read_people(path) if path.exists() else {}
        known = NameList(self.people, path)
        self.names = [known.find(name) or name for name in names]
        self.answers = self._read_manifest()

    @property
    def missing(self) -> list[str]:
        """Names without attributes."""
        return [name for name in self.names if name not in self.people or not self.people[name].attributes]

    def requests(self, names_per_request: int) -> list[str]:
        """What to ask for all that is missing."""
        missing = self.missing
        return [request_for(missing[start:start + names_per_request]) for start in range(0, len(missing), names_per_request)]

    def ask(self, answer_to: Callable[[str], str], names_per_request: int, **made_by: Any) -> None:
        """Asks for all that is missing; each answer is taken as soon as it comes. `made_by` is noted beside it."""
        for request in tqdm(self.requests(names_per_request), "asking", unit="request"):
            self.take(answer_to(request), **made_by)

    def take_files(self, paths: Sequence[Path]) -> None:
        """Takes the answers in text files.

        Raises:
            UserError: a file is no UTF-8 text.
        """
        for path in paths:
            self.take(read_text(path), pasted_from=str(path))

    def take(self, answer: str, **made_by: Any) -> None:
        """Keeps an answer, adds its good lines to the list, and its faulty ones to the complaints."""
        content = answer.encode(errors="replace")  # JSON can hold half characters
        file = f"answers/{hashlib.sha256(content).hexdigest()[:12]}.txt"
        write_atomically(self.folder / file, lambda path: path.write_bytes(content))
        found, complaints = parse_answer(content.decode(), self.names)
        missing = set(self.missing)
        for name in [name for name in found if name in missing]:
            group = self.people[name].group if name in self.people else self.group
            self.people[name] = Person(name, group, found[name])
        self.complaints += [f"{file}, {complaint}" for complaint in complaints]
        names = [*self.answers.get(file, {}).get("names", []), *(name for name in found if name in missing)]
        self.answers[file] = made_by | {"names": names, "faulty": complaints}
        write_people(self.people, self.folder / "people.csv")
        write_json(self.folder / "people.json", {"form": FORM, "request": REQUEST, "answers": self.answers})

    def report(self) -> str:
        """The faulty lines of this run, and who has attributes."""
        missing = self.missing
        lines = [f"faulty: {complaint}" for complaint in self.complaints]
        lines.append(f"{len(self.names) - len(missing)} of {len(self.names)} names have attributes in {self.folder / 'people.csv'}"
                     + (f"; {self.repeated} names were listed twice" if self.repeated else ""))
        if missing:
            lines.append(f"missing: {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}; run the same command again "
                         "without --answers for the requests about them, or give corrected lines as --answers")
        return "\n".join(lines)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "people.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["answers"]) if path.exists() else {}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of answers; move it away, or use another --out_dir") from error
