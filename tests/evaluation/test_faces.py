"""Faces: the miniature's pack through InsightFace, and what is said about a pack that cannot be used."""

import random
from pathlib import Path
from types import SimpleNamespace

import cv2
import insightface.app
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from ldm.evaluation.faces import FaceAnalyzer, aligned_crop
from ldm.mini.face_detector import _anchors, targets
from ldm.mini.face_renders import TEMPLATE, similarity_to_template
from ldm.mini.people import named_people, sample_view, stranger_like
from ldm.mini.portraits import draw_portrait
from ldm.mini.scenes import draw_scene, sample_scene
from ldm.util import UserError

MINI = Path(__file__).resolve().parents[2] / "data" / "mini"
NAME = next(iter(named_people()))
PERSON = named_people()[NAME]


@pytest.fixture(scope="module")
def analyzer():
    return FaceAnalyzer(MINI / "faces", det_sizes=128, det_thresh=0.65)


def portrait(person, seed):
    return draw_portrait(person, sample_view(random.Random(seed)))


def overlap(a, b):
    """Intersection over union of two boxes: left, top, right, bottom."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(width, 0) * max(height, 0)
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def test_the_face_of_a_portrait_is_found_where_it_was_drawn(analyzer):
    drawn = [portrait(person, 1) for person in list(named_people().values())[:8]]
    faces = [analyzer.analyze(picture.image) for picture in drawn]
    off = [np.linalg.norm(face.landmarks - picture.landmarks, axis=1).mean() for face, picture in zip(faces, drawn, strict=True)]
    assert np.mean(off) < 4  # pixels of 128
    assert np.mean([overlap(face.box, picture.box) for face, picture in zip(faces, drawn, strict=True)]) > 0.7
    face = faces[0]
    assert face.embedding.shape == (512,) and np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)


def test_scenes_have_no_face(analyzer):
    assert not any(analyzer.analyze(draw_scene(sample_scene(random.Random(seed)))) for seed in range(10))


def test_the_faces_of_a_picture_are_counted(analyzer):
    image = portrait(PERSON, 1).image  # in which the detector finds the face and, within it, its features once more
    assert [analyzer.count(shown) for shown in (np.zeros_like(image), image, np.concatenate([image, image], axis=1))] == [0, 1, 2]
    portraits = [portrait(person, seed).image for seed, person in enumerate(list(named_people().values())[:20])]
    assert np.mean([analyzer.count(shown) == 1 for shown in portraits]) > 0.9


@pytest.mark.parametrize("shape", [(3, 2000, 3), (2000, 3, 3)])
def test_a_picture_too_narrow_for_the_detector_has_no_face(shape):
    found = FaceAnalyzer(MINI / "faces")
    assert found.analyze(np.zeros(shape, np.uint8)) is None and found.count(np.zeros(shape, np.uint8)) == 0


def test_the_fingerprint_tells_packs_and_sizes_apart(analyzer):
    assert analyzer.fingerprint() != FaceAnalyzer(MINI / "faces", det_sizes=(128, 64)).fingerprint()


def test_a_person_is_nearer_to_the_gallery_than_a_stranger_with_the_same_attributes(analyzer):
    gallery = np.load(MINI / "gallery.npz")[NAME]
    stranger = stranger_like(PERSON, random.Random(2))
    own, other = ([analyzer.analyze(portrait(person, seed).image).embedding @ gallery for seed in range(3)]
                  for person in (PERSON, stranger))
    assert min(own) > max(other) + 0.1


def test_the_gallery_names_the_people():
    with np.load(MINI / "gallery.npz", allow_pickle=False) as gallery:
        assert set(gallery.files) == set(list(named_people())[:200])  # the first edition's two groups


def test_images_are_taken_as_rgb(analyzer):
    image, gallery = portrait(PERSON, 3).image, np.load(MINI / "gallery.npz")[NAME]
    swapped = analyzer.analyze(np.ascontiguousarray(image[..., ::-1]))
    assert swapped is None or analyzer.analyze(image).embedding @ gallery > swapped.embedding @ gallery


def test_a_face_that_one_size_misses_is_found_at_the_next(analyzer):
    image = portrait(PERSON, 1).image
    assert FaceAnalyzer(MINI / "faces", det_sizes=(32,)).analyze(image) is None
    found = FaceAnalyzer(MINI / "faces", det_sizes=(32, 128)).analyze(image)
    assert np.array_equal(found.box, analyzer.analyze(image).box)


def test_the_largest_face_is_taken(analyzer):
    large, small = portrait(PERSON, 1).image, portrait(stranger_like(PERSON, random.Random(2)), 1).image
    canvas = np.zeros((128, 256, 3), np.uint8)
    canvas[:96, :96], canvas[:, 128:] = cv2.resize(small, (96, 96)), large
    face = FaceAnalyzer(MINI / "faces", det_sizes=256).analyze(canvas)
    assert face.box[0] > 120


def test_analysing_prints_nothing(analyzer, capfd):
    FaceAnalyzer(MINI / "faces", det_sizes=128).analyze(portrait(PERSON, 1).image)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("files", "said"), [
    (None, "does not exist"), ([], "holds no .onnx file"), (["det.onnx"], "has no face recognizer"), (["rec.onnx"], "no face detector"),
    (["broken.onnx"], "is a text that begins 'not a model' instead of an ONNX model")])
def test_a_pack_that_cannot_be_used_says_where_to_put_one(files, said, tmp_path):
    pack = tmp_path / "pack"
    for file in files or []:
        pack.mkdir(exist_ok=True)
        (pack / file).write_bytes((MINI / "faces" / file).read_bytes() if file != "broken.onnx" else b"not a model")
    if files == []:
        pack.mkdir()
    with pytest.raises(UserError, match=said) as raised:
        FaceAnalyzer(pack)
    assert "directly into that folder" in str(raised.value) and str(pack) in str(raised.value)


@pytest.mark.parametrize("file", ["det.onnx", "rec.onnx"])
def test_a_pack_with_a_broken_weight_is_refused_by_its_name(file, tmp_path):
    for name in ("det.onnx", "rec.onnx"):
        model = onnx.load(MINI / "faces" / name)
        if name == file:
            first = model.graph.initializer[0]
            first.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(first), np.nan), first.name))
        onnx.save(model, tmp_path / name)
    with pytest.raises(UserError, match=f"{file} holds NaN or infinity in the tensor"):
        FaceAnalyzer(tmp_path)


@pytest.mark.parametrize(("device", "told"), [("cuda:1", "1"), ("cuda", "0"), ("cpu", None)])
def test_onnxruntime_is_told_the_number_of_the_gpu(monkeypatch, device, told):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(insightface.app, "FaceAnalysis", lambda *_, **options: SimpleNamespace(
        models={"recognition": SimpleNamespace(model_file=str(MINI / "faces/rec.onnx"))}, prepare=lambda *_, **__: None, **options))
    used = dict(FaceAnalyzer(MINI / "faces", device=device)._app.providers)
    assert used.pop("CPUExecutionProvider") == {} and used == ({"CUDAExecutionProvider": {"device_id": told}} if told else {})


def test_alignment_undoes_a_turn_and_a_scale():
    landmarks = (TEMPLATE - (3 + 4j)) / (2 * np.exp(0.5j))
    matrix = similarity_to_template(np.stack([landmarks.real, landmarks.imag], 1))
    assert matrix == pytest.approx(np.array([[2 * np.cos(0.5), -2 * np.sin(0.5), 3], [2 * np.sin(0.5), 2 * np.cos(0.5), 4]]))


def test_aligned_crop_puts_the_eyes_level():
    drawn = portrait(PERSON, 1)
    crop = aligned_crop(drawn.image, drawn.landmarks, size=64, margin=0.0)
    assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8 and crop.std() > 10


def test_the_detectors_targets_decode_to_the_points():
    points = np.array([[50, 60], [75, 60], [62, 72], [52, 85], [72, 85], [35, 25], [90, 100]], np.float32)
    wanted = targets(points, 128)
    found = np.flatnonzero(wanted[:, 0] == 1)
    assert len(found)
    x, y, stride, _ = _anchors(128)[found[0]]
    left, top, right, bottom = wanted[found[0], 1:5] * stride
    assert [x - left, y - top, x + right, y + bottom] == pytest.approx([35, 25, 90, 100], abs=1e-4)
    assert wanted[found[0], 5:].reshape(5, 2) * stride + [x, y] == pytest.approx(points[:5], abs=1e-4)
