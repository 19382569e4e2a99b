"""The repository as an installed package: what is imported is listed, and commands and files are found from any folder."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from args.paths import ROOT
from args.train_args import parse_train_args
from args.transfer_args import parse_transfer_args

OWN = {"ldm", "args", "tests", *(path.stem for path in ROOT.glob("*.py"))}


def run(code: str, folder: Path) -> str:
    """What Python says in a folder that has nothing of the repository, which is installed by its path alone."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def requirements(*files: str) -> dict[str, str]:
    """Name, as registries normalise it -> bounds."""
    lines = [line.strip() for file in files for line in (ROOT / file).read_text().splitlines() if line.strip()]
    split = [re.fullmatch(r"([\w.-]+)(.*)", line).groups() for line in lines]
    return {re.sub(r"[-_.]+", "-", name).lower(): bounds for name, bounds in split}


def imported(*patterns: str) -> set[str]:
    """Top-level packages that the files import, also inside functions."""
    nodes = [node for pattern in patterns for path in ROOT.glob(pattern) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OWN


def test_every_requirement_has_a_lower_bound():
    listed = requirements("requirements.txt", "tests/requirements.txt", "ldm/page/requirements.txt")
    assert [name for name, bounds in listed.items() if not bounds.startswith(">=")] == []


@pytest.mark.parametrize(("files", "patterns"), [
    (("requirements.txt",), ("*.py", "args/*.py", "ldm/**/*.py")), (("requirements.txt", "tests/requirements.txt"), ("tests/**/*.py",))])
def test_every_package_that_is_imported_is_required(files, patterns):
    owners, listed = importlib.metadata.packages_distributions(), requirements(*files)
    known = {name: {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [])} for name in imported(*patterns)}
    missing = {name for name, packages in known.items() if not packages & set(listed)}
    # A pipeline of one's own has diffusers; LAION's .parquet needs pyarrow, the page Gradio, and both say so; the page's test is skipped.
    assert missing <= {"diffusers", "pyarrow", "gradio", "playwright", "huggingface_hub"}  # the last comes with transformers


def test_the_package_has_every_folder_and_script():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setuptools["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    assert [path for path in ROOT.glob("ldm/**/*.py") if not (path.parent / "__init__.py").exists()] == []
    assert (ROOT / "ldm/py.typed").exists() and (ROOT / "args/py.typed").exists()


@pytest.mark.parametrize(("command", "script"), [
    ("apl-train", "train"), ("apl-test-id", "test_id"), ("apl-test-quality", "test_fid_clip_score"), ("apl-data", "dataset_generation"),
    ("apl-paper", "ldm.paper"), ("apl-export", "ldm.export"), ("apl-page", "ldm.page")])
def test_an_installed_command_does_what_its_script_does(tmp_path, command, script):
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][command]
    help_of = "import sys; sys.argv = ['command', '--help']\n"
    installed = run(f"{help_of}import importlib.metadata as m; m.EntryPoint('{command}', '{entry}', 'console_scripts').load()()", tmp_path)
    assert installed == run(f"{help_of}import runpy; runpy.run_module('{script}', run_name='__main__')", tmp_path) != ""


def test_scripts_and_library_are_imported_from_any_folder(tmp_path):
    run("import ldm.apl, train, test_id, test_fid_clip_score, dataset_generation", tmp_path)


def test_models_and_prefixes_of_the_repository_are_found_from_any_folder(tmp_path):
    run("from ldm.loading import load_frozen_model\nfrom ldm.apl import AnonymizationPrompt\n"
        "load_frozen_model('configs/stable-diffusion/mini-inference.yaml', 'data/mini/mini-sd.safetensors')\n"
        "AnonymizationPrompt.load('embeddings/apl-mini.pt')", tmp_path)


def test_flags_name_files_of_the_repository_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parse_train_args(["--config_path", "configs/stable-diffusion/mini-inference.yaml", "--preset", "configs/presets/mini.yaml",
                             "--prompts_file", "data/prompts.txt", "data/mini/anonymous_prompts.txt", "--init", "embeddings/apl-mini.pt"])
    assert args.config_path == ROOT / "configs/stable-diffusion/mini-inference.yaml"
    assert args.prompts_file == [ROOT / "data/prompts.txt", ROOT / "data/mini/anonymous_prompts.txt"]
    assert args.init == str(ROOT / "embeddings/apl-mini.pt")


def test_the_readmes_own_code_runs_from_any_folder(tmp_path):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
              if "load_frozen_model" in block]
    run(code.replace("sample(20,", "sample(1,"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["alina.png"]


def test_the_current_folder_goes_before_the_repository_and_nothing_is_written_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prompts.txt").write_text("a red car\n")
    args = parse_train_args(["--preset", "mini", "--prompts_file", "data/prompts.txt", "--out_dir", "data/mini"])
    assert args.prompts_file == [Path("data/prompts.txt")] and args.out_dir == Path("data/mini")
    args = parse_transfer_args(["embeddings/apl-mini.pt", "embeddings/apl-mini-xl.safetensors", "--to", "mini-xl"])
    assert args.source == ROOT / "embeddings/apl-mini.pt" and args.target == Path("embeddings/apl-mini-xl.safetensors")
