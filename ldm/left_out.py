"""Report of the inputs that a reader leaves out: counted per reason and listed with advice, so that nothing is dropped silently."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ldm.text_files import write_csv
from ldm.util import UserError

Report = Callable[[str, str], None]  # takes a reason and a sentence

HARMLESS = (HIDDEN, MET_TWICE, OTHER_FORMAT, NO_SUFFIX, ARCHIVE, ELSEWHERE, FURTHER_CAPTIONS, NO_CAPTION, NO_FID, NO_IMAGE,
            TEST_GROUP, KEEP_GROUP) = (
    "hidden", "met twice", "other format", "no image suffix", "archive", "in another folder", "further captions", "no caption", "no FID",
    "text of no image", "of the test group", "of the keep group")


@dataclass
class LeftOut:
    """Report of a reader, with one row (reason, sentence) per item that is left out; `strict` raises UserError unless it is HARMLESS."""

    strict: bool = False
    rows: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, reason: str, sentence: str) -> None:
        if self.strict and reason not in HARMLESS:
            raise UserError(sentence)
        self.rows.append({"reason": reason, "what": sentence})

    def __str__(self) -> str:
        counts = Counter(row["reason"] for row in self.rows)
        return ", ".join(f"{count} x {reason}" for reason, count in counts.most_common()) or "nothing"

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        write_csv(self.rows, path, ["reason", "what"])

    def announce(self, out_dir: Path) -> None:
        """Print counts and the first sentence, and write left_out.csv; without rows, remove the file of an earlier run."""
        if self.rows:
            self.write(out_dir / "left_out.csv")
            first = self.rows[0]["what"].encode(errors="replace").decode()
            print(f"left out: {self}, such as: {first} (all are in {out_dir / 'left_out.csv'})", flush=True)
        else:
            (out_dir / "left_out.csv").unlink(missing_ok=True)


def besides(report: Report) -> str:
    """Suffix for messages about an empty folder: the counts of what was left out."""
    return f" (left out: {report})" if isinstance(report, LeftOut) and report.rows else ""
