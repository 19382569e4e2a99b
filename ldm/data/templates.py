"""Prompt templates such as "a photo of {}", filled with the name for c1 and with the attributes for c2 (paper section 4.1)."""

from pathlib import Path

from ldm.text_files import read_lines
from ldm.util import UserError


def read_templates(path: str | Path) -> list[str]:
    """Templates of a text file, one per line, each with one {}; empty lines and lines that start with # are skipped.

    Raises:
        UserError: the file does not exist or is empty, or a line does not have exactly one {}.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the template file {path} does not exist; give a text file with one template per line, "
                        "such as 'a photo of {}'")
    templates = read_lines(path, ("template", "templates", "prompt", "text"))
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"the template '{template}' in {path} has {template.count('{}')} places {{}}; "
                            "write exactly one")
    if not templates:
        raise UserError(f"the file {path} holds no template; write one per line, such as 'a photo of {{}}'")
    return templates


def fill(template: str, text: str) -> str:
    """The template with {} replaced by `text`."""
    return template.replace("{}", text)
