"""AnonymizationPrompt in folders and on the Hugging Face Hub, for which a local server stands."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from ldm.apl import AnonymizationPrompt
from ldm.modules.prefix_folder import CONFIG, FILE
from ldm.util import UserError
from tests.apl.pipelines import NAME, VECTORS, encode, equal
from tests.modules.test_embedding_file import RunsCode, save_legacy, save_zip

METADATA = {"step": 7, "lr": 1e-3, "train_method": "apl"}
FORMS = ["prompt", "mapped", "pair"]


def content(prompt):
    return prompt.vectors or (prompt.context_map.matrix, prompt.context_map.bias)


@pytest.fixture
def shared():
    return AnonymizationPrompt(VECTORS, metadata=METADATA)


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_gives_back_the_tensors_and_the_metadata(request, form, tmp_path):
    prompt = request.getfixturevalue(form)
    prompt.metadata = METADATA
    prompt.save_pretrained(tmp_path / "new")
    again = AnonymizationPrompt.from_pretrained(tmp_path / "new")
    assert equal(content(again), content(prompt)) and again.metadata.items() >= METADATA.items() and str(tmp_path) in repr(again)
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["kind"] == {"prompt": "prefix", "mapped": "map", "pair": "pair"}[form]
    again.save_pretrained(tmp_path / "second")
    first, second = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("new", "second"))
    assert first == second


def test_a_prefix_goes_to_the_hub_and_comes_back(hub, shared, sd):
    url = shared.push_to_hub("me/alz", commit_message="first")
    files = hub.files("me/alz")
    assert "me/alz" in str(url) and {FILE, CONFIG, "README.md"} <= set(files)
    assert ModelCard(files["README.md"].decode()).data.library_name == "diffusers"
    again = AnonymizationPrompt.from_pretrained("me/alz")
    assert hub.downloads == [FILE] and equal(again.vectors, shared.vectors) and again.source == "me/alz"
    expected = encode(shared.attach(sd) and sd, NAME)
    shared.detach()
    assert equal(encode(again.attach(sd) and sd, NAME), expected)
    again.detach()


def test_revisions_and_the_cache_without_a_network(hub, shared, monkeypatch):
    shared.push_to_hub("me/alz")
    first = hub.refs["me/alz"]["main"]
    AnonymizationPrompt(2 * VECTORS).push_to_hub("me/alz")
    assert equal(AnonymizationPrompt.from_pretrained("me/alz", revision=first).vectors, [VECTORS])
    assert equal(AnonymizationPrompt.from_pretrained("me/alz").vectors, [2 * VECTORS])
    asked = len(hub.requests)
    assert equal(AnonymizationPrompt.from_pretrained("me/alz", local_files_only=True).vectors, [2 * VECTORS])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal(AnonymizationPrompt.from_pretrained("me/alz", revision=first).vectors, [VECTORS]) and len(hub.requests) == asked
    with pytest.raises(UserError, match="me/other is no folder here and not complete in the Hub's cache"):
        AnonymizationPrompt.from_pretrained("me/other")


def test_what_the_hub_does_not_have_is_named(hub, shared, monkeypatch):
    hub.add("me/other", {"README.md": b"", "learned_embeds.bin": b"\x80"})
    hub.add("me/closed", {FILE: b""})
    hub.closed.add("me/closed")
    for name, options, message in [
            ("me/none", {}, "there is no folder me/none, and the Hub has no such model, or it is private"),
            ("me/other", {}, f"me/other of the Hub holds no {FILE}"), ("me/closed", {}, "only to those who accept its conditions"),
            ("me/other", {"revision": "v9"}, "me/other of the Hub has no revision v9"),
            ("a/b/c", {}, "there is no folder a/b/c, and it is no name of a model of the Hub"),
            ("no such name", {}, "it is no name of a model of the Hub")]:
        with pytest.raises(UserError, match=message):
            AnonymizationPrompt.from_pretrained(name, **options)
    with pytest.raises(UserError, match="no name of a model of the Hub"):
        shared.push_to_hub("a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the Hub did not do what was asked"):
        shared.push_to_hub("me/alz")


def test_bad_folders_and_files_give_a_sentence_and_run_nothing(shared, tmp_path):
    with pytest.raises(UserError, match=f"holds no {FILE}; give a folder that save_pretrained"):
        AnonymizationPrompt.from_pretrained(tmp_path)
    shared.save_pretrained(tmp_path)
    file = tmp_path / FILE
    with pytest.raises(UserError, match="is a file and not a folder; load it with AnonymizationPrompt.load"):
        AnonymizationPrompt.from_pretrained(file)
    good, marker = file.read_bytes(), tmp_path / "ran"
    for save in (save_zip, save_legacy):
        save({"x": RunsCode(marker)}, file)
        with pytest.raises(UserError, match="was not run"):
            AnonymizationPrompt.from_pretrained(tmp_path)
    assert not marker.exists()
    for bad, message in [(good[:60], "damaged"), (b"", "damaged"), (b"<html>", "an HTML page"), (b'{"a": 1}', "a JSON file")]:
        file.write_bytes(bad)
        with pytest.raises(UserError, match=message):
            AnonymizationPrompt.from_pretrained(tmp_path)
    for tensors, message in [({"emb_params": torch.full((2, 4), torch.nan)}, "NaN"), ({"emb_params": torch.ones(2, 4, 1)}, "shape"),
                             ({"a": torch.ones(2, 4), "b": torch.ones(2, 4)}, "nothing says which"),
                             ({"map": torch.ones(4, 3), "bias": torch.ones(4)}, "do not fit each other")]:
        save_file(tensors, file)
        with pytest.raises(UserError, match=message):
            AnonymizationPrompt.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", ["[1]", "{", '{"vectors": 3, "source": "x", "context_map": {}, "file": "../../x"}', None])
def test_the_config_of_a_folder_is_not_needed_and_not_believed(shared, tmp_path, config):
    shared.save_pretrained(tmp_path)
    (tmp_path / CONFIG).unlink() if config is None else (tmp_path / CONFIG).write_text(config)
    assert equal(AnonymizationPrompt.from_pretrained(tmp_path).vectors, [VECTORS])


def test_saving_keeps_a_card_that_was_edited_and_other_files(shared, tmp_path):
    shared.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "image.png").touch()
    AnonymizationPrompt(2 * VECTORS).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine" and (tmp_path / "image.png").exists()
    assert equal(AnonymizationPrompt.from_pretrained(tmp_path).vectors, [2 * VECTORS])
    shutil.rmtree(tmp_path)
