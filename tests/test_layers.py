"""Imports point only downward (DESIGN.md, Layout), and `args` stays light enough for an immediate --help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "ldm.util": 0, "ldm.containers": 0, "ldm.finite": 0, "ldm.public_names": 0,
    "ldm.models": 1, "ldm.modules": 1,
    "ldm.loading": 2, "ldm.generation": 2, "ldm.device": 2, "ldm.images": 2, "ldm.run_folder": 2, "ldm.sharing": 2, "ldm.model_card": 2,
    "ldm.text_files": 2, "ldm.logbook": 2, "ldm.edited_weights": 2, "ldm.names": 2,
    "ldm.left_out": 2, "ldm.cpu_bf16": 2, "ldm.image_files": 2, "ldm.contents": 2, "ldm.diffusers_folder": 1,
    "ldm.diffusers_names": 1, "ldm.hub": 1,
    "ldm.data": 3, "ldm.mini": 3, "ldm.finetuning": 4,
    "ldm.apl": 5, "ldm.baselines": 5, "ldm.attacks": 5, "ldm.evaluation": 5, "ldm.export": 5,
    "ldm.experiments": 6,
    "ldm.paper.config": 7, "ldm.paper.runner": 8, "ldm.paper.results": 9, "ldm.paper.report": 10, "ldm.paper": 11, "ldm.benchmark": 7,
    "ldm.page": 7,
}
FLOORS = {"ldm.mini.__main__": 8, "ldm.mini.card": 7} | FLOORS  # scripts: they rebuild the miniature and measure it with the experiments
SCRIPTS = {"train", "test_id", "test_fid_clip_score", "dataset_generation", "tests"}
SIBLINGS = {"ldm.apl", "ldm.baselines", "ldm.attacks", "ldm.evaluation", "ldm.export"}
WITHOUT_MODEL = ("ldm.models", "ldm.modules", "ldm.loading", "ldm.generation", "ldm.data", "ldm.mini")
SOURCES = sorted(ROOT.glob("ldm/**/*.py"))


def part_of(module: str) -> str | None:
    """The entry of FLOORS a module belongs to; None for the package `ldm` itself and what is not ours."""
    return next((part for part in FLOORS if module == part or module.startswith(part + ".")), None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Full names of everything a file imports, also inside functions; `from a import b` counts as a.b."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_on_a_floor():
    assert [module_of(path) for path in SOURCES if part_of(module_of(path)) is None] == ["ldm"]  # the empty package


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_only_downward(path):
    part = part_of(module_of(path))
    for imported in sorted(imports_of(path)):
        assert imported.split(".")[0] not in SCRIPTS, f"{module_of(path)} imports the script {imported}"
        below = part_of(imported)
        if part and below and part != below:
            assert FLOORS[below] <= FLOORS[part], f"{module_of(path)} imports {imported} from a floor above"
            assert not {part, below} <= SIBLINGS, f"{module_of(path)} imports its sibling {imported}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("ldm/evaluation/*.py")), ids=module_of)
def test_evaluation_knows_no_model(path):
    assert [name for name in imports_of(path) if part_of(name) in WITHOUT_MODEL] == []


def test_the_arguments_need_no_torch():
    modules = [f"args.{path.stem}" for path in ROOT.glob("args/*.py") if path.stem != "__init__"]
    code = f"import sys, args, {', '.join(modules)}; assert not {{'torch', 'numpy', 'PIL', 'ldm'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_command_imports_torchmetrics_before_it_needs_it():
    code = "import sys, ldm.apl.launch, ldm.apl.trainer, ldm.experiments.identity_table; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
