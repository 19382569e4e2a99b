"""The report as one HTML file: style and pictures are in it, no script, and nothing is asked of any other address."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.paper.report.blocks import Block, Claims, Commands, Facts, Folded, Heading, Numbers, Paragraph, Picture, Value

STYLE = Path(__file__).with_name("report.css")
SIGNS = {"holds": "✓", "does not hold": "✗", "within noise": "≈", "not measured": "?"}
escape = html.escape


def html_page(blocks: Sequence[Block]) -> str:
    """The blocks as a page; the first one is its title. UserError if a picture cannot be read."""
    title = blocks[0]
    links = " ".join(f'<a href="#{escape(block.anchor)}">{escape(block.short)}</a>'
                     for block in blocks if isinstance(block, Heading) and block.short)
    head = (f'<meta charset="utf-8">\n<title>{escape(title.text)}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>")
    top = f'<header id="{title.anchor}"><h1>{escape(title.text)}</h1>\n<nav aria-label="Sections">{links}</nav></header>'
    body = "\n".join(map(_block, blocks[1:]))
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{top}\n<main>\n{body}\n</main>\n</body>\n</html>\n'


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f'<h{block.level} id="{escape(block.anchor)}">{escape(block.text)}</h{block.level}>'
        case Paragraph():
            return f"<p>{escape(block.text)}</p>"
        case Facts():
            return f"<dl>{''.join(f'<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>' for word, text in block.pairs)}</dl>"
        case Commands():
            return f'<p class="for">{escape(block.title)}</p>\n<pre tabindex="0"><code>{escape(chr(10).join(block.lines))}</code></pre>'
        case Numbers():
            return _numbers(block)
        case Picture():
            return _picture(block)
        case Claims():
            return f'<ol class="claims">\n{"".join(map(_claim, block.claims))}</ol>'
        case Folded():
            return f"<details><summary>{escape(block.summary)}</summary>\n{chr(10).join(map(_block, block.blocks))}\n</details>"


def _numbers(table: Numbers) -> str:
    """A table in a box of its own, in which it scrolls where it is wider than the screen."""
    deep = any(column.halves for column in table.columns)
    down = ' rowspan="2"' if deep else ""
    over = "".join(f'<th scope="colgroup" colspan="{len(column.halves)}">{escape(column.title)}</th>' if column.halves
                   else f'<th scope="col"{down}>{escape(column.title)}</th>' for column in table.columns)
    head = f'<tr><th scope="col"{down}>{escape(table.first)}</th>{over}</tr>'
    if deep:
        head += f'<tr>{"".join(f"""<th scope="col">{half}</th>""" for column in table.columns for half in column.halves)}</tr>'
    rows = "\n".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_value, values))}</tr>' for name, values in table.rows)
    caption = escape(table.caption)
    return (f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table>\n<caption>{caption}</caption>\n'
            f"<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>")


def _value(value: Value) -> str:
    text = f"<b>{escape(value.text)}</b>" if value.best else escape(value.text)
    spread = f' <span class="spread">{escape(value.spread)}</span>' if value.spread else ""
    interval = f' <span class="interval">{escape(value.interval)}</span>' if value.interval else ""
    return f"<td>{text}{spread}{interval}</td>"


def _claim(claim: Mapping[str, Any]) -> str:
    verdict, figures = escape(claim["verdict"]), "".join(f"<li>{escape(line)}</li>" for line in claim["figures"])
    why = f'<p class="why"><b>Why:</b> {escape(claim["why"])}</p>' if claim["why"] else ""
    return (f'<li class="{verdict.replace(" ", "-")}"><p class="verdict"><span aria-hidden="true">{SIGNS.get(claim["verdict"], "")}</span> '
            f'{verdict}</p><h3>{escape(claim["number"])}. {escape(claim["claim"])}</h3><ul>{figures}</ul>{why}'
            f'<p class="place">{escape(claim["section"])}</p></li>\n')


def _picture(picture: Picture) -> str:
    kind, data, (width, height) = picture.encoded
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(picture.alt)}">'
    box = f'<div class="scroll {"grid" if picture.is_grid else "lines"}" role="region" aria-label="{escape(picture.caption)}" tabindex="0">'
    return f"<figure>{box}{image}</div><figcaption>{escape(picture.caption)}</figcaption></figure>"
