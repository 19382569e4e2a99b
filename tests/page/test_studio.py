"""The page without a browser and without Gradio: limits, images, strength, metrics, downloads, and one model in memory."""

import ast
import json
import shutil
import sys
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from args.common import ROOT
from args.page_args import parse_page_args
from ldm.generation import generate, with_prefix
from ldm.loading import ModelFiles
from ldm.modules.context_map import ContextMap
from ldm.modules.embedding_manager import EmbeddingManager, manager_for
from ldm.page import __main__ as command
from ldm.page.results import curve_as_html, error_as_html, images_as_html, write_zip
from ldm.page.studio import STRENGTHS, BlendedModel, Limits, Studio
from ldm.util import UserError

ADA, BEN = np.eye(2, dtype=np.float32)
SAMPLING = {"ddim_steps": 2, "scale": 4.0, "seed": 0}


class SameFace:
    """Analyzer that sees the same face in every image, between Ada Stone and Ben Wood; or none."""

    def __init__(self):
        self.faces, self.seen = True, 0

    def analyze(self, image):
        self.seen += 1
        return SimpleNamespace(embedding=0.8 * ADA + 0.6 * BEN) if self.faces else None


@pytest.fixture(scope="module")
def prefix_file(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("prefix") / "tiny-prefix.pt"
    EmbeddingManager(tiny_model.cond_stage_model).save(path)
    return path


@pytest.fixture
def studio(tiny_files, prefix_file, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(tiny_files[1], other)
    return Studio([ModelFiles(*tiny_files), ModelFiles(tiny_files[0], other)], [prefix_file], SameFace(),
                  {"Ada Stone": ADA, "Ben Wood": BEN}, torch.device("cpu"), "fp32", Limits(images=8, length=60, steps=4))


def asked_for(studio, **changed):
    """A valid request but for what is changed."""
    values = {"model": "tiny", "prompts": "a photo of Ben Wood", "prefixes": ["tiny-prefix"], "strength": 1, "seed": 0, "ddim_steps": 2,
              "scale": 4.0}
    return studio.check(**values | changed)


def portraits(studio, jobs, asked):
    return [studio.portrait(asked, job) for job in jobs]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize(("fixture", "learned"), [("tiny_model", manager_for), ("tiny_xl_model", manager_for),
                                                  ("tiny_model", lambda embedder: ContextMap(32))])
def test_the_context_goes_from_the_plain_one_to_the_prefixed_one(fixture, learned, strength, request):
    model = request.getfixturevalue(fixture)
    manager = learned(model.cond_stage_model).requires_grad_(False)
    list(manager.embedding_parameters())[-1].data += 1  # also changes the identity, of a context map
    plain, prefixed = (model.get_learned_conditioning(with_prefix(["a car"], one), one) for one in (None, manager))
    context = BlendedModel(model, manager, strength).get_learned_conditioning(["a car"], None)
    if strength in (0, 1):
        assert torch.equal(context, prefixed if strength else plain)
    torch.testing.assert_close(context, plain + strength * (prefixed - plain))


def test_images_are_those_of_the_scripts_from_the_same_noise(studio, tiny_model, prefix_file):
    manager = EmbeddingManager(tiny_model.cond_stage_model)
    manager.load(prefix_file)
    asked = asked_for(studio)
    shown = portraits(studio, studio.comparison(asked), asked)
    assert [(one.prefix, one.strength) for one in shown] == [("none", 0.0), ("tiny-prefix", 1)]
    for one, hook in zip(shown, (None, manager), strict=True):
        [(_, image)] = generate(tiny_model, [("a photo of Ben Wood", 0)], embedding_manager=hook, **SAMPLING)
        np.testing.assert_allclose(one.image, image, atol=1, rtol=0)  # the page's model is stored channels last


def test_each_face_has_its_cosine_to_the_named_person_and_the_nearest_people(studio):
    asked = asked_for(studio, prompts="a photo of BEN WOOD\n\n a red   car ")
    named, _, unnamed, _ = portraits(studio, studio.comparison(asked), asked)
    assert (named.name, named.id_acc, unnamed.name, unnamed.id_acc) == ("Ben Wood", pytest.approx(0.6), None, None)
    assert unnamed.prompt == "a red car" and [name for name, _ in unnamed.nearest] == ["Ada Stone", "Ben Wood"]
    assert "ID-ACC 0.60" in (html := images_as_html([named, unnamed], 4)) and "2 of 4 images" in html and html.count("<img") == 2


def test_a_face_that_is_not_found_is_said_and_never_scored(studio):
    studio._analyzer.faces = False
    asked = asked_for(studio)
    shown = portraits(studio, studio.comparison(asked), asked)
    assert {(one.face_found, one.id_acc) for one in shown} == {(False, None)} and "no face found" in images_as_html(shown, 2)


def test_the_curve_begins_with_the_image_without_a_prefix_and_passes_the_files(studio):
    asked = asked_for(studio, prompts="a red car\na photo of Ada Stone")
    shown = portraits(studio, studio.curve(asked), asked)
    assert [one.strength for one in shown] == list(STRENGTHS) and {one.prompt for one in shown} == {"a photo of Ada Stone"}
    compared = portraits(studio, studio.comparison(asked), asked)[2:]
    np.testing.assert_array_equal(compared[0].image, shown[0].image)
    np.testing.assert_array_equal(compared[1].image, shown[STRENGTHS.index(1)].image)
    assert studio._analyzer.seen == len(STRENGTHS) + 2  # the last images are kept
    assert "data:image/svg+xml" in curve_as_html(shown)


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"prompts": " \n"}, "no prompt"), ({"prompts": None}, "no prompt"), ({"prompts": "a" * 61}, "61 characters; shorten it to 60"),
    ({"prefixes": []}, "No prefix"), ({"prefixes": ["/etc/passwd"]}, "reload"), ({"model": "another"}, "reload"),
    ({"strength": 1.6}, "strength is 1.6"), ({"strength": float("nan")}, "strength is nan"), ({"seed": None}, "seed is missing"),
    ({"seed": -1}, "seed is -1"), ({"ddim_steps": 5}, "steps is 5; give a number from 1 to 4"), ({"scale": "4"}, "scale is 4")])
def test_what_cannot_be_done_gives_a_sentence(studio, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        asked_for(studio, **changed)


def test_a_request_has_no_more_images_than_allowed_and_the_curve_needs_a_name(studio):
    with pytest.raises(UserError, match="10 images, and a request may have 8"):
        studio.comparison(asked_for(studio, prompts="\n".join("abcde")))
    with pytest.raises(UserError, match="No prompt names a person"):
        studio.curve(asked_for(studio, prompts="a red car"))


def test_one_model_is_in_memory(studio):
    first, before = weakref.ref(studio._model), studio.portrait(asked_for(studio), ("a car", "none", 0.0))
    after = studio.portrait(asked_for(studio, model="other"), ("a car", "none", 0.0))
    assert first() is None and studio._loaded == "other"
    np.testing.assert_array_equal(before.image, after.image)  # the weights are equal


def test_users_do_not_disturb_each_other(studio):
    def image(name):
        return studio.portrait(asked_for(studio, model=name), ("a photo of Ben Wood", "tiny-prefix", 1.0)).image

    with ThreadPoolExecutor(4) as users:
        images = list(users.map(image, ["tiny", "other"] * 4))
    assert all((one == images[0]).all() for one in images)


def test_edited_weights_and_equal_names_are_refused(tiny_files, tiny_edited):
    given = SameFace(), {"Ada Stone": ADA}, torch.device("cpu"), "fp32", Limits(8, 60, 4)
    with pytest.raises(UserError, match="edited weights, which have no strength"):
        Studio([ModelFiles(*tiny_files)], [tiny_edited], *given)
    with pytest.raises(UserError, match="two models have the same name"):
        Studio([ModelFiles(*tiny_files)] * 2, [], *given)


def test_the_zip_file_has_the_images_and_what_makes_them_again(studio, tmp_path):
    asked = asked_for(studio, strength=0.5)
    shown = portraits(studio, studio.comparison(asked), asked)
    write_zip(tmp_path / "a.zip", shown, studio.about(asked))
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        settings = json.loads(file.read("settings.json"))
        assert sorted(file.namelist()) == ["01-none.png", "02-tiny-prefix.png", "settings.json"]
    assert {"seed": 0, "ddim_steps": 2, "scale": 4.0, "strength": 0.5, "precision": "fp32"}.items() <= settings.items()
    assert settings["model_hash"] and settings["prefixes"]["tiny-prefix"] and settings["versions"]["torch"]
    assert settings["images"][1] | {"nearest": []} == {
        "file": "02-tiny-prefix.png", "prompt": "a photo of Ben Wood", "prefix": "tiny-prefix", "strength": 0.5, "name": "Ben Wood",
        "face_found": True, "id_acc": pytest.approx(0.6), "nearest": []}


def test_text_of_a_user_is_no_html(studio):
    asked = asked_for(studio, prompts="<script>'\"")
    shown = portraits(studio, studio.comparison(asked), asked)
    html = images_as_html(shown, 2) + error_as_html(UserError("<script>"))
    assert "<script" not in html and "&lt;script&gt;&#x27;&quot;" in html


def test_the_prefix_of_a_preset_is_that_of_test_id():
    args = parse_page_args(["--preset", "mini", "--max_steps", "10"])
    assert [path.name for path in args.embedding] == ["apl-mini.pt"] and (args.scale, args.ddim_steps, args.host) == (4, 10, "127.0.0.1")
    assert [ModelFiles(**files).name for files in args.models] == ["mini-sd"]
    args = parse_page_args(["--preset", "mini", "--models", "mini", "mini-sd-b"])
    assert [ModelFiles(**files).name for files in args.models] == ["mini-sd", "mini-sd-b"]


def test_without_gradio_the_command_ends_with_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as end:
        command.main(["--preset", "mini"])
    assert end.value.code == 2 and capsys.readouterr().err == (
        "error: the page needs the package gradio, which is not installed; run: pip install 'gradio>=6'\n")


def test_only_the_page_imports_gradio():
    def imports(path):
        return {name.partition(".")[0] for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                             [node.module or ""] if isinstance(node, ast.ImportFrom) else [])}

    sources = [*ROOT.glob("*.py"), *ROOT.glob("args/*.py"), *ROOT.glob("ldm/**/*.py")]
    assert [path.name for path in sources if "gradio" in imports(path)] == ["layout.py"]
