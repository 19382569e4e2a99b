"""Normal form of people's names, by which lists, folders, metadata, galleries, answers and captions are compared.

Two spellings are the same name if they differ only in case, in kinds of spaces, hyphens, apostrophes, quotation marks and dots between
words, in invisible characters, or in Unicode composition. Accents are significant: Zoe and Zoë are two people. Captions are also
searched without accents (`NamesInText`), since they are often omitted there.
"""

import difflib
import html
import re
import unicodedata
from collections.abc import Iterable

from ldm.run_folder import safe_name
from ldm.util import UserError

ALIKE = {"'": "\"\u2018\u2019\u201a\u201b\u2039\u203a\u02b9\u02bb\u02bc\u02bd\u02c8\u2032\u00b4\u0060\uff07\uff40\u055a\ua78c"
              "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u02ba\uff02", "-": "\u2043\u2212",
         "\u00b7": "\u2022\u2027\u22c5\u30fb\uff65", " ": "_\uff3f"}
ALIKE_TABLE = str.maketrans({other: sign for sign, others in ALIKE.items() for other in others})
NOT_IN_FILE_NAMES = str.maketrans(dict.fromkeys('<>:"/\\|?*', " "))  # of Windows, macOS or Linux
WITHOUT_STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"})
# Combining classes of accents (Latin, Greek, Cyrillic) and of points (Hebrew, Arabic), but not of vowel signs.
OPTIONAL_MARKS = {*range(10, 37), *range(200, 256)}
KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
SPACELESS = (r"\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"  # Thai, Khmer, ..
             r"\u3005-\u3007\u3041-\u3096\u309d-\u309f\u3105-\u312f\u3131-\u318e\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # Han, Hangul
             r"\uf900-\ufaff\U00020000-\U0003ffff")


def normal_form(name: str) -> str:
    """The form that all spellings of a name share, for comparison only."""
    plain = unicodedata.normalize("NFKC", name.translate(ALIKE_TABLE)).casefold()
    plain = unicodedata.normalize("NFKC", plain).translate(ALIKE_TABLE)
    kinds = ((letter, unicodedata.category(letter)) for letter in plain)
    return " ".join("".join("-" if kind == "Pd" else letter for letter, kind in kinds if kind != "Cf").split())


class NameList:
    """List of people that can be searched by any spelling of a name and by folder names derived from it.

    UserError about `source`, the origin of the names, if two of them have the same normal form.
    """

    def __init__(self, names: Iterable[str], source: object = "the list of people") -> None:
        self.source = source
        self._known: dict[str, str] = {}
        for name in names:
            other = self._known.setdefault(normal_form(name), name)
            if other != name:
                raise UserError(f"{source} holds '{other}' and '{name}', two spellings of one name; keep one of them")
        names = list(self._known.values())
        loose: dict[str, list[str]] = {}
        for name in names:
            for form in {normal_form(safe_name(name)), _folder_form(name)} - {""}:
                loose.setdefault(form, []).append(name)
        self._known = {form: found[0] for form, found in loose.items() if len(found) == 1} | self._known

    def __bool__(self) -> bool:
        return bool(self._known)

    def find(self, text: str) -> str | None:
        """The listed name of which `text` is a spelling or a folder name; None without a match."""
        return self._known.get(normal_form(text)) or self._known.get(_folder_form(text))

    def hint(self, text: str) -> str:
        """Suffix " (the nearest name in ... is ...)" for messages about a name that is not in the list; empty without a similar name."""
        near = difflib.get_close_matches(normal_form(text), self._known, n=1, cutoff=0.7)
        return f" (the nearest name in {self.source} is '{self._known[near[0]]}')" if near else ""


class NamesInText:
    """Finds names of people in captions: whole words, with or without accents, also as "Last, First" and as #FirstLast or @firstlast.

    In scripts without spaces between words, a name of two or more letters matches anywhere.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._forms = {}  # by name: its plain forms, "Last, First", and its handle
        for name in names:
            plain = words_of(name)
            first, _, last = plain.rpartition(" ")
            self._forms[name] = {plain, _closed_up(plain)} - {""}, f"{last}, {first}" if first else "", plain.replace(" ", "")

    def find(self, text: str) -> str | None:
        """The first name of the list that occurs in the text; None without any."""
        text = html.unescape(text)
        with_commas = words_of(text, ",")
        spaced = " ".join(with_commas.replace(",", " ").split())
        texts = {spaced, _closed_up(spaced)}
        words = re.findall(r"[#@]([\w.'-]+)", unicodedata.normalize("NFKC", text))
        handles = {words_of(word).replace(" ", "") for word in words} - {""}
        for name, (plain, last_first, handle) in self._forms.items():
            if (handle in handles or any(_stands_in(form, one) for form in plain for one in texts)
                    or (last_first and _stands_in(last_first, with_commas))):
                return name
        return None


def words_of(text: str, keep: str = "", *, accents: bool = False) -> str:
    """Letters, marks and digits of the normal form, with one space between words.

    The punctuation in `keep` is kept, followed by a space; `accents` keeps accents and symbols.
    """
    text = normal_form(text)
    if not accents:
        letters = unicodedata.normalize("NFKD", text.translate(WITHOUT_STROKES))
        text = unicodedata.normalize("NFC", "".join(letter for letter in letters if unicodedata.combining(letter) not in OPTIONAL_MARKS))
    kinds = "LMNS" if accents else "LMN"
    text = "".join(letter if letter in keep or unicodedata.category(letter)[0] in kinds else " " for letter in text)
    return " ".join(re.sub(rf"\s*([{re.escape(keep)}])\s*", r"\1 ", text).split() if keep else text.split())


def _closed_up(text: str) -> str:
    """The text without spaces between letters of scripts that do not separate words by spaces."""
    return re.sub(rf"(?<=[{SPACELESS}{KATAKANA}]) (?=[{SPACELESS}{KATAKANA}])", "", text)


def _stands_in(name: str, text: str) -> bool:
    """Whether the text contains the name, not as a part of a longer word."""
    start = text.find(name)
    while start >= 0:
        before, after = text[:start][-1:], text[start + len(name):][:1]
        marked = bool(after) and unicodedata.category(after)[0] == "M"  # a combining mark makes the last letter another one
        if not marked and not _joined(before, name[0], name) and not _joined(name[-1], after, name):
            return True
        start = text.find(name, start + 1)
    return False


def _joined(left: str, right: str, name: str) -> bool:
    """Whether two neighbouring letters belong to one word, so that the name is a part of a longer word."""
    if not left.strip(" ,") or not right.strip(" ,"):
        return False
    scripts = [next((script for script in (SPACELESS, KATAKANA) if re.match(f"[{script}]", letter)), "") for letter in (left, right)]
    return len(name) == 1 or scripts[0] == scripts[1] != SPACELESS


def _folder_form(name: str) -> str:
    """The normal form without characters that file systems refuse or drop."""
    return normal_form(name.translate(NOT_IN_FILE_NAMES)).rstrip(" .")
