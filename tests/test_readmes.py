"""What the READMEs name is there: links, modules and configs, and every flag of every command; and the first of them is one page."""

import importlib
import re
import shlex

import pytest

from args.common import ROOT

READMES = sorted(path for path in ROOT.rglob("README.md") if not re.match(r"\.|build|runs", str(path.relative_to(ROOT))))
PARSERS = {"train.py": "train_args", "test_id.py": "test_id_args", "test_fid_clip_score.py": "test_fid_clip_score_args",
           "dataset_generation.py": "dataset_generation_args", "ldm.paper": "paper_args", "ldm.export": "export_args",
           "ldm.apl.transfer": "transfer_args", "ldm.benchmark": "benchmark_args", "ldm.page": "page_args"}
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(rf"(?<![\w/.])({'|'.join(map(re.escape, PARSERS))})(?![\w.])([^\n;&|]*)")


def name_of(path):
    return str(path.relative_to(ROOT))


def commands_of(text):
    """Name and further words of each of our commands that a README shows."""
    blocks = [block.replace("\\\n", " ") for block in BLOCK.findall(text) if block.startswith("```bash")]
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
    for code in blocks + inline:
        for name, rest in COMMAND.findall(code):
            yield name, shlex.split(rest, comments=True)


def flags_of(name, words):
    module = importlib.import_module(f"args.{PARSERS[name]}")
    return set(module.build_parser(*set(getattr(module, "COMMANDS", ())) & set(words))._option_string_actions)


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_link_leads_somewhere(readme):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", readme.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        assert target.exists(), f"{name_of(readme)} links to {link}"
        text = target.read_text(encoding="utf-8") if anchor else ""
        titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles] + re.findall('<a name="([^"]+)">', text)
        assert not anchor or anchor in anchors, link


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_module_and_config_is_there(readme):
    named = re.findall(r"`((?:args|configs|ldm|tests)/[\w/.-]+\.(?:py|yaml))`", readme.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_flag_of_a_command_exists(readme):
    for name, words in commands_of(readme.read_text(encoding="utf-8")):
        assert {word for word in words if word.startswith("--")} <= flags_of(name, words), f"{name} {' '.join(words)}"


def test_the_commands_of_a_readme_are_found():
    shown = "```bash\npython train.py --lr 1  # slow\ntorchrun --nnodes 2 \\\n    test_id.py A; ls\n```\nand `python -m ldm.export IN\nOUT`"
    assert [*commands_of(shown)] == [("train.py", ["--lr", "1"]), ("test_id.py", ["A"]), ("ldm.export", ["IN", "OUT"])]


def test_the_first_readme_is_one_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = [line for line in BLOCK.sub("", text).splitlines() if not line.startswith("|")]
    assert len(text.splitlines()) <= 200 and len(" ".join(prose).split()) <= 1100
