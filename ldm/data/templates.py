"""Prompt templates: "a photo of {}", filled alike into c1 (the name) and c2 (the attributes) (paper section 4.1)."""

from pathlib import Path

from ldm.text_files import read_lines
from ldm.util import UserError


def read_templates(path: str | Path) -> list[str]:
    """Templates of a text file, one a line with one {}; empty lines and lines that start with # are passed over.

    Raises:
        UserError: no such file, no template in it, or a line without exactly one {}.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the file of templates {path} does not exist; give a text file with one template a line, "
                        "such as 'a photo of {}'")
    templates = read_lines(path, ("template", "templates", "prompt", "text"))
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"the template '{template}' in {path} has {template.count('{}')} places {{}}; "
                            "write exactly one")
    if not templates:
        raise UserError(f"the file {path} holds no template; write one a line, such as 'a photo of {{}}'")
    return templates


def fill(template: str, text: str) -> str:
    """The template with `text` in its place; "{}" alone gives `text` as it is."""
    return template.replace("{}", text)
