"""train.py with a competing method or an attack: its flags, the file that comes out of it, and a run that goes on where it stopped."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from args.common import options_of
from args.train_args import parse_train_args
from args.train_methods import PUBLISHED, READ_BY
from ldm.baselines.uce import phrase_contexts
from ldm.edited_weights import write_edited_weights
from ldm.experiments.method_builders import MethodOptions, token_manager
from ldm.experiments.methods import MethodPlan
from ldm.loading import ModelFiles, file_hash, load_frozen_model, safetensors_metadata
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file
from tests.refusals import refusal
from tests.scoring import PixelAnalyzer

FEW = {  # flags that make each method short
    "esd": ("--iterations", 4, "--ddim_steps", 2, "--save_every", 2), "uce": (), "speed": (),
    "concept_ablation": ("--iterations", 4, "--batch_size", 2, "--n_prior_images", 3, "--save_every", 2),
    "forget_me_not": ("--iterations", 4, "--ti_iterations", 1, "--save_every", 2),
    "dreambooth": ("--iterations", 4, "--save_every", 2, "--n_prior_images", 2),
    "textual_inversion": ("--iterations", 4, "--save_every", 2, "--batch_size", 2)}
ERASERS = ("esd", "concept_ablation", "uce", "speed", "forget_me_not")


@pytest.fixture
def command(train_inputs, tiny_files, tmp_path, monkeypatch):
    """(method, further flags) -> flags of train.py for the tiny model, without a table at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm.experiments.identity_table.FaceAnalyzer", PixelAnalyzer, raising=False)

    def flags(method: str, *more: object) -> list[str]:
        data = ("--photos", train_inputs / "s_reg") if method not in ERASERS else ("--people", train_inputs / "people.csv")
        data += ("--identity_images", train_inputs / "s_id") if method == "forget_me_not" else ()
        templates = method in ("concept_ablation", "textual_inversion") and "--anchor_prompts" not in more
        data += ("--templates", train_inputs / "templates.txt") if templates else ()
        return [str(flag) for flag in ("--config_path", tiny_files[0], "--ckpt_path", tiny_files[1], "--train_method", method, *data,
                                       "--devices", "cpu", "--eval_ddim_steps", 2, *(("--eval_names", 0) if method in ERASERS else ()),
                                       *FEW[method], *more)]
    return flags


def result_of(tmp_path, method: str):
    return tmp_path / json.loads((tmp_path / "runs" / method / "cost.json").read_text())["result"]


@pytest.mark.parametrize("method", ERASERS)
def test_an_eraser_writes_changed_tensors_that_say_how_they_came_about(command, tmp_path, tiny_files, method):
    train.main(command(method))
    weights, own = load_file(result_of(tmp_path, method)), load_file(tiny_files[1])
    assert set(weights) < set(own) and any(not torch.equal(value, own[key]) for key, value in weights.items())
    record = safetensors_metadata(result_of(tmp_path, method))
    assert record["train_method"] == method and record["names"] == ["Ada Stone", "Ben Wood"] and record["seed"] == 0
    assert record["base_model"] == file_hash(tiny_files[1]) and record["variant"] == PUBLISHED[method]["variant"]
    cost = json.loads((tmp_path / "runs" / method / "cost.json").read_text())
    assert cost["seconds"] > 0 and cost["peak_memory_bytes"] > 1e7 and cost["result_bytes"] == result_of(tmp_path, method).stat().st_size


@pytest.mark.parametrize("method", [method for method in FEW if method not in ("uce", "speed")])
def test_a_run_that_goes_on_ends_with_the_bytes_of_one_that_did_not_stop(command, tmp_path, method):
    train.main(command(method))
    whole = result_of(tmp_path, method).read_bytes()
    train.main(command(method, "--iterations", 2, "--out_dir", "parts"))
    train.main(command(method, "--out_dir", "parts"))
    assert (tmp_path / "parts" / result_of(tmp_path, method).name).read_bytes() == whole
    assert (tmp_path / "parts" / "log.csv").read_bytes() == (tmp_path / "runs" / method / "log.csv").read_bytes()
    with pytest.raises(SystemExit):
        train.main(command(method, "--seed", 1, "--out_dir", "parts"))


@pytest.mark.parametrize(("method", "flag", "folder", "file"), [
    ("dreambooth", "--photos", "s_reg", "1.png"), ("forget_me_not", "--identity_images", "s_id", "Ada Stone/1.png")])
def test_a_run_is_known_by_the_bytes_of_its_images_and_not_by_their_place(command, train_inputs, tmp_path, method, flag, folder, file):
    def arguments(place):
        args = parse_train_args(command(method, flag, place))
        return MethodPlan(options_of(MethodOptions, args, files=options_of(ModelFiles, args)), vars(args)).arguments("fp32")

    before = arguments(train_inputs / folder)
    shutil.copytree(train_inputs / folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    assert [arguments(place) for place in (tmp_path / "copy", "copy", "link")] == [before] * 3
    Image.new("RGB", (32, 32)).save(tmp_path / "copy" / file)
    assert arguments("copy")["images"] != before["images"] and arguments("copy") | {"images": before["images"]} == before


def test_edited_weights_are_taken_as_such_and_edited_again(command, tmp_path, tiny_files):
    first = tmp_path / "first.safetensors"
    key = "model.diffusion_model.out.2.bias"
    write_edited_weights(first, {key: torch.full_like(load_file(tiny_files[1])[key], 0.5)}, base_model=file_hash(tiny_files[1]))
    train.main(command("uce", "--edited_weights", first))
    model = load_frozen_model(*tiny_files, edited_weights=result_of(tmp_path, "uce"))
    assert model.get_parameter(key).eq(0.5).all()  # what lay beneath is in the new file too


def test_textual_inversion_writes_the_token_alone(command, tmp_path):
    train.main(command("textual_inversion"))
    file = read_embedding_file(result_of(tmp_path, "textual_inversion"))
    assert {key: value.shape for key, value in file.vectors.items()} == {"*": (1, 32)} and file.metadata["token"] == "sks"
    assert (tmp_path / "runs" / "textual_inversion" / "pictures.png").exists()


def test_the_state_of_an_older_version_is_refused(command, tmp_path, capsys):
    train.main(command("textual_inversion"))
    path = tmp_path / "runs" / "textual_inversion" / "state.pt"
    state = torch.load(path, weights_only=True)
    state["trained"]["map.bias"] = torch.zeros(32)  # as of a token behind a context map, once
    torch.save(state, path)
    assert "holds map.bias (32,) where this training has fewer tensors" in refusal(capsys, train.main, command("textual_inversion"))


def test_a_table_is_made_of_an_eraser_and_pictures_of_it(command, train_inputs, tmp_path, capsys):
    train.main(command("uce", "--eval_names", 1, "--eval_samples", 1, "--prompts_file", train_inputs / "prompts.txt", "--gallery",
                       train_inputs / "gallery.npz", "--face_pack", train_inputs / "faces"))
    rows = json.loads((tmp_path / "runs" / "uce" / "results.json").read_text())
    assert [row["prefix"] for row in rows if "group" in row] == ["none", "none", *["runs/uce/uce.safetensors"] * 2]
    assert [row["mse"] > 0 for row in rows if "mse" in row] == [False, True, True]
    assert (tmp_path / "runs" / "uce" / "before-after.png").exists() and "condition number" in capsys.readouterr().out


def test_published_settings_are_the_defaults_and_a_presets_section_goes_before(tmp_path, monkeypatch):
    monkeypatch.setattr("args.train_args.check_paths", lambda *_: None)
    (tmp_path / "mine.yaml").write_text("train.lr: 0.5\ntrain.iterations: 7\ntrain.log_every: 3\nesd.lr: 0.25\nseed: 5\n")
    args = parse_train_args(["--preset", str(tmp_path / "mine.yaml"), "--train_method", "esd", "--people", "people.csv"])
    assert (args.lr, args.iterations, args.log_every, args.seed, args.prompt) == (0.25, 1000, 3, 5, "esd")
    assert parse_train_args(["--preset", str(tmp_path / "mine.yaml")]).lr == 0.5
    (tmp_path / "attack.yaml").write_text("like: mini\ntrain_method: dreambooth\n")
    args = parse_train_args(["--preset", str(tmp_path / "attack.yaml"), "--photos", "photos"])
    assert (args.iterations, args.batch_size, args.save_every, args.lr, args.alpha) == (800, 1, 100, 1e-4, None)


@pytest.mark.parametrize(("method", "flags", "said"), [
    ("esd", ("--alpha", "2"), "--alpha has no use with --train_method esd"),
    ("esd", ("--variant", "model-based"), "give one of esd-x, esd-x-strict, esd-u, esd-full"),
    ("uce", ("--iters_per_concept", "3"), "--iters_per_concept has no use with --train_method uce"),
    ("uce", ("--names_file", "twice.txt"), "has 1 names twice"),
    ("speed", ("--keep_names", "twice.txt"), "'Ada Stone' is to be erased and is also on the list twice.txt"),
    ("esd", ("--keep_names", "unknown.txt"), "--keep_names has no use with --train_method esd"),
    ("speed", ("--erase_scale", "3"), "--erase_scale has no use with --train_method speed"),
    ("uce", ("--names_file", "empty.txt"), "holds no name"),
    ("esd", ("--ddim_steps", "60"), "--ddim_steps 60 does not divide the 1000 timesteps"),
    ("esd", ("--iters_per_concept", "3"), "--iterations has no use with --iters_per_concept 3"),
    ("esd", ("--identity_images", "many"), "--identity_images has no use with --z_t sampled"),
    ("dreambooth", ("--eval_names", "1"), "--eval_names has no use"),
    ("concept_ablation", ("--anchor_prompts", "twice.txt"), "without the anchor 'a person'"),
    ("forget_me_not", ("--names_file", "unknown.txt"), "has no image of Cleo Vance"),
    ("dreambooth", ("--photos", "many"), "give the folder of one, such as many/n1"),
    ("dreambooth", ("--photos", "empty"), "holds no photos"),
    ("dreambooth", ("--photos", "corrupt"), "corrupt/2.png cannot be read as an image"),
    ("textual_inversion", ("--token", "two words"), "one ordinary token"),
    ("dreambooth", ("--dry_run",), "--dry_run has no use")])
def test_bad_input_is_answered_with_one_sentence(command, capsys, tmp_path, method, flags, said):
    (tmp_path / "twice.txt").write_text("Ada Stone\nAda Stone\n")
    (tmp_path / "unknown.txt").write_text("Cleo Vance\n")
    (tmp_path / "empty.txt").write_text("# nobody\n")
    (tmp_path / "many" / "n1").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "many" / "n1" / "1.png")
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "2.png").write_bytes((tmp_path / "many" / "n1" / "1.png").read_bytes()[:40])
    assert said in refusal(capsys, train.main, command(method, *flags))


@pytest.mark.parametrize("method", ["uce", "speed"])
def test_names_that_may_be_shown_are_preserved_by_a_closed_form(command, tmp_path, tiny_model, method):
    (tmp_path / "keep.csv").write_text("name,group,attributes\nCleo Vance,keep,\nAda Stone,train,A pilot\n")
    kept, = phrase_contexts(tiny_model, ["Cleo Vance"], to_end=False)
    moved = []
    for flags in ((), ("--keep_names", "keep.csv", "--no-resume")):
        train.main(command(method, "--lamb", 0.05, *flags))
        edits = load_file(result_of(tmp_path, method))
        moved.append(sum((kept @ (value - tiny_model.get_parameter(key)).T).norm().item() for key, value in edits.items()))
    assert 0 <= moved[1] < (0.01 if method == "speed" else 1) * moved[0]


def test_iterations_are_counted_for_each_name(command, tmp_path):
    flags = command("concept_ablation", "--iters_per_concept", 1)
    place = flags.index("--iterations")
    train.main(flags[:place] + flags[place + 2:])
    assert result_of(tmp_path, "concept_ablation").name == "concept_ablation-2.safetensors"


def test_trained_tensors_start_as_the_checkpoint_has_them_whatever_the_arithmetic(command, tmp_path, tiny_files):
    train.main(command("esd", "--precision", "bf16", "--lr", "1e-30"))
    weights, own = load_file(result_of(tmp_path, "esd")), load_file(tiny_files[1])
    assert all(torch.equal(value, own[key]) for key, value in weights.items())


def test_a_prefix_of_another_name_stands_in_front_of_the_token(command, tmp_path, tiny_model):
    """Whatever the file calls its vectors: they are the ones behind the placeholder while the token is learned."""
    vectors = torch.randn(3, 32)
    write_embedding_file(tmp_path / "theirs.pt", {"dog": vectors}, {"dog": tiny_model.cond_stage_model.tokenizer("dog")["input_ids"][1]})
    args = parse_train_args(command("textual_inversion", "--embedding", tmp_path / "theirs.pt"))
    manager = token_manager(options_of(MethodOptions, args, files=options_of(ModelFiles, args)), tiny_model)
    assert list(manager.string_to_token_dict) == ["alz", "sks"] and torch.equal(manager.string_to_param_dict["alz"], vectors)


def test_other_settings_never_take_a_closed_forms_place(command, tmp_path, capsys):
    train.main(command("uce"))
    assert "was made with another lamb" in refusal(capsys, train.main, command("uce", "--lamb", 2))
    train.main(command("uce", "--lamb", 2, "--no-resume"))
    assert safetensors_metadata(result_of(tmp_path, "uce"))["lamb"] == 2


def test_what_was_made_before_a_training_counts_in_its_cost(command, tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ldm.experiments.methods.train", killed)
        with pytest.raises(SystemExit):
            train.main(command("dreambooth"))
    spent = json.loads((tmp_path / "runs" / "dreambooth" / "spent.json").read_text())["seconds"]
    (tmp_path / "runs" / "dreambooth" / "spent.json").write_text(json.dumps({"seconds": 1000 + spent, "peak_memory_bytes": 0}))
    train.main(command("dreambooth"))
    assert json.loads((tmp_path / "runs" / "dreambooth" / "cost.json").read_text())["seconds"] > 1000


def test_without_prior_preservation_nothing_is_drawn(command, tmp_path):
    train.main(command("dreambooth", "--prior_weight", 0))
    assert not list((tmp_path / "runs" / "dreambooth").glob("drawn-*"))


@pytest.mark.parametrize(("method", "flags"), [("textual_inversion", ()), ("forget_me_not", ("--variant", "with-ti"))])
def test_tokens_of_two_encoders_are_refused(command, capsys, tiny_xl_files, method, flags):
    given = command(method, "--config_path", tiny_xl_files[0], "--ckpt_path", tiny_xl_files[1], *flags)
    assert "for one text encoder" in refusal(capsys, train.main, given)


@pytest.mark.parametrize("method", ["esd", "concept_ablation", "uce", "speed", "dreambooth"])
def test_models_of_sdxls_form_are_edited_too(command, tmp_path, tiny_xl_files, method):
    train.main(command(method, "--config_path", tiny_xl_files[0], "--ckpt_path", tiny_xl_files[1]))
    assert all(torch.isfinite(value).all() for value in load_file(result_of(tmp_path, method)).values())


def test_every_flag_that_only_some_methods_read_is_a_flag():
    from args.train_args import build_parser
    assert set(READ_BY) <= {action.dest for action in build_parser()._actions}


def test_the_table_tells_the_erased_from_everybody_else(command, train_inputs, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("Cleo Vance\nNobody Known\n")
    train.main(command("uce", "--names_file", "names.txt", "--eval_names", 2, "--eval_samples", 1, "--face_pack", train_inputs / "faces",
                       "--gallery", train_inputs / "gallery.npz"))
    rows = json.loads((tmp_path / "runs" / "uce" / "results.json").read_text())
    assert [(row["group"], row["n_identities"]) for row in rows if "group" in row][:2] == [("train", 1), ("test", 2)]
    assert "Nobody Known of names.txt is not in --people" in capsys.readouterr().err


def test_edited_weights_in_the_place_of_a_presets_are_announced(capsys):
    parse_train_args(["--preset", "mini-sepia", "--edited_weights", "data/mini/mini-sd-b.safetensors"])
    said = capsys.readouterr().err
    assert said.startswith("warning: --edited_weights data/mini/mini-sd-b.safetensors replaces") and "mini-sepia" in said
