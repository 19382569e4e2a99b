"""c2 of S_ID: a sentence of attributes for every name, from an assistant's answers (paper section 4.1, Appendix A).

The paper asks a language model for them. `request_for` is that request, in our words, for pasting into any assistant;
`parse_answer` takes the answer apart and names each line that is no sentence of the paper's form.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ldm.names import NameList, normal_form
from ldm.text_files import read_lines
from ldm.util import UserError

FORM = "A [gender] [race] [occupation], [facial attributes]."
GENDERS = ("male", "female")
LIST_MARKS = re.compile(r"[\W_]*(\d+\s*[^\w\s][\W_]*)?")
NO_NAME = re.compile(r"(\d+[.)]|[-*\u2022])\s|[\[{]|([\"'\u201c]).*[\"'\u201d][,;]?$|[\W_]*$")  # of a line of a list of names
LONGEST_NAME = 120  # letters of a name at the begin of a line
MOST_WORDS = 45  # with the prefix and a template they must fit into CLIP's 77 tokens

REQUEST = f"""For each person in the list below, write one sentence of this form:

{FORM}

- [gender] is {' or '.join(GENDERS)}; [race] is the broad ethnic appearance, in respectful words such as "East Asian"; [occupation]
  is one or two words.
- [facial attributes] are at least two visible traits of the face, with commas between them: age group, shape of the face, skin, hair
  and its colour, eyebrows, eyes, nose, lips, beard, glasses. Nothing about the body, the voice, clothes, deeds or character.
- State only what is well known from photographs. Be factual and kind.
- Never write the person's name, or part of it, in the sentence. At most {MOST_WORDS - 5} words a sentence.

Answer with one line for each person and nothing else: the name exactly as in the list, a colon, and the sentence. An example, of nobody:
Jane Example: A female South Asian violinist, middle-aged, oval face, long black hair, thin eyebrows, brown eyes.

The list:
"""


def request_for(names: Sequence[str]) -> str:
    """The request for the attributes of these people."""
    return REQUEST + "\n".join(names)


def parse_answer(text: str, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Name -> sentence without its full stop for every good line, and a complaint for every other line.

    A line begins with a name in any of its spellings (ldm/names.py), then a colon, dash, comma, bar or space. List marks, numbers,
    bold type, table bars and quotation marks around names and sentences are passed over.

    Args:
        names: whom the answer may be about.
    """
    found: dict[str, str] = {}
    complaints = []
    known = NameList(names, "the list of names")
    for number, line in enumerate(text.split("\n"), start=1):
        line = re.sub(r"\\([^\w\s])", r"\1", unicodedata.normalize("NFC", line)).strip()  # Markdown's escapes
        if not re.search(r"\w", line):
            continue
        bare = re.sub("[*`]", "", line)
        name, rest = _begins_with(line, known) or _begins_with(bare, known) or (None, "")
        if name is None:
            complaints.append(f"line {number} begins with no name that was asked for: '{bare}'")
            continue
        sentence = re.sub(r"^[\W_]+|[\s.\"'”’。,;|_]+$", "", re.sub("[*`]", "", rest))
        if flaw := flaw_of(sentence, name):
            complaints.append(f"line {number}, {name}, {flaw}: '{sentence}'")
        elif found.setdefault(name, sentence) != sentence:
            complaints.append(f"line {number}, {name}, is a second sentence, and the first is kept: '{sentence}'")
    return found, complaints


def _begins_with(line: str, known: NameList) -> tuple[str, str] | None:
    """The longest name that a line begins with, list marks aside but as few as possible, and what stands behind it."""
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
    """Why a sentence, without its full stop, is not of the paper's form; None if it is."""
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
    """Names of a text file, one a line (empty lines and lines that start with # are passed over), and how many are there twice.

    Raises:
        UserError: no UTF-8 text, or no name.
    """
    names = [unicodedata.normalize("NFC", line) for line in read_lines(path, ("name", "names"))]
    for name in names:
        if NO_NAME.match(name):
            raise UserError(f"{path} holds '{name}', which begins with a list mark, is quoted, or has no letter; write the bare name")
    if not names:
        raise UserError(f"{path} holds no name; write one a line")
    first: dict[str, str] = {}  # normal form -> the first spelling
    for name in names:
        first.setdefault(normal_form(name), name)
    return list(first.values()), len(names) - len(first)
