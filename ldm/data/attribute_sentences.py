"""c2 of S_ID: one attribute sentence per name, written by a language model (paper section 4.1, Appendix A).

`AttributeBook` collects the sentences. `request_for` builds the request, in our words, which can be pasted into any assistant.
`parse_answer` parses the answer and reports each line that does not have the paper's form.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ldm.data.identities import Person, read_people, write_people
from ldm.names import NameList, normal_form
from ldm.run_folder import write_json
from ldm.text_files import read_lines, read_text
from ldm.util import UserError, write_atomically

FORM = "A [gender] [race] [occupation], [facial attributes]."
GENDERS = ("male", "female")
LIST_MARKS = re.compile(r"[\W_]*(\d+\s*[^\w\s][\W_]*)?")
NO_NAME = re.compile(r"(\d+[.)]|[-*\u2022])\s|[\[{]|([\"'\u201c]).*[\"'\u201d][,;]?$|[\W_]*$")  # matches lines that are not bare names
LONGEST_NAME = 120  # characters of a name at the beginning of a line
MOST_WORDS = 45  # of a sentence: with the prefix and a template it must fit into CLIP's 77 tokens

REQUEST = f"""For each person in the list below, write one sentence of this form:

{FORM}

- [gender] is {' or '.join(GENDERS)}; [race] is the broad ethnic appearance, in respectful words such as "East Asian"; [occupation]
  is one or two words.
- [facial attributes] are at least two visible traits of the face, with commas between them: age group, shape of the face, skin, hair
  and its colour, eyebrows, eyes, nose, lips, beard, glasses. Nothing about the body, the voice, clothes, deeds or character.
- State only what is well known from photographs. Be factual and kind.
- Never write the person's name, or part of it, in the sentence. At most {MOST_WORDS - 5} words per sentence.

Answer with one line for each person and nothing else: the name exactly as in the list, a colon, and the sentence. A fictional example:
Jane Example: A female South Asian violinist, middle-aged, oval face, long black hair, thin eyebrows, brown eyes.

The list:
"""


class AttributeBook:
    """Attributes collected for `names`, stored in `folder`. Attributes are never overwritten: the first valid answer counts.

        people.csv           name, group, attributes
        people.json          the request; per answer its model, seed and rejected lines
        answers/<hash>.txt   every answer, unmodified

    An existing people.csv is extended; names that are not in it are added to `group`, "train" or "test". `repeated` is the number of
    duplicate names in the input, for the report. Raises UserError if people.csv or people.json exists but cannot be read.
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


def request_for(names: Sequence[str]) -> str:
    """Request text for the attributes of these people."""
    return REQUEST + "\n".join(names)


def parse_answer(text: str, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Dict of name -> sentence (without its full stop) from the valid lines, and a list with one complaint per invalid line.

    A valid line begins with one of `names` in any of its spellings (ldm/names.py), then a colon, dash, comma, bar or space. List marks,
    numbers, bold type, table bars and quotation marks around names and sentences are ignored.
    """
    found: dict[str, str] = {}
    complaints = []
    known = NameList(names, "the list of names")
    for number, line in enumerate(text.split("\n"), start=1):
        line = re.sub(r"\\([^\w\s])", r"\1", unicodedata.normalize("NFC", line)).strip()  # Markdown's escapes
        bare = re.sub("[*`]", "", line)
        name, rest = _begins_with(line, known) or _begins_with(bare, known) or ("", "")
        sentence = re.sub(r"^[\W_]+|[\s.\"'”’。,;|_]+$", "", re.sub("[*`]", "", rest))
        if not name and re.search(r"\w", line):
            complaints.append(f"line {number} does not begin with a requested name: '{bare}'")
        elif name and (flaw := flaw_of(sentence, name)):
            complaints.append(f"line {number}, {name}, {flaw}: '{sentence}'")
        elif name and found.setdefault(name, sentence) != sentence:
            complaints.append(f"line {number}, {name}, is a second sentence; the first is kept: '{sentence}'")
    return found, complaints


def _begins_with(line: str, known: NameList) -> tuple[str, str] | None:
    """The longest name at the beginning of a line, after as few list marks as possible, and the rest of the line; None without one."""
    marks = LIST_MARKS.match(line)
    for start in range(marks.end() + 1 if marks else 1):
        if re.match(r"\w\w", line[max(start - 1, 0):start + 1]):  # within a word or a number
            continue
        found: dict[str, str] = {}
        for end in range(start + 1, min(start + LONGEST_NAME, len(line))):
            at_end = re.match(r"[\W_]", line[end]) and unicodedata.category(line[end])[0] != "M"
            if at_end and (name := known.find(line[start:end])):
                found.setdefault(name, line[end:])
        if found:
            return min(found.items(), key=lambda one: len(one[1]))
    return None


def flaw_of(sentence: str, name: str) -> str | None:
    """Reason why a sentence (without its full stop) does not have the paper's form `FORM`; None if it does."""
    start, comma, attributes = sentence.partition(",")
    words = start.split()
    if words[:1] != ["A"] or words[1:2] not in ([gender] for gender in GENDERS):
        return f"does not begin with 'A {GENDERS[0]} ' or 'A {GENDERS[1]} '"
    if len(words) < 4:
        return "lacks the race or the occupation before its first comma"
    if not comma or not re.search(r"\w", attributes):
        return "lacks facial attributes after a comma"
    if re.search(r"[\[\]{}<>|\n.]", sentence):
        return "has brackets or several sentences"
    if len(sentence.split()) > MOST_WORDS:
        return f"has {len(sentence.split())} words, more than {MOST_WORDS}"
    parts = re.findall(r"\w{3,}", name)
    leaked = [part for part in parts if re.search(rf"\b{re.escape(part)}\b", sentence)]
    after_race = f"{words[-1]},{attributes}"  # Betty White may be White, Kanye West may be West African
    if leaked and (leaked == parts or any(re.search(rf"\b{re.escape(part)}\b", after_race) for part in leaked)):
        return f"contains the name ({leaked[0]})"
    return None


def read_names(path: Path) -> tuple[list[str], int]:
    """Distinct names of a text file, one per line, and the number of duplicates; empty lines and lines that start with # are skipped.

    Raises UserError if the file is not UTF-8 text, holds no name, or holds a line that is not a bare name.
    """
    names = [unicodedata.normalize("NFC", line) for line in read_lines(path, ("name", "names"))]
    if wrong := next(filter(NO_NAME.match, names), None):
        raise UserError(f"{path} holds '{wrong}', which begins with a list mark, is quoted, or has no letter; write the bare name")
    if not names:
        raise UserError(f"{path} holds no name; write one per line")
    first: dict[str, str] = {}  # normal form -> the first spelling
    for name in names:
        first.setdefault(normal_form(name), name)
    return list(first.values()), len(names) - len(first)
