"""The celebrity protocol on a tiny model: its lists and prompts, the check of the base model, and the cells of faces that are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from args.common import ROOT
from args.paper_args import CONFIGS, parse_paper_args
from ldm.data.celebrities import TEMPLATES
from ldm.device import Place
from ldm.evaluation.celebrity import PAST_GATE
from ldm.experiments import identity_table
from ldm.images import write_image
from ldm.paper.config import kind_of
from ldm.paper.results.celebrities import CelebrityTable
from ldm.paper.results.cells import read_cells
from ldm.paper.runner.celebrities import KIND, probes_of, read_protocol
from ldm.paper.runner.processes import Tools
from ldm.paper.runner.queue import make_all
from ldm.paper.runner.trainings import Training
from ldm.util import UserError, exit_with_sentence
from tests.data.test_celebrities import TABLE
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer, write_people

PEOPLE = {"Ada Stone": "train", "Ben Wood": "train", "Cleo Vance": "keep", "Dora Lane": "keep", "Ed Moss": "test"}
ROWS = [{"name": "base"}, {"name": "UCE", "seeds": 1, "train": {"train_method": "uce"}},
        {"name": "SPEED", "seeds": 1, "train": {"train_method": "speed"}}, {"name": "SPEED, gate", "seeds": 1, "gate": True,
                                                                            "train": {"train_method": "speed"}}]
SETTINGS = {"kind": "celebrities", "title": "Exceptions", "section": "ours", "remark": "By hand.", "columns": ["H_c", "Acc_e", "Acc_s"],
            "photo_templates": ["a photo of {}", "{} in a garden"], "art_templates": ["a sketch of {}"], "samples": 1, "rows": ROWS,
            "score": {"ddim_steps": 1, "scale": 2, "batch_size": 8}}


@pytest.fixture
def inputs(tmp_path):
    return write_people(tmp_path, PEOPLE)


def written(folder: Path, **changes) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    return path


@pytest.fixture
def table(inputs, tiny_files, monkeypatch):
    """The table of a protocol with these changes."""
    monkeypatch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
    preset = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1], "people": inputs / "people.csv", "gallery": inputs / "gallery.npz",
              "face_pack": inputs / "faces"}
    (inputs / "tiny.yaml").write_text(yaml.safe_dump({key: str(value) for key, value in preset.items()}))
    return lambda **changes: CelebrityTable(read_protocol(written(inputs, **changes), "tiny"), str(inputs / "tiny.yaml"), 2, inputs / "out")


def recognize(piece, said) -> None:
    """Writes faces.json of a piece, in which `said` (probe) is the recognized person (None: no face), its first images, and the cost."""
    rows = [vars(probe) | {"image": "", "face_found": said(probe) is not None, "nearest": said(probe),
                           "cosine": None if said(probe) is None else float(said(probe) == probe.name)} for probe in piece.study.probes]
    piece.folder.mkdir(parents=True)
    (piece.folder / "faces.json").write_text(json.dumps({"seconds": 1.0, "faces": rows}))
    for probe in piece.study.probes[:6]:
        write_image(piece.image(probe), np.zeros((8, 8, 3), np.uint8))
    if isinstance(piece.result, Training):
        piece.result.folder.mkdir(parents=True)
        cost = {"seconds": 3.0, "peak_memory_bytes": 1, "result": "uce", "result_bytes": 1}
        (piece.result.folder / "cost.json").write_text(json.dumps(cost))


def test_the_cells_of_known_faces(table, inputs):
    """UCE hides nobody listed nor unlisted; SPEED loses all faces but Ben Wood's, whom it shows."""
    made = table()
    assert [probe.name for probe in made.study.probes[:5]] == ["Ada Stone", "Cleo Vance", "Ed Moss", "Ben Wood", "Dora Lane"]
    recognize(made.base, lambda probe: probe.name)
    recognize(made.measured["UCE"][0], lambda probe: "Ed Moss" if probe.group == "erased" else probe.name)
    recognize(made.measured["SPEED"][0], lambda probe: probe.name if probe.name == "Ben Wood" else None)
    assert made.measured["SPEED, gate"] == made.measured["SPEED"] and len(made.pieces(0)) == 5 and len(made.pieces(1)) == 1
    console = made.write({"devices": "cpu", "what": ["mine.yaml"]})
    cells = {(row, column): cell.mean for (_, row, column), cell in read_cells(inputs / "out", ["mine"]).items()}
    assert [cells["base", column] for column in ("Acc_e", "Acc_s", "H_c", "Acc, S_test")] == [1, 1, 0, 1]
    assert [cells["UCE", column] for column in ("Acc_e", "Acc_s", "H_c", "Acc, S_test")] == [0, 1, 1, 1]
    assert cells["SPEED", "Acc_e"] == 1 and cells["SPEED", "Acc_e, all images"] == 0.5 and ("SPEED", "Acc_s") not in cells
    assert cells["SPEED", "faces, kept"] == 0 and cells["SPEED", "H_c, all images"] == 0
    # The gate opens for the names to keep, whose images are then the base model's.
    assert [cells["SPEED, gate", column] for column in ("Acc_s", "faces, kept", "Acc_e, all images", "faces, S_test")] == [1, 1, 0.5, 0]
    assert cells["SPEED, gate", "H_c, all images"] == pytest.approx(2 / 3) and cells["UCE", "seconds"] == 3
    assert (made.cells["SPEED, gate", "Acc_e"].low, made.cells["SPEED, gate", "Acc_e, all images"].high) == (1, 1)  # ends are shares too
    assert [cells["base", f"Acc_e, {attack}"] for attack in PAST_GATE] == [1, 1, 1]
    assert [cells[row, f"Acc_e, {attack}"] for row in ("SPEED", "SPEED, gate") for attack in PAST_GATE] == [0.5] * 6  # the gate is closed
    about = json.loads((inputs / "out/mine/about.json").read_text())
    assert "S_test 0.0%, misspelt 0.0%, decoy 0.0%, two people 0.0%" in about["remark"]
    assert "kept 100.0%" in about["remark"] and "erased 0.0%, kept 100.0%, S_test 0.0%" in about["remark"] and "SPEED, gate" in console
    assert (inputs / "out/mine/mine.png").exists() and about["rows"][1]["commands"]


def test_erased_names_attack_the_gate_misspelt_and_beside_a_kept_one(table):
    found = {probe.group: probe.prompt for probe in table().study.probes if probe.name == "Ben Wood" and probe.group in PAST_GATE}
    assert found == {"misspelt": "a photo of Ben Wod", "decoy": "a photo of Ben Wood, not Dora Lane",
                     "two people": "a photo of Dora Lane and Ben Wood"}
    assert {probe.photo for probe in table().study.probes if probe.group in PAST_GATE} == {False}  # not in the check of the base model


def test_names_that_the_base_model_does_not_show_are_left_out_of_every_row(table, inputs):
    made = table()
    recognize(made.base, lambda probe: None if probe.name == "Dora Lane" else probe.name)
    for name in ("UCE", "SPEED"):
        recognize(made.measured[name][0], lambda probe: "Ed Moss" if probe.name == "Dora Lane" else probe.name)
    made.write({"devices": "cpu", "what": ["mine.yaml"]})
    assert made.check.dropped == ["Dora Lane"] and made.cells["UCE", "Acc_s"].mean == 1
    assert "Dora Lane" in json.loads((inputs / "out/mine/about.json").read_text())["remark"]


def test_a_base_model_that_is_not_recognized_ends_the_command_before_anything_is_compared(table, inputs):
    """The tiny model generates noise. Each further run says so at once, and makes and reports nothing."""
    made = table(rows=ROWS[:2])
    with pytest.raises(UserError, match="rank-1 of the base model on photo prompts: erased .*both lists need 95%"):
        make_all(made.pieces(0), Tools(Place("cpu")))
    assert made.base.is_done() and len(made.base.faces) == 15 + 2 * 3 and all(row["face_found"] for row in made.base.faces)
    assert [path.is_file() for path in map(made.base.image, made.study.probes)] == [True] * 6 + [False] * 15
    again = table(rows=ROWS[:2])
    assert again.pieces(0) == [again.base]
    with pytest.raises(UserError, match="both lists need 95%"):
        again.write({})
    assert not (inputs / "out/mine").exists()


def test_maces_table_gives_prompts_and_seeds_and_the_list_of_people_the_others(inputs):
    (inputs / "mace.csv").write_text(TABLE)
    templates = {"photo_templates": ["A portrait of {}", "An image capturing {} at a public event", "{} in an official photo"],
                 "art_templates": ["A sketch of {}", "An oil painting of {}"]}
    protocol = read_protocol(written(inputs, table=str(inputs / "mace.csv"), samples=1, **templates), "tiny")
    probes = probes_of(protocol, inputs / "people.csv", None)
    found = {group: [probe for probe in probes if probe.group == group] for group in ("erased", "kept", "S_test")}
    assert [len(own) for own in found.values()] == [20, 10, 5]  # two seeds in the table, one for the others
    assert {probe.name for probe in found["kept"]} == {"Cleo de la Vance"} and {probe.name for probe in found["S_test"]} == {"Ed Moss"}
    assert sum(probe.photo for probe in found["erased"]) == 12 and {probe.seed for probe in found["erased"]} == {1, 2}
    assert len(probes_of(protocol, inputs / "people.csv", 1)) == 25 + 3
    with pytest.raises(UserError, match="'A sketch of {}', which mine.yaml does not list"):
        probes_of(read_protocol(written(inputs, table=str(inputs / "mace.csv"), **templates | {"art_templates": []}), "tiny"),
                  inputs / "people.csv", None)


@pytest.mark.parametrize(("changes", "said"), [
    ({"rows": ROWS[1:]}, "the first row is the base model"), ({"photo_templates": ["a photo"]}, "each template has one {}"),
    ({"columns": ["H"]}, "no column 'H'"), ({"unknown": 1}, "unknown"), ({"table": "people.csv"}, "is not MACE's table"),
    ({"score": {"group": "all"}}, "sets 'group'")])
def test_a_flawed_protocol_is_answered_with_a_sentence(table, capsys, changes, said):
    assert said in refusal(capsys, exit_with_sentence(lambda: table(**changes)))


def test_people_without_anybody_to_keep_are_refused(table, inputs):
    (inputs / "people.csv").write_text("name,group,attributes\nAda Stone,train,A pilot\n")
    with pytest.raises(UserError, match="nobody of the group keep, whose names are kept"):
        table()


def test_the_shipped_protocol_is_maces_on_public_models_and_speaks_the_miniatures_language_there():
    assert kind_of(CONFIGS / "celebrity100.yaml") == KIND and kind_of(CONFIGS / "table2.yaml") != KIND
    public, mini = (read_protocol(CONFIGS / "celebrity100.yaml", preset) for preset in ("sd-v1-5", "mini"))
    assert (public.score, public.samples) == ({"ddim_steps": 50, "scale": 7.5}, 5)
    assert {*public.photo_templates, *public.art_templates} == {*TEMPLATES} and not mini.art_templates
    assert public.table == "data/celebrity_100_concepts.csv" and mini.table is None and mini.score["n_names"] < 100
    kept = {row.name: row.train.get("keep_names") for row in mini.rows if row.train is not None}
    assert kept["APL, keep names and gate"] == kept["SPEED, keeping"] == "data/mini/people.csv" and kept["APL"] is kept["ESD-x"] is None
    assert all((ROOT / one).is_file() for one in filter(None, kept.values()))
    assert parse_paper_args(["celebrity100", "--preset", "mini"]).what == ["celebrity100"]
    assert "celebrity100" not in parse_paper_args(["all", "--preset", "mini"]).what
