"""Results of the page: HTML of images, metrics and the curve, and a zip file of images and settings."""

import base64
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from ldm.experiments.variants import BASE
from ldm.page.studio import ScoredImage
from ldm.run_folder import versions

STYLE = """
.apl-row {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, 45%), 1fr)); gap: 10px; padding: 4px 0 24px}
.apl-row figure {margin: 0; overflow-wrap: anywhere; font-size: 0.85em; line-height: 1.4}
.apl-row img {width: 100%; border-radius: 6px; margin: 0 0 4px}
.apl-curve img {width: 100%; max-width: 640px; border-radius: 6px; margin: 0}
.apl-curve {padding-bottom: 20px}
.apl-error {border-left: 4px solid #c0392b; padding: 8px 12px; font-weight: 600}
"""


def images_as_html(portraits: Sequence[ScoredImage], total: int, *, nearest: bool = True) -> str:
    """A row of images per prompt, with ID-ACC and the nearest people under each face, and the progress until there are `total`."""
    rows = []
    for (prompt, name), row in groupby(portraits, lambda one: (one.prompt, one.name)):
        person = f"ID-ACC of {escape(name)}" if name else "The prompt names nobody of the gallery."
        figures = "".join(f"<figure><img src='{_address(one.png, 'png')}' alt='{escape(f'{_label(one)}: {prompt}')}'>"
                          f"<figcaption>{escape(_label(one))}<br>{_metrics(one, nearest)}</figcaption></figure>" for one in row)
        rows.append(f"<div><strong>{escape(prompt)}</strong><br><small>{person}</small><div class='apl-row'>{figures}</div></div>")
    progress = f"<p role='status'>{len(portraits)} of {total} images</p>" if len(portraits) < total else ""
    return "".join(rows) + progress


def curve_as_html(portraits: Sequence[ScoredImage]) -> str:
    """Plot of ID-ACC over strength, one line per prefix; images without a face are left out."""
    from matplotlib.figure import Figure  # here, for its import takes a second

    figure = Figure((5, 3.2), layout="constrained")
    axes = figure.subplots()
    for prefix, line in groupby(portraits, lambda one: one.prefix):
        points = [(one.strength, one.id_acc) for one in line if one.id_acc is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=prefix)
    axes.set(xlabel="strength s", ylabel=f"ID-ACC of {portraits[0].name}")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return f"<div class='apl-curve'><img src='{_address(buffer.getvalue(), 'svg+xml')}' alt='ID-ACC over strength'></div>"


def error_as_html(error: Exception) -> str:
    """The error's sentence."""
    return f"<p class='apl-error' role='alert'>{escape(str(error))}</p>"


def write_zip(path: Path, portraits: Sequence[ScoredImage], settings: Mapping[str, Any]) -> None:
    """Write the images as NUMBER-PREFIX.png, and the settings, metrics and versions as settings.json."""
    images = []
    with zipfile.ZipFile(path, "w") as file:
        for number, one in enumerate(portraits, start=1):
            about = {key: value for key, value in vars(one).items() if key not in ("image", "png")}
            images.append({"file": f"{number:02}-{one.prefix}.png"} | about)
            file.writestr(images[-1]["file"], one.png)
        content = {**settings, "images": images, "versions": versions()}
        file.writestr("settings.json", json.dumps(content, indent=1, ensure_ascii=False))


def _label(portrait: ScoredImage) -> str:
    return "without a prefix" if portrait.prefix == BASE.label else f"{portrait.prefix}, strength {portrait.strength:g}"


def _metrics(portrait: ScoredImage, nearest: bool) -> str:
    if not portrait.face_found:
        return "no face found"
    lines = [] if portrait.id_acc is None else [f"<b>ID-ACC {portrait.id_acc:.2f}</b>"]
    lines += ["nearest:", *(f"{escape(name)} {cosine:.2f}" for name, cosine in portrait.nearest)] if nearest else []
    return "<br>".join(lines)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
