"""test_fid_clip_score.py from its command line, on tiny models with random weights and a recogniser that looks at pixels."""

import json
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import ldm.experiments.quality
import ldm.images
import test_fid_clip_score
from args.common import parse_with_preset
from args.test_fid_clip_score_args import build_parser, parse_test_fid_clip_score_args
from ldm.evaluation.quality import PromptScorer
from ldm.experiments import identity_table
from ldm.experiments.quality import HalfFolder
from ldm.experiments.quality_table import papers_table
from ldm.experiments.variants import BASE, ImageSettings, Variant
from ldm.images import read_image, write_image
from ldm.modules.embedding_manager import EmbeddingManager
from tests import scoring
from tests.as_script import run_script
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer, flags_for, rows_in, write_people

PEOPLE = {"Ada Stone": "train", "Ben O'Neil": "test", "Zoë / Z.": "test"}
PROMPTS = ["a red boat", "a boat / a house: 50%", "a red boat", "two cats"]
PUBLIC = ["model", "prefix", "half", "fid", "kid", "clip", "attr_acc", "id_acc_mean", "n_images", "fid_protocol"]
CLIP = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}


@pytest.fixture(scope="module")
def inputs(tiny_model, tmp_path_factory) -> Path:
    """A folder with people.csv, gallery.npz, apl.pt, faces/, prompts.txt, tiny-clip.json and its weights."""
    folder = write_people(tmp_path_factory.mktemp("inputs"), PEOPLE)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=3).save(folder / "apl.pt")
    (folder / "tiny-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(folder / "tiny-clip.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**open_clip.get_model_config("tiny-clip")).state_dict(), folder / "tiny-clip.safetensors")
    return folder


@pytest.fixture(scope="module")
def command(inputs, tiny_files):
    """Flags for the tiny models: command(out_dir, *more)."""
    return lambda out_dir, *more: flags_for(
        tiny_files, inputs, out_dir, "--preset", "mini", "--gallery", inputs / "gallery.npz", "--embedding", inputs / "apl.pt",
        "--benchmark", inputs / "prompts.txt", "--clip", inputs / "tiny-clip.safetensors", *more)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
    monkeypatch.setattr(ldm.experiments.quality, "CHUNK", 3)


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> Path:
    """The output folder of one whole run; read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity_table, "FaceAnalyzer", PixelAnalyzer)
        patch.setattr(ldm.experiments.quality, "CHUNK", 3)
        test_fid_clip_score.main(command(folder))
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def bytes_below(folder: Path) -> dict[str, bytes]:
    """Content of the generated images, without pairs.png."""
    return scoring.bytes_below(folder, "[0-9]*.png")


def sentence(capsys, *argv: str) -> str:
    """What the command says on stderr before it ends with status 2: one line."""
    return refusal(capsys, test_fid_clip_score.main, list(argv))


def no_drawing(monkeypatch):
    monkeypatch.setattr(ldm.images, "write_image", lambda path, image: pytest.fail(f"{path} was drawn again"))


def test_there_is_a_row_for_each_half_and_prefix(finished, inputs):
    rows, apl = rows_in(finished), str(inputs / "apl.pt")
    assert [(row["half"], row["prefix"], row["n_images"]) for row in rows] == [
        ("non_id", "none", 4), ("non_id", apl, 4), ("id", "none", 4), ("id", apl, 4)]
    assert all(list(row)[:len(PUBLIC)] == PUBLIC and (row["model"], row["fid_protocol"]) == ("tiny", "clip") for row in rows)
    assert [row["fid"] is None for row in rows] == [True, False, True, False] and rows[1]["fid"] > 0 and rows[3]["fid"] > 0
    assert all(row["clip_x100"] == pytest.approx(100 * row["clip"]) and row["clip_model"] == "tiny-clip" for row in rows[:2])
    assert all(None not in (row["attr_acc"], row["id_acc_mean"]) and row["n_identities"] == 2 for row in rows[2:])


def test_the_papers_table_has_both_halves_of_a_prefix_in_one_row(finished):
    none, apl = json.loads((finished / "table2.json").read_text())
    rows = rows_in(finished)
    assert none["FID (id)"] is none["FID (non-id)"] is None and none["ID-ACC"] == rows[2]["id_acc_mean"]
    assert (apl["FID (id)"], apl["Attr-ACC"], apl["FID (non-id)"], apl["CLIP"]) == (
        rows[3]["fid"], rows[3]["attr_acc"], rows[1]["fid"], rows[1]["clip"])
    assert apl["N (id)"] == apl["N (non-id)"] == 4 and (finished / "table2.md").read_text().count("\n") == 4
    assert (finished / "table2.csv").exists() and (finished / "results.csv").exists() and (finished / "results.md").exists()


def test_edited_weights_are_a_row_and_leave_no_trace_in_the_others(finished, command, inputs, tiny_edited, tmp_path):
    test_fid_clip_score.main(command(tmp_path, "--embedding", tiny_edited, inputs / "apl.pt"))
    rows = rows_in(tmp_path)
    assert [row["prefix"] for row in rows[1::3]] == [str(tiny_edited)] * 2 and rows[1]["fid"] > 0 and rows[4]["fid"] > 0
    assert [row for row in rows if row["prefix"] != str(tiny_edited)] == rows_in(finished)
    drawn = bytes_below(tmp_path)
    assert {file: content for file, content in drawn.items() if "esd-4" not in file} == bytes_below(finished)
    assert len(set(drawn.values())) == len(drawn) == 24


def test_the_half_of_people_is_of_s_test_on_every_scale():
    for preset in ("mini", "sd-v1-5", "sdxl"):
        args = parse_with_preset(build_parser(), ["--preset", preset])
        assert args.group == "test" == build_parser().get_default("group")
    assert (args.n_names or 100) * args.n_samples == 4000 and args.n_prompts == 30_000  # the paper's


def test_one_half_alone_fills_its_columns_alone():
    row = {"model": "m", "prefix": "none", "half": "id", "fid": 1.0, "id_acc_mean": 0.5, "attr_acc": 0.7, "n_images": 4}
    assert papers_table([row]) == [
        {"model": "m", "prefix": "none", "FID (id)": 1.0, "ID-ACC": 0.5, "Attr-ACC": 0.7, "N (id)": 4}]


def test_pictures_pairs_and_settings_are_there_to_look_at(finished, inputs):
    drawn = bytes_below(finished)
    assert len(drawn) == len(set(drawn.values())) == 16  # a repeated prompt has noise of its own
    for half in ("id", "non_id"):
        assert read_image(finished / half / "pairs.png").std() > 1
        assert json.loads((finished / half / "manifest.json").read_text())["settings"]["ddim_steps"] == 2
    lines = [json.loads(line) for line in (finished / "non_id/images/apl/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == PROMPTS
    assert all((finished / "non_id/images/apl" / line["file_name"]).exists() for line in lines)
    settings = json.loads(next(finished.glob("non_id/scores/*/settings.json")).read_text())
    assert settings["fid_protocol"] == "clip" and settings["apl_compat"] is False and len(settings["clip"]) == 16


def test_a_finished_run_draws_and_scores_nothing_again(copied, command, monkeypatch):
    no_drawing(monkeypatch)
    monkeypatch.setattr(PromptScorer, "__call__", lambda *_: pytest.fail("scored again"))
    before = rows_in(copied)
    test_fid_clip_score.main(command(copied))
    assert rows_in(copied) == before


def test_a_run_that_is_killed_between_pictures_goes_on(finished, command, tmp_path, monkeypatch):
    def killed(path, image):
        if len(bytes_below(tmp_path)) == 10:
            raise KeyboardInterrupt
        write_image(path, image)

    monkeypatch.setattr(ldm.images, "write_image", killed)
    with pytest.raises(SystemExit) as stopped:
        test_fid_clip_score.main(command(tmp_path))
    assert stopped.value.code == 130 and not (tmp_path / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[0-9]*.png")}
    monkeypatch.setattr(ldm.images, "write_image", write_image)
    test_fid_clip_score.main(command(tmp_path))
    assert bytes_below(tmp_path) == bytes_below(finished) and rows_in(tmp_path) == rows_in(finished)
    assert len(kept) == 10 and all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_only_the_images_to_keep_stay_and_the_numbers_are_the_same(finished, command, tmp_path, monkeypatch):
    most = []
    monkeypatch.setattr(ldm.images, "write_image",
                        lambda path, image: (write_image(path, image), most.append(len(bytes_below(path.parents[1])))))
    test_fid_clip_score.main(command(tmp_path, "--keep_images", 1))
    left, whole = bytes_below(tmp_path), bytes_below(finished)
    assert len(left) == 4 and left.items() <= whole.items() and max(most) <= 1 + ldm.experiments.quality.CHUNK
    assert rows_in(tmp_path) == rows_in(finished) and all(any(folder.iterdir()) for folder in tmp_path.glob("*/images/*/*/"))
    no_drawing(monkeypatch)
    test_fid_clip_score.main(command(tmp_path, "--keep_images", 1))
    assert read_image(tmp_path / "id" / "pairs.png").std() > 1


def test_images_that_are_asked_for_again_are_drawn_again(finished, command, tmp_path):
    test_fid_clip_score.main(command(tmp_path, "--half", "non_id", "--keep_images", 1))
    test_fid_clip_score.main(command(tmp_path, "--half", "non_id", "--keep_images", 3))
    whole = {path for path in bytes_below(finished) if path.startswith("non_id")}
    assert len(bytes_below(tmp_path)) == 6 and bytes_below(tmp_path).keys() < whole


def test_keeping_fewer_images_of_a_finished_run_deletes_the_others(copied, command, monkeypatch):
    no_drawing(monkeypatch)
    test_fid_clip_score.main(command(copied, "--half", "non_id", "--keep_images", 1))
    assert len(bytes_below(copied / "non_id")) == 2 and len(bytes_below(copied / "id")) == 8
    assert all(any(folder.iterdir()) for folder in copied.glob("non_id/images/*/*/"))


def test_another_way_of_scoring_scores_the_same_pictures_anew(copied, command, monkeypatch):
    no_drawing(monkeypatch)
    before = rows_in(copied)
    test_fid_clip_score.main(command(copied, "--apl_compat"))
    after = rows_in(copied)
    assert after[0]["clip"] != before[0]["clip"] and "released code" in after[0]["clip_model"] and after[1]["fid"] == before[1]["fid"]
    assert len(list(copied.glob("non_id/scores/*"))) == 2 and len(list(copied.glob("id/scores/*"))) == 1


def test_faces_of_prompts_are_counted_only_where_that_is_asked_for(copied, command, inputs, monkeypatch):
    no_drawing(monkeypatch)
    before, plain = rows_in(copied)[:2], {path.parent for path in copied.glob("non_id/scores/*/settings.json")}
    assert all("detection_rate" not in row for row in before)
    test_fid_clip_score.main(command(copied, "--half", "non_id", "--count_faces"))
    assert rows_in(copied) == [row | {"detection_rate": 1} for row in before]
    without, = plain
    counted, = {path.parent for path in copied.glob("non_id/scores/*/settings.json")} - plain
    settings, others = (json.loads((folder / "settings.json").read_text()) for folder in (counted, without))
    assert settings == others | {"faces_by": "pixels"}  # without it the folder of scores is what it was before faces were counted


@pytest.mark.parametrize(("flag", "value"), [("--seed", 1), ("--scale", 3), ("--ddim_steps", 3), ("--prompt", "{name}")])
def test_pictures_of_other_settings_are_never_scored(copied, command, capsys, flag, value):
    said = sentence(capsys, *command(copied, flag, value))
    assert flag[2:] in said and "--out_dir" in said and "--no-resume" in said


def test_no_resume_starts_anew(finished, copied, command):
    test_fid_clip_score.main(command(copied, "--half", "id", "--no-resume", "--seed", 1))
    before, after = bytes_below(finished / "id"), bytes_below(copied / "id")
    assert before.keys() == after.keys() and not any(before[file] == after[file] for file in before)
    assert rows_in(copied)[1]["fid"] != rows_in(finished)[3]["fid"]


def test_fewer_prompts_and_people_take_their_scores_from_no_other(copied, command, finished):
    test_fid_clip_score.main(command(copied, "--n_prompts", 2, "--n_names", 1))
    assert [row["n_images"] for row in rows_in(copied)] == [2, 2, 2, 2] and bytes_below(copied) == bytes_below(finished)
    assert rows_in(copied)[0]["clip"] != rows_in(finished)[0]["clip"]


def test_no_anonymize_measures_the_model_as_it_is(command, tmp_path):
    test_fid_clip_score.main(command(tmp_path, "--no-anonymize", "--half", "non_id"))
    assert [(row["half"], row["prefix"], row["fid"]) for row in rows_in(tmp_path)] == [("non_id", "none", None)]


class Device:
    """Stands for a process of Fabric; it is told what the first process broadcast."""

    def __init__(self, rank: int, told: list):
        self.global_rank, self.world_size, self.is_global_zero, self.told = rank, 2, rank == 0, told

    def barrier(self):
        pass

    def broadcast(self, value):
        self.told += [value] if self.is_global_zero else []
        return self.told[-1]


def test_two_devices_draw_each_chunk_once_and_the_scores_are_those_of_one(tiny_model, tmp_path):
    drawing = ImageSettings("hash", "config", "{name}", 0, 2.0, 2, "fp32")
    texts = [(f"{number} red boats", 0) for number in range(8)]  # chunks of 3, 3 and 2
    scorer = PromptScorer(lambda images: np.stack([image.mean((0, 1)) for image in images]))
    told: list = []
    folders = [HalfFolder(Device(rank, told), "non_id", texts, drawing, scorer, {}, [BASE], tmp_path) for rank in (0, 1)]
    folders[0].generate_and_score(tiny_model, 3)
    assert told[1:] == [[0, 3, 6]] and len(bytes_below(tmp_path)) == 5  # the first and the third chunk
    folders[1].generate_and_score(tiny_model, 3)
    assert len(bytes_below(tmp_path)) == 8
    scores = folders[0].scores_of(BASE)["fid"]
    own = [read_image(folders[0].folder.image_path("none", text, sample)).mean((0, 1)) for text, sample in texts]
    np.testing.assert_array_equal(scores, own)


def test_two_processes_end_with_the_pictures_and_rows_of_one(command, finished, tmp_path):
    run_script("test_fid_clip_score", command(tmp_path, "--devices", "cpu,cpu"))
    assert bytes_below(tmp_path) == bytes_below(finished) and rows_in(tmp_path) == rows_in(finished)


@pytest.mark.parametrize(("seed", "prefix"), [(1, BASE), (0, Variant(hash="another"))])
def test_scores_of_deleted_pictures_count_for_no_others(tiny_model, tmp_path, seed, prefix):
    scored: list = []
    drawing = ImageSettings("hash", "config", "{name}", 0, 2.0, 2, "fp32")

    def generate_and_score(settings, variant):
        HalfFolder(Device(0, []), "non_id", [("a boat", 0)], settings, lambda images, _: scored.append(images) or {"fid": np.zeros((1, 3))},
                   {}, [variant], tmp_path).generate_and_score(tiny_model, 1)

    generate_and_score(drawing, BASE)
    shutil.rmtree(tmp_path / "non_id" / "images")
    (tmp_path / "non_id" / "manifest.json").unlink()
    generate_and_score(replace(drawing, seed=seed), prefix)
    assert len(scored) == 2


def test_folders_of_somebody_else_score_as_they_did_when_they_were_drawn(finished, command, tmp_path, monkeypatch):
    monkeypatch.setattr(ldm.experiments.quality_table.QualityTable, "generated", lambda *_: pytest.fail("drawn"))
    for half, place in (("non_id", 1), ("id", 3)):
        folders = [finished / half / "images" / label for label in ("none", "apl")]
        test_fid_clip_score.main(command(tmp_path / half, "--half", half, "--images", *folders, "--ckpt_path", "none.ckpt"))
        row, drawn = rows_in(tmp_path / half)[1], rows_in(finished)[place]
        for key in ("fid", "kid", "clip", "attr_acc", "id_acc_mean", "n_images", "fid_protocol"):
            assert row[key] == (drawn[key] if not isinstance(drawn[key], float) else pytest.approx(drawn[key], rel=1e-4)), key


def test_a_copy_of_a_folder_is_nearer_than_noise_and_needs_no_captions(command, tmp_path):
    random = np.random.default_rng(0)
    for number in range(6):
        write_image(tmp_path / "a" / f"{number}.png", np.full((20, 30, 3), 40 * number, np.uint8))
        write_image(tmp_path / "noise" / f"{number}.png", random.integers(0, 256, (25, 25, 3), np.uint8))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    distances = {}
    for other in ("copy", "noise"):
        test_fid_clip_score.main(command(tmp_path / other / "out", "--images", tmp_path / "a", tmp_path / other))
        arguments = json.loads((tmp_path / other / "out" / "arguments.json").read_text())["arguments"]
        assert arguments["images"] == [str(tmp_path / "a"), str(tmp_path / other)]
        row = rows_in(tmp_path / other / "out")[1]
        assert row["clip"] is None and row["n_images"] == row["n_base"] == 6
        distances[other] = row["fid"]
    assert distances["copy"] < 1e-4 < distances["noise"]


def test_one_missing_caption_costs_one_image_of_the_clip_score_and_is_named(command, tmp_path, capsys):
    for folder, missing in (("a", ()), ("b", (3,)), ("c", (0, 1, 2, 3))):
        for number in range(4):
            write_image(tmp_path / folder / f"{number}.png", np.full((20, 30, 3), 60 * number, np.uint8))
            if number not in missing:
                (tmp_path / folder / f"{number}.txt").write_text(f"caption {number}")
    test_fid_clip_score.main(command(tmp_path / "out", "--images", tmp_path / "a", tmp_path / "b"))
    said, (base, row) = capsys.readouterr().out, rows_in(tmp_path / "out")
    assert row["clip"] is not None and (row["n_clip"], row["n_images"]) == (3, 4) and "n_clip" not in base
    assert "4 of 4" in said and "3 of 4" in said and "left out: 1 x no caption, such as" in said and "b/3.png has no caption" in said
    assert "b/3.png" in (tmp_path / "out" / "left_out.csv").read_text()
    test_fid_clip_score.main(command(tmp_path / "out", "--images", tmp_path / "a", tmp_path / "c"))
    assert rows_in(tmp_path / "out")[1]["clip"] is None and "left out: 4 x no caption" in capsys.readouterr().out


def test_folders_of_links_are_scored_and_one_image_alone_has_no_fid(command, tmp_path, capsys):
    for number in range(2):
        write_image(tmp_path / "disk" / f"{number}.png", np.full((20, 30, 3), 90 * number, np.uint8))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "part").symlink_to(tmp_path / "disk")
    (tmp_path / "b" / "0.png").symlink_to(tmp_path / "disk" / "0.png")
    test_fid_clip_score.main(command(tmp_path / "out", "--images", tmp_path / "a", tmp_path / "b"))
    assert [row["n_images"] for row in rows_in(tmp_path / "out")] == [2, 1]
    assert "1 x no FID" in capsys.readouterr().out


def test_a_corrupt_picture_is_named(command, tmp_path, capsys):
    for folder in ("a", "b"):
        for number in range(2):
            write_image(tmp_path / folder / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b" / "1.png").write_bytes(b"\x89PNG cut")
    assert "1.png cannot be read" in sentence(capsys, *command(tmp_path / "out", "--images", tmp_path / "a", tmp_path / "b"))


def test_results_of_drawn_images_are_not_overwritten_by_those_of_other_images(finished, command, capsys):
    before, folder = (finished / "results.json").read_bytes(), finished / "non_id" / "images" / "none"
    assert "use another --out_dir" in sentence(capsys, *command(finished, "--images", folder, folder))
    assert (finished / "results.json").read_bytes() == before


def test_a_folder_with_nothing_but_shards_is_refused(command, tmp_path, capsys):
    write_image(tmp_path / "0.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as shard:
        shard.add(tmp_path / "0.png", "0.png")
    argv = command(tmp_path / "out", "--images", tmp_path / "shards", tmp_path / "shards")
    assert "shards has no image files outside .tar archives" in sentence(capsys, *argv)


def test_folders_without_a_person_in_common_are_refused(command, tmp_path, capsys):
    for folder, name in (("a", "Ben O'Neil"), ("b", "Ada Stone")):
        write_image(tmp_path / folder / name / "0.png", np.zeros((8, 8, 3), np.uint8))
    argv = command(tmp_path / "out", "--half", "id", "--images", tmp_path / "a", tmp_path / "b")
    assert "no person asked for is in both" in sentence(capsys, *argv)


@pytest.mark.parametrize(("flags", "words"), [
    (["--fid_protocol", "clean"], "--inception_weights is missing"),
    (["--fid_protocol", "tf", "--inception_weights", "none.pth"], "--inception_weights none.pth is not there; put pt_inception"),
    (["--attribute_features", "farl"], "--farl_weights is missing"),
    (["--half", "non_id", "--count_faces", "--face_pack", "none"], "--face_pack none is not there"),
    (["--attribute_features", "farl", "--farl_weights", "none.pth"], "put FaRL-Base-Patch16-LAIONFace20M-ep16.pth there"),
    (["--benchmark", "none.json"], "--benchmark none.json is not there"),
    (["--images", "none", "none"], "--images none is not there"),
    (["--clip_model", "ViT-S-32-alt"], "does not fit the open_clip model ViT-S-32-alt"),
    (["--n_prompts", "1"], "--n_prompts"), (["--keep_images", "0"], "--keep_images"), (["--devices", "gpu"], "none of auto, cpu"),
    (["--prompt", "A portrait"], "has no place for the name"), (["--fid_protocol", "fast"], "torchmetrics")])
def test_wrong_flags_end_with_a_sentence(command, tmp_path, capsys, flags, words):
    assert words in sentence(capsys, *command(tmp_path, *flags))


def test_what_is_not_needed_is_not_asked_for(inputs, tmp_path):
    args = parse_test_fid_clip_score_args([
        "--preset", "mini", "--half", "non_id", "--no-anonymize", "--face_pack", "none", "--people", "none", "--farl_weights", "none"])
    assert (args.half, args.embedding, args.people, args.face_pack, args.farl_weights) == (["non_id"], None, None, None, None)
    args = parse_test_fid_clip_score_args(["--preset", "mini", "--images", str(inputs), str(inputs), "--devices", "0,1"])
    assert (args.half, args.devices, args.ckpt_path, args.benchmark) == (["non_id"], "0", None, None)


def test_defaults_are_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["args.test_fid_clip_score_args"], "check_paths", lambda *_: None)
    (tmp_path / "empty.yaml").write_text("")
    args = parse_test_fid_clip_score_args(["--preset", str(tmp_path / "empty.yaml")])
    assert vars(args).items() >= {
        "n_prompts": 30_000, "n_samples": 40, "group": "test", "prompt_template": "A close-up portrait of {name}", "ddim_steps": 20,
        "scale": 7.5, "fid_protocol": "clean", "attribute_features": "farl", "apl_compat": False, "half": ["non_id", "id"]}.items()
