"""The report as Markdown, with its pictures beside it: what GitHub shows."""

import html
import re
from collections.abc import Sequence

from ldm.evaluation.tables import markdown_lines
from ldm.paper.report.blocks import Block, Claims, Commands, Facts, Folded, Heading, Numbers, Paragraph, Picture, Value


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks one after another; pictures are linked by their file names alone."""
    return "\n\n".join(_block(block, blocks) for block in blocks) + "\n"


def markdown_numbers(table: Numbers) -> str:
    """A table of numbers; a column with halves is two columns."""
    titles = [f"{column.title} {half}".strip() for column in table.columns for half in column.halves or ("",)]
    return markdown_lines([table.first, *titles], [False, *[True] * len(titles)],
                          [[escaped(name), *map(_value, values)] for name, values in table.rows])


def escaped(text: str) -> str:
    """Any text as Markdown that shows it as it is, in one line."""
    return re.sub(r"([\\`*_\[\]|<>&#~$])", r"\\\1", " ".join(text.split()))


def _block(block: Block, all_blocks: Sequence[Block]) -> str:
    match block:
        case Heading(level=1):
            headings = [each for each in all_blocks if isinstance(each, Heading) and each.short]
            return f"# {escaped(block.text)}\n\n{' · '.join(f'[{escaped(each.short)}](#{each.anchor})' for each in headings)}"
        case Heading():
            return f'<a name="{block.anchor}"></a>\n\n{"#" * block.level} {escaped(block.text)}'
        case Paragraph():
            return escaped(block.text)
        case Facts():
            return "\n".join(f"- {escaped(word)}: {escaped(text)}" for word, text in block.pairs)
        case Commands():
            lines = "\n".join(block.lines)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
            return f"{escaped(block.title)}:\n\n{fence}bash\n{lines}\n{fence}"
        case Numbers():
            return markdown_numbers(block)
        case Picture():
            return f"![{escaped(block.alt)}]({block.name})\n\n{escaped(block.caption)}"
        case Claims():
            rows = [[escaped(claim["number"]), f"{escaped(claim['claim'])} ({escaped(claim['section'])})",
                     f"**{escaped(claim['verdict'])}**",
                     "<br>".join(map(escaped, claim["figures"])) + (f"<br>*{escaped(claim['why'])}*" if claim["why"] else "")]
                    for claim in block.claims]
            return markdown_lines(["", "claim", "verdict", "measured"], [True, False, False, False], rows)
        case Folded():
            inner = "\n\n".join(_block(each, all_blocks) for each in block.blocks)
            return f"<details><summary>{html.escape(block.summary)}</summary>\n\n{inner}\n\n</details>"


def _value(value: Value) -> str:
    text = f"**{value.text}**" if value.best else value.text
    return " ".join(filter(None, [text, value.spread, escaped(value.interval)]))
