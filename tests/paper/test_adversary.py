"""python -m ldm.paper attacks on a tiny model: what each piece of work writes, the table, and resuming."""

import csv
import json
import shutil

import pytest
import torch
import yaml

from args.paper_args import CONFIGS, OWN, parse_paper_args
from ldm.attacks.service import Submission
from ldm.device import Place
from ldm.experiments import identity_table
from ldm.experiments.adversary import AttackSettings, Trial
from ldm.images import read_image
from ldm.loading import ModelFiles
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.paper.config import kind_of
from ldm.paper.report.files import read_finished
from ldm.paper.results.adversary import Adversary
from ldm.paper.runner import adversary
from ldm.paper.runner.adversary import KIND, expected_calls, read_adversary_plan
from ldm.paper.runner.processes import Tools
from ldm.paper.runner.queue import make_all, whole
from ldm.util import UserError
from tests.scoring import PixelAnalyzer, write_people

CONFIG = CONFIGS / "attacks.yaml"
CCE = {"name": "CCE", "level": "L3", "method": "concept_inversion", "knows_prefix": True, "from_photos": True,
       "vectors": 2, "templates": ["a photo of {name}"], "start": "person", "iterations": 2, "batch_size": 3,
       "lr": 0.1, "weight_decay": 0.0}
UDA = {"name": "UDA", "level": "L2", "method": "unlearn_diff_atk", "tokens": 2, "timesteps": 2, "updates": 1, "lr": 0.1,
       "weight_decay": 0.1}
PLAN = {"kind": "attacks", "title": "Attacks", "remark": "", "group": "test", "n_people": 2, "n_samples": 2,
        "prompt": "A portrait of {name}", "far": 0.5, "photos": 2, "prefixes": [{"name": "apl"}],
        "attacks": [CCE, UDA, {"name": "L4", "level": "L4", "method": "arithmetic"}]}


@pytest.fixture(scope="module")
def preset(tiny_model, tiny_files, tmp_path_factory):
    """tiny.yaml, a preset for the tiny model and what is needed to score it."""
    folder = write_people(tmp_path_factory.mktemp("inputs"), {"Ada Stone": "train", "Ben Wood": "test", "Cleo Vance": "test"})
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=3).save(folder / "apl.pt")
    for name in ("prompts.txt", "inception.pth"):
        (folder / name).write_text("a red boat\na blue car\n")
    values = {"config_path": tiny_files[0], "ckpt_path": tiny_files[1], "people": folder / "people.csv", "gallery": folder / "gallery.npz",
              "face_pack": folder / "faces", "benchmark": folder / "prompts.txt", "inception_weights": folder / "inception.pth",
              "attribute_features": "none", "paper.devices": "cpu", "scale": 2, "test_fid_clip_score.ddim_steps": 2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({key: str(value) for key, value in values.items()}))
    return folder / "tiny.yaml"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
    adversary._examiners.clear()
    yield Tools(Place("cpu"))
    adversary._examiners.clear()


@pytest.fixture
def table(preset, tmp_path):
    """table(**changes of PLAN): the table of own.yaml."""
    def made(**changes):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
        return Adversary(tmp_path / "own.yaml", str(preset), tmp_path / "out", preset.parent / "apl.pt")
    return made


def test_a_person_s_attack_is_written_for_others_and_counted(table, tools, preset, tiny_files):
    made = table(n_people=1, attacks=[CCE])
    make_all(whole(made.pieces(0)), tools)
    piece, = made.pieces(0)
    assert piece.folder.parent.name == "Ben Wood"
    row, = csv.DictReader((piece.folder / "prompts.csv").open())
    assert (row["prompt"], row["embedding"], row["level"]) == ("A portrait of sks", "embedding.pt", "L3")
    assert (piece.found["forward"], piece.found["backward"]) == (2 * 3, 2 * 3)  # steps times samples, without the images
    assert [face["arm"] for face in piece.found["faces"]] == ["attack"] * 2 + ["ceiling"] * 2 + ["random"] * 2
    assert sorted(path.name for path in (piece.without.folder / "photos").iterdir()) == ["0.png", "1.png"]

    model = ModelFiles(*tiny_files).load()
    manager = EmbeddingManager(model.cond_stage_model, ["alz", "sks"], num_vectors_per_token=1)
    manager.load(preset.parent / "apl.pt")
    manager.load(piece.folder / "embedding.pt")
    assert manager.string_to_param_dict["sks"].shape == (2, 32) and manager.num_vectors == 3
    trial = piece.without.trial(tools)
    expected = trial.service.model.get_learned_conditioning(["alz A portrait of sks"], manager)
    assert torch.allclose(trial.service.context_of("A portrait of sks", manager.string_to_param_dict["sks"]), expected, atol=1e-5)


def test_the_table_of_all_attacks(table, tools, tmp_path):
    made = table()
    make_all(whole(made.pieces(0)), tools)
    console = made.write({"what": ["own.yaml"], "devices": "cpu"})
    labels = [f"L4: {label}" for label in dict.fromkeys(row["label"] for row in made.attacks["apl"][2][0].found["faces"])]
    finished = read_finished(tmp_path / "out")["own"]
    assert [row["name"] for row in finished.rows] == ["no attack", "CCE", "UDA", *labels] and len(labels) == 9 and "UDA" in console
    assert ("CCE", "rank-1, random") in finished.cells and ("no attack", "rank-1, random") not in finished.cells
    shares = ("rank-1", "at FAR, ceiling", "with a face")
    assert all(0 <= finished.cells[row["name"], column].mean <= 1 for row in finished.rows for column in shares)
    assert finished.cells["UDA", "1000 calls"].mean == pytest.approx(sum(
        piece.found["forward"] + piece.found["backward"] for piece in made.attacks["apl"][1]) / 2000)
    folder = tmp_path / "out" / "own"
    prompts = [*csv.DictReader((folder / "prompts.csv").open())]
    assert len(prompts) == 2 * (1 + 1 + 9) and all((folder / row["embedding"]).is_file() for row in prompts if row["embedding"])
    assert read_image(folder / "own-pictures.png").size and (folder / "own.png").stat().st_size
    people = [row for row in csv.DictReader((folder / "own-people.csv").open()) if row["row"] == "CCE"]
    assert len(people) == 2 * 3
    faces, base = ([face["cosine"] for piece in pieces for face in piece.found["faces"] if face["arm"] == arm] for pieces, arm in (
        (made.attacks["apl"][0], "attack"), ([piece.without for piece in made.attacks["apl"][0]], "ceiling")))
    assert len(faces) == len(base) == 4 and finished.cells["CCE", "ID-ACC of base"].mean == pytest.approx(sum(faces) / sum(base))


def test_several_prefixes_are_told_apart_and_make_a_grid(preset, tools, tmp_path):
    """The second is another file, attacked by one of the attacks; the grid has no cell for the other."""
    other = preset.parent / "other.pt"
    shutil.copy(preset.parent / "apl.pt", other)
    prefixes = [{"name": "apl", "result": str(preset.parent / "apl.pt")}, {"name": "same", "result": str(other), "attacks": ["CCE"]}]
    plan = {**PLAN, "n_people": 1, "attacks": [CCE, UDA], "prefixes": prefixes, "figure": "grid"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(plan))
    made = Adversary(tmp_path / "own.yaml", str(preset), tmp_path / "out", None)
    make_all(whole(made.pieces(0)), tools)
    made.write({"what": ["own.yaml"], "devices": "cpu"})
    finished, folder = read_finished(tmp_path / "out")["own"], tmp_path / "out" / "own"
    assert [row["name"] for row in finished.rows] == ["apl: no attack", "apl: CCE", "apl: UDA", "same: no attack", "same: CCE"]
    assert finished.kind == "grid" and read_image(folder / "own.png").size
    prompts = [*csv.DictReader((folder / "prompts.csv").open())]
    assert [row["prefix"] for row in prompts] == ["apl", "apl", "same"]
    assert len({row["embedding"] for row in prompts if row["embedding"]}) == 2
    assert finished.cells["apl: CCE", "ID-ACC of base"] == finished.cells["same: CCE", "ID-ACC of base"]  # the same bytes


def test_the_name_without_an_attack_is_measured_from_the_same_noise_behind_the_prefix_and_without(table, tools):
    made = table(n_people=1, attacks=[{"name": "same", "level": "L4", "method": "arithmetic"}])
    make_all(whole(made.pieces(0)), tools)
    piece, = made.pieces(0)
    plain = [read_image(piece.without.folder / arm / "1.png") for arm in ("attack", "ceiling")]
    assert (plain[0] != plain[1]).any()
    unguided = piece.without.trial(tools).images(piece.without.trial(tools).base, Submission("A portrait of Ben Wood"), [1])[0]
    assert (plain[1] == unguided).all()


def test_finished_attacks_are_not_made_again_and_new_settings_only_where_they_matter(table, tools, monkeypatch):
    make_all(whole(table(attacks=[CCE]).pieces(0)), tools)
    asked = []
    attack = Trial.attack
    monkeypatch.setattr(Trial, "attack", lambda self, chosen, *places: asked.append((self.person.name, chosen.name)) or
                        attack(self, chosen, *places))
    monkeypatch.setattr(Trial, "without_attack", lambda *_: pytest.fail("what is finished was made again"))
    make_all(whole(table(attacks=[CCE]).pieces(0)), tools)
    assert asked == []
    make_all(whole(table(attacks=[CCE, {**CCE, "name": "longer", "iterations": 3}], n_people=1).pieces(0)), tools)
    assert asked == [("Ben Wood", "longer")]
    changes = ({"n_samples": 1}, {"prompt": "{name}"}, {"far": 0.1})
    others = {piece.folder.parent for change in changes for piece in table(**change).pieces(0)}
    assert not others & {piece.folder.parent for piece in table().pieces(0)}


def test_the_shipped_plan_is_valid_on_both_scales_and_the_miniature_s_takes_under_an_hour():
    public, mini = (read_adversary_plan(CONFIG, preset) for preset in ("sd-v1-5", "mini"))
    assert kind_of(CONFIG) == KIND and "attacks" in OWN and kind_of(CONFIGS / "figure5.yaml") != KIND
    assert [attack.name for attack in public.attacks] == [attack.name for attack in mini.attacks] and not public.prefixes[0].result
    assert {attack.level for attack in mini.attacks} == {"L0", "L1", "L2", "L3", "L4"}
    by_name = {attack.name: attack.settings for attack in public.attacks}
    assert (by_name["UnlearnDiffAtk"]["timesteps"], by_name["UnlearnDiffAtk"]["updates"]) == (50, 40)
    assert (by_name["P4D-N"]["iterations"], by_name["P4D-N"]["tokens"], by_name["P4D-K"]["every"]) == (3000, 16, 3)
    assert by_name["Ring-A-Bell"]["population"] == 200 and by_name["CCE from photos, 8"]["vectors"] == 8
    calls = mini.n_people * sum(expected_calls(attack, mini.n_samples, 2 * 20) for prefix in mini.prefixes for attack in mini.attacks
                                if prefix.attacks is None or attack.name in prefix.attacks)
    assert calls < 3600 * 150  # forward and backward evaluations that two idle cores make in an hour


@pytest.mark.parametrize(("changes", "message"), [
    ({"attacks": [{**CCE, "method": "magic"}]}, "the method 'magic'; give one of L0, L1"),
    ({"attacks": [{**CCE, "level": "L9"}]}, "has the level 'L9'"),
    ({"attacks": [{**CCE, "steps": 3}]}, "attack 'CCE': concept_inversion is given .*unexpected keyword argument 'steps'"),
    ({"attacks": [{key: value for key, value in CCE.items() if key != "lr"}]}, "missing a required argument: 'lr'"),
    ({"attacks": [{"name": "x"}]}, "without 'level'; give name, level and method"),
    ({"attacks": [CCE, {**CCE, "name": "cce"}]}, "two attacks of one name"),
    ({"prefixes": [{"name": "apl"}, {"name": "apl"}]}, "all have different names"),
    ({"prefixes": [{"name": "apl", "attacks": ["magic"]}]}, "no attack 'magic'"), ({"prefixes": []}, "there is a prefix"),
    ({"figure": "pie"}, "figure is bars or grid"),
    ({"n_people": 0}, "is no plan of attacks"), ({"prompt": "a face"}, "is no plan of attacks"), ({"colour": 1}, "is no plan of attacks"),
    ({"n_people": 9}, "has 2 people of the group test, and .*own.yaml attacks 9")])
def test_what_cannot_be_meant_is_refused(table, changes, message):
    with pytest.raises(UserError, match=message):
        table(**changes)


def test_the_prefix_can_be_given_on_the_command_line_and_other_flags_of_figure5_cannot(preset, tmp_path, capsys):
    words = ["attacks", "--preset", str(preset), "--out_dir", str(tmp_path)]
    assert parse_paper_args([*words, "--embedding", str(preset.parent / "apl.pt")]).what == ["attacks"]
    with pytest.raises(SystemExit):
        parse_paper_args([*words, "--n_people", "3"])
    assert "--n_people has no use without figure5" in capsys.readouterr().err


def test_settings_of_an_attack_know_the_prefix_at_level_2():
    assert AttackSettings.of(UDA, "x").knows_prefix and not AttackSettings.of({**UDA, "level": "L1"}, "x").knows_prefix
    assert json.dumps(dict(AttackSettings.of(UDA, "x").settings))
