"""Readers for users' text files and tables (UTF-8; csv, tsv, jsonl), which report the line of every flaw and drop nothing silently.

`write_csv` writes a table. A file is read once, so pipes work. The content determines the format, because a pipe has no suffix.
"""

import codecs
import csv
import difflib
import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldm.containers import no_text
from ldm.util import UserError, first_line, write_text

TABLES = (".csv", ".tsv", ".jsonl")
DELIMITERS = ",\t;|"  # Excel writes all three into .csv
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, which JSON can hold
NUMBER_OR_FILE = re.compile(r"(\d+|[^\s,;|\t]+\.\w{2,5}(#\d+)?)\s*[,;|\t]|[^\s:]+\.(jpe?g|png|webp)\s*:", re.IGNORECASE)
LIKE_A_ROW = re.compile(r"[^\s,;\t]+\.\w{2,5}\s*[,;\t]")  # begins with a file name

OnError = Callable[[str], None]  # takes a sentence; where it returns, the row is left out


class TextRow(NamedTuple):
    """A row of a table: its first line number, and its non-empty texts by requested column."""

    line: int
    fields: dict[str, str]


def refuse(sentence: str) -> None:
    """OnError that accepts no flaw: raises UserError."""
    raise UserError(sentence)


def decoded(content: bytes, where: object) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark; line ends become \\n. UserError about `where` for other content."""
    if (kind := no_text(content)) is not None:
        raise UserError(f"{where} is {kind} instead of text; save it as uncompressed text in UTF-8, a table as CSV")
    encoding = "utf-16" if content.startswith(UTF16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{where} is not text, since it holds zero bytes; save it as text in UTF-8")
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")  # concatenated files have several marks


def read_text(path: str | Path) -> str:
    """Read a text file, see `decoded`."""
    return decoded(Path(path).read_bytes(), path)


def read_lines(path: str | Path, columns: Sequence[str] = ()) -> list[str]:
    """Texts of a file, see `texts_in`, without those that start with #."""
    return [line for line in texts_in(read_text(path), path, columns) if not line.startswith("#")]


def texts_in(text: str, path: str | Path, columns: Sequence[str]) -> list[str]:
    """Non-empty lines with normalized spaces; for a table (by suffix or header), each row's first text among `columns`.

    A JSON list of texts, or of objects with one of the columns, is supported too. UserError if a table has none of the columns, a row has
    no text in them, or the lines are a table without a header.
    """
    if (entries := json_list(text)) is not None:
        found = []
        for number, entry in enumerate(entries, start=1):
            where = f"{path}, entry {number},"
            entry = {columns[0]: entry} if isinstance(entry, str) and columns else entry
            found.append(first_of(texts_of(entry, where, columns, refuse) or {}, columns, where))
    elif Path(path).suffix.lower() in TABLES or is_table(text, columns):
        found = [first_of(row.fields, columns, f"{path}, line {row.line},") for row in rows_of(text, path, (), columns)]
    else:
        found = text.split("\n")  # not splitlines(): U+2028 may occur in a caption
        found = found[1:] if is_header(found[0], columns) else found
        refuse_rows(found, path, columns)
    return [line for line in (" ".join(one.split()) for one in found) if line]


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path, columns: Sequence[str] = ()) -> None:
    """Write rows as CSV with a header: `columns`, or else all keys; a missing value is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or dict.fromkeys(itertools.chain.from_iterable(rows)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def is_header(line: str, columns: Sequence[str]) -> bool:
    """Whether a line consists of the name of a column, or its plural."""
    return line.strip(" \t\"").casefold().removesuffix("s") in (name.removesuffix("s") for name in columns)


def refuse_rows(lines: Sequence[str], path: object, columns: Sequence[str]) -> None:
    """Raise a UserError if lines are rows of a table without a header: several, and all begin with a number or the name of an image."""
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > 1 and all(NUMBER_OR_FILE.match(line) for line in lines):
        raise UserError(f"{path} has rows such as '{lines[0][:60]}' without a header, so the column of the texts is unknown; remove "
                        f"the other columns, or write a first line that names the columns, one of them {' or '.join(columns)}")


def json_value(text: str, where: object = None) -> Any:
    """Parse a text that is one JSON value; None for other content, such as texts that begin with a bracket.

    `where` names a file that must be JSON or jsonl; UserError if it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        first, _, rest = text.strip().partition("\n")
        if where is None or (rest and first.startswith("{") and first.rstrip().endswith("}")):
            return None
        raise UserError(f"{where} is not valid JSON ({first_line(error)}); give COCO captions, or a list of texts") from None


def json_list(text: str) -> list[Any] | None:
    """Entries of a JSON list; None for other content."""
    value = json_value(text) if text.lstrip().startswith("[") else None
    return value if isinstance(value, list) else None


def is_table(text: str, columns: Sequence[str]) -> bool:
    """Whether the text is jsonl, or its first line is a header with one of these columns and a further column or quotation marks."""
    headers = _headers(text)
    quoted = text.lstrip().startswith('"') and any(len(header) == 1 and header[0] in columns for header in headers)
    return text.lstrip().startswith('{"') or quoted or any(len(header) > 1 and set(header) & set(columns) for header in headers)


def rows_of(text: str, where: object, needed: Sequence[str], some: Sequence[str] = (), optional: Sequence[str] = (), *,
            multiline: bool = False, on_error: OnError = refuse, prepare: Callable[[Any, str], Any] | None = None) -> Iterator[TextRow]:
    """Rows of a table: csv with a header (separated by commas, semicolons, tabs or bars), jsonl, or a JSON list of objects.

    Args:
        text: content of the file `where`.
        needed: required columns, in lower case; they match in any case. Columns that are not listed are ignored.
        some: columns of which at least one is required.
        multiline: allow quoted cells with several lines.
        on_error: called with a message for each flaw.
        prepare: function (value, place) that transforms each JSON value.
    """
    entries, columns = json_list(text), {*needed, *some, *optional}
    if entries is None and not text.lstrip().startswith("{"):
        yield from _csv(text, where, needed, some, columns, multiline, on_error)
        return
    lines = text.split("\n") if entries is None else entries
    for number, line in enumerate(lines, start=1):
        place = f"{where}, {'line' if entries is None else 'entry'} {number},"
        if entries is None and not line.strip():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_once) if entries is None else line
            entry = prepare(entry, place) if prepare else entry
        except (ValueError, RecursionError) as error:
            on_error(f"{place} is not valid JSON ({first_line(error)}); write one object per line")
            continue
        fields = texts_of(entry, place, columns, on_error)
        if fields is None:
            continue
        values = {str(key).strip().casefold(): value for key, value in entry.items()}
        wrong = next((name for name in needed if not isinstance(values.get(name, []), (str, int, float, type(None)))), None)
        if wrong is None:
            yield TextRow(number, fields)
        else:
            on_error(f"{place} has {'no' if wrong not in values else 'no text as'} '{wrong}'; correct it")


def texts_of(entry: object, where: str, columns: Collection[str], on_error: OnError) -> dict[str, str] | None:
    """Texts and numbers of a JSON object in these columns, as texts; keys match in any case. None if a flaw was reported."""
    if not isinstance(entry, dict):
        on_error(f"{where} holds {json.dumps(entry)[:40]} instead of an object with names and texts; correct it")
        return None
    by_column: dict[str, Any] = {}
    for key, value in entry.items():
        column = str(key).strip().casefold()
        if (other := by_column.setdefault(column, value)) is not value and other != value and column in columns:
            on_error(f"{where} has '{column}' twice, in upper and lower case; rename or remove one")
            return None
    fields = {key: str(value) for key, value in by_column.items()
              if key in columns and isinstance(value, (str, int, float)) and not isinstance(value, bool)}
    for value in fields.values():
        if (half := HALF_CHARACTER.search(value)) or "\0" in value:
            on_error(f"{where} has {'half a character (a lone surrogate)' if half else 'a zero byte'} in {value!a}; correct it")
            return None
    return {key: value for key, value in fields.items() if value.strip()}


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; raises ValueError if a key occurs twice."""
    found, names = dict(pairs), [key for key, _ in pairs]
    if len(found) < len(names):
        raise ValueError(f"the key '{next(key for key in names if names.count(key) > 1)}' is there twice")
    return found


def _csv(text: str, where: object, needed: Sequence[str], some: Sequence[str], wanted: Collection[str], multiline: bool,
         on_error: OnError) -> Iterator[TextRow]:
    delimiter, header = max(zip(DELIMITERS, _headers(text), strict=True), key=lambda one: len(set(wanted) & set(one[1])))
    _check_header(where, header, needed, some)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
    first = 1 + text.count("\n", 0, len(text) - len(text.lstrip()))
    end = 0  # last line of the previous row
    try:
        for cells in reader:
            begin, end = end + 1, reader.line_num
            if begin <= first or not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(header):]) or len(cells) < len(header):
                on_error(f"{where}, line {begin}, has {len(cells)} fields where the header has {len(header)}; put a text that holds "
                         f"'{delimiter}' between quotation marks".replace("\t", "a tab"))
            elif any("\n" in cell and (not multiline or LIKE_A_ROW.search(cell.partition("\n")[2])) for cell in cells):
                on_error(f"{where}, line {begin}, has a text that runs over lines up to line {end}; close its quotation mark in its line")
            else:
                fields = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name in wanted and cell.strip()}
                yield TextRow(begin, fields)
    except csv.Error as error:
        on_error(f"{where}, line {max(end + 1, 1)}, is not valid CSV ({error}); a quotation mark is not closed, or stands inside a text: "
                 "write it twice there, and put the text between quotation marks")


def first_of(fields: Mapping[str, str], columns: Sequence[str], where: str) -> str:
    """The text of the first of `columns` that has one; UserError about `where` if none has."""
    for name in columns:
        if name in fields:
            return fields[name]
    raise UserError(f"{where} has nothing as {' or '.join(columns)}; add it, or remove the entry")


def _headers(text: str) -> list[list[str]]:
    """Column names in the first non-empty line, split at each of DELIMITERS; in lower case, without empty ones at the end."""
    line = text.lstrip().partition("\n")[0]
    found = []
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
        except csv.Error:
            cells = []
        names = [cell.strip().casefold() for cell in cells]
        while names and not names[-1]:  # spreadsheets write them
            names.pop()
        found.append(names)
    return found


def _check_header(where: object, header: Sequence[str], needed: Sequence[str], some: Sequence[str]) -> None:
    missing = [name for name in needed if name not in header]
    if not missing and some and not set(some) & set(header):
        missing = [" or ".join(some)]
    if missing:
        close = [name for word in (*needed, *some) if word not in header for name in difflib.get_close_matches(word, header, 1)]
        hint = f" ('{close[0]}' may be meant so)" if close else ""
        found = f"has the columns {', '.join(header)} but no {', '.join(missing)}{hint}" if header else "is empty"
        raise UserError(f"{where} {found}; its first line must name the columns, such as {','.join([*needed, *some[:1]])}")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{where} has the column '{twice[0]}' twice; rename or remove one")
