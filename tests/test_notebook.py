"""The notebook runs to its end in a kernel, as users run it, and git has it without outputs."""

import json
import re
from collections import Counter

import pytest

from args.common import ROOT

NOTEBOOK = ROOT / "notebooks/first_steps.ipynb"
USED = ("args", "configs", "data", "embeddings", "ldm", "requirements.txt", "test_id.py", "train.py")
PATIENCE = 1800  # seconds per cell, for machines that do much else


def test_git_has_the_notebook_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count") or cell["metadata"]] == []


def test_every_link_of_the_notebook_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", NOTEBOOK.read_text(encoding="utf-8")) if "://" not in link]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.weights
def test_every_cell_runs_and_shows_its_images_curve_and_table(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("diffusers")
    for name in USED:  # of the repository, so that runs/ is in a folder of its own
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # everything is installed
    messages = Counter()

    class Client(nbclient.NotebookClient):
        def process_message(self, message, *others):
            messages[message["msg_type"]] += 1
            return super().process_message(message, *others)

    book = nbformat.read(NOTEBOOK, as_version=4)
    Client(book, timeout=PATIENCE, startup_timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()

    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    shown = {name: Counter(kind for output in those for kind in output.get("data", ())) for name, those in outputs.items()}
    assert all(shown[name]["image/png"] == 1 for name in ("compare", "curve", "trained", "measure", "attached", "service"))
    assert messages["update_display_data"] > 1  # the curve grows
    assert outputs["curve"][-1].text.startswith("prefix runs/first-steps/embeddings/first-100.pt")
    rows = json.loads((tmp_path / "runs/first-steps/test_id/results.json").read_text(encoding="utf-8"))
    id_acc = {(row["prefix"].rpartition("/")[2], row["group"]): row["id_acc_mean"] for row in rows}
    for group in ("train", "test"):
        assert max(id_acc["first-100.pt", group], id_acc["apl-mini.pt", group]) < id_acc["none", group]
