"""The gallery: mean of normalised embeddings of the photos with a face, from folders as people have them."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import dataset_generation
import ldm.evaluation.faces
from ldm.evaluation.gallery import person_folders, read_classes
from ldm.evaluation.id_acc import load_gallery
from ldm.images import write_image
from ldm.run_folder import safe_name
from ldm.util import UserError
from tests.refusals import refusal


class ColorAnalyzer:
    """Stands for FaceAnalyzer: the mean colour of a picture is its embedding; black has no face, a wide one has two."""

    analyzed = []

    def __init__(self, *_, **__):
        pass

    def fingerprint(self):
        return "colours"

    def analyze(self, image):
        type(self).analyzed.append(image.shape)
        color = image.reshape(-1, 3).mean(axis=0)
        n_faces = 2 if image.shape[1] > image.shape[0] else 1
        return SimpleNamespace(embedding=(color / np.linalg.norm(color)).astype(np.float32), n_faces=n_faces) if color.any() else None


@pytest.fixture(autouse=True)
def color_analyzer(monkeypatch):
    monkeypatch.setattr(ldm.evaluation.faces, "FaceAnalyzer", ColorAnalyzer)
    ColorAnalyzer.analyzed = []


def photo(path, color, width=8):
    write_image(path, np.full((8, width, 3), color, np.uint8))


def seen_in(out_dir):
    with (out_dir / "gallery.csv").open(newline="", encoding="utf-8") as file:
        return [(row["photo"].rsplit("/")[-1], row["seen"], row["used"]) for row in csv.DictReader(file)]


@pytest.fixture
def photos(tmp_path):
    """Ada: red, green and a photo without a face; Ben: blue and a file that is no picture; Cleo: no face at all."""
    folder = tmp_path / "photos"
    photo(folder / "Ada_Stone" / "1.png", (9, 0, 0))
    photo(folder / "Ada_Stone" / "2.png", (0, 200, 0))
    photo(folder / "Ada_Stone" / "10.png", (0, 0, 0))
    photo(folder / "Ben Wood" / "1.png", (0, 0, 50))
    (folder / "Ben Wood" / "2.png").write_bytes(b"no picture")
    photo(folder / "Cleo Vance" / "1.png", (0, 0, 0))
    return folder


def command(photos, out_dir, *flags):
    dataset_generation.main(["gallery", "--preset", "mini", "--photos", str(photos), "--out_dir", str(out_dir), "--devices", "cpu",
                             *map(str, flags)])


def sentence(capsys, *given):
    return refusal(capsys, command, *given)


def test_an_entry_is_the_mean_of_the_normalised_embeddings(photos, tmp_path, capsys):
    command(photos, tmp_path / "out")
    gallery = load_gallery(tmp_path / "out" / "gallery.npz")
    assert set(gallery) == {"Ada Stone", "Ben Wood"}
    assert gallery["Ada Stone"] == pytest.approx([0.5**0.5, 0.5**0.5, 0]) and gallery["Ben Wood"] == pytest.approx([0, 0, 1])
    said = capsys.readouterr().out
    assert "holds 2 people, from 3 photos with a face of 6; 2 show no face and 1 cannot be read" in said
    assert "no photo with a face: Cleo Vance" in said and "no photos of 200 people of --people: Alina Dundale" in said


def test_every_photo_is_listed_with_what_was_seen(photos, tmp_path):
    command(photos, tmp_path / "out")
    with (tmp_path / "out" / "gallery.csv").open(newline="") as file:
        seen = [(row["name"], row["photo"].rsplit("/")[-1], row["seen"]) for row in csv.DictReader(file)]
    assert seen == [("Ada Stone", "1.png", "unlike the others"), ("Ada Stone", "2.png", "unlike the others"),
                    ("Ada Stone", "10.png", "no face"), ("Ben Wood", "1.png", "face"), ("Ben Wood", "2.png", "unreadable"),
                    ("Cleo Vance", "1.png", "no face")]
    record = json.loads((tmp_path / "out" / "gallery.json").read_text())
    assert record["recogniser"] == "colours" and record["people"][1] == {"name": "Ben Wood", "photos": 2, "with_face": 1, "unreadable": 1}
    assert set(record["people"][0].pop("doubtful").values()) == {"unlike the others"}
    assert record["people"][0] == {"name": "Ada Stone", "photos": 3, "with_face": 2, "unreadable": 0}


def test_a_stranger_and_a_group_are_listed_and_not_averaged(tmp_path, capsys):
    for number, color in enumerate([(9, 0, 0), (9, 0, 0), (0, 0, 9)]):
        photo(tmp_path / "photos" / "Ada Stone" / f"{number}.png", color)
    photo(tmp_path / "photos" / "Ada Stone" / "3.png", (9, 0, 0), width=16)
    command(tmp_path / "photos", tmp_path / "out")
    assert load_gallery(tmp_path / "out" / "gallery.npz")["Ada Stone"] == pytest.approx([1, 0, 0])
    assert seen_in(tmp_path / "out") == [("0.png", "face", "True"), ("1.png", "face", "True"), ("2.png", "unlike the others", "False"),
                                         ("3.png", "several faces", "False")]
    assert "doubtful photos of Ada Stone: 1 x unlike the others, 1 x several faces" in capsys.readouterr().out
    looked = len(ColorAnalyzer.analyzed)
    command(tmp_path / "photos", tmp_path / "out", "--keep_doubtful")
    assert load_gallery(tmp_path / "out" / "gallery.npz")["Ada Stone"] == pytest.approx(np.array([3, 0, 1]) / 10**0.5)
    assert len(ColorAnalyzer.analyzed) == looked and {used for _, _, used in seen_in(tmp_path / "out")} == {"True"}


def test_who_has_only_doubtful_photos_is_named(tmp_path, capsys):
    photo(tmp_path / "photos" / "Ada Stone" / "1.png", (9, 0, 0), width=16)
    photo(tmp_path / "photos" / "Ben Wood" / "1.png", (0, 9, 0))
    photo(tmp_path / "photos" / "Ben Wood" / "2.png", (0, 0, 9))
    command(tmp_path / "photos", tmp_path / "out")
    assert "may show another person: Ada Stone, Ben Wood" in capsys.readouterr().out
    assert set(load_gallery(tmp_path / "out" / "gallery.npz")) == {"Ada Stone", "Ben Wood"}


def test_folders_that_nobody_in_the_list_has_are_named_with_the_nearest_name(tmp_path, capsys):
    for folder in ("Ada Ston", "ben_wood"):
        photo(tmp_path / "photos" / folder / "1.png", (9, 0, 0))
    (tmp_path / "people.csv").write_text("name,group,attributes\nAda Stone,train,A\nBen Wood,train,B\n")
    command(tmp_path / "photos", tmp_path / "out", "--people", tmp_path / "people.csv")
    said = capsys.readouterr().out
    assert "not in --people, and kept under the name of the folder: Ada Ston (the nearest name in --people is 'Ada Stone')" in said
    assert "no photos of 1 people of --people: Ada Stone" in said
    assert list(json.loads((tmp_path / "out" / "gallery.json").read_text())["not_in_people"]) == ["Ada Ston"]
    assert set(load_gallery(tmp_path / "out" / "gallery.npz")) == {"Ada Ston", "Ben Wood"}


def test_a_person_of_onto_is_replaced_whatever_the_spelling(tmp_path):
    np.savez(tmp_path / "old.npz", **{"ADA STONE": np.ones(3), "Cleo": np.ones(3)})
    photo(tmp_path / "photos" / "Ada Stone" / "1.png", (9, 0, 0))
    command(tmp_path / "photos", tmp_path / "out", "--onto", tmp_path / "old.npz")
    assert set(load_gallery(tmp_path / "out" / "gallery.npz")) == {"Ada Stone", "Cleo"}


def test_a_second_run_looks_only_at_what_is_new(photos, tmp_path):
    command(photos, tmp_path / "out")
    before, looked = (tmp_path / "out" / "gallery.npz").read_bytes(), len(ColorAnalyzer.analyzed)
    command(photos, tmp_path / "out")
    assert len(ColorAnalyzer.analyzed) == looked and load_gallery(tmp_path / "out" / "gallery.npz").keys() == {"Ada Stone", "Ben Wood"}
    photo(photos / "Ben Wood" / "3.png", (50, 0, 0))
    command(photos, tmp_path / "out")
    assert len(ColorAnalyzer.analyzed) == looked + 2 and (tmp_path / "out" / "gallery.npz").read_bytes() != before


def test_another_photo_of_the_same_name_and_size_is_looked_at(tmp_path):
    for color in ((9, 0, 0), (0, 9, 0)):
        image = tmp_path / "photos" / "Ada Stone" / "1.bmp"  # without compression: all of one size
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(image)
        command(tmp_path / "photos", tmp_path / "out")
        assert load_gallery(tmp_path / "out" / "gallery.npz")["Ada Stone"] == pytest.approx(np.array(color) / 9)


def test_photos_of_a_phone_in_linked_folders_count_upright_and_what_is_left_out_is_listed(tmp_path, capsys):
    exif, left = Image.Exif(), np.zeros((8, 16, 3), np.uint8)
    exif[0x0112], left[:, :8] = 6, (0, 0, 9)
    (tmp_path / "disk").mkdir()
    Image.fromarray(left).save(tmp_path / "disk" / "1.tif", exif=exif)
    (tmp_path / "disk" / "2.jpg").write_bytes(b"<html>")
    (tmp_path / "disk" / "3.heic").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "Ada Stone").symlink_to(tmp_path / "disk")
    command(tmp_path / "photos", tmp_path / "out")
    assert ColorAnalyzer.analyzed == [(16, 8, 3)] and "left out: 1 x other format" in capsys.readouterr().out
    with (tmp_path / "out" / "gallery.csv").open(newline="") as file:
        assert [bool(row["reason"]) for row in csv.DictReader(file)] == [False, True]
    assert "3.heic" in (tmp_path / "out" / "left_out.csv").read_text()
    command(tmp_path / "photos", tmp_path / "out")  # reasons are kept with the embeddings
    with (tmp_path / "out" / "gallery.csv").open(newline="") as file:
        assert "begins with b'<html>'" in [row["reason"] for row in csv.DictReader(file)][1]


def test_max_photos_takes_the_first(photos, tmp_path):
    command(photos, tmp_path / "out", "--max_photos", 1)
    assert load_gallery(tmp_path / "out" / "gallery.npz")["Ada Stone"] == pytest.approx([1, 0, 0])


def test_vggface2_is_read_with_its_names(tmp_path):
    photo(tmp_path / "vgg" / "train" / "n000002" / "0001_01.png", (9, 0, 0))
    photo(tmp_path / "vgg" / "test" / "n000001" / "0001_01.png", (0, 9, 0))
    meta = tmp_path / "identity_meta.csv"
    meta.write_text('Class_ID, Name, Sample_Num, Flag, Gender\n'
                    'n000001, "14th_Dalai_Lama", 424, 0, m\nn000002, "A_Fine_Frenzy", 315, 1, f\n')
    command(tmp_path / "vgg", tmp_path / "out", "--identity_meta", meta)
    assert set(load_gallery(tmp_path / "out" / "gallery.npz")) == {"14th Dalai Lama", "A Fine Frenzy"}
    assert set(person_folders(tmp_path / "vgg")) == {"n000001", "n000002"}


def test_pictures_that_a_model_drew_are_read_and_their_manifest_kept(tmp_path):
    for label in ("none", "apl"):
        photo(tmp_path / "run" / "images" / label / "Ada Stone" / "0.png", (9, 0, 0) if label == "none" else (0, 9, 0))
    (tmp_path / "run" / "manifest.json").write_text('{"settings": {"model_hash": "abc"}, "prefixes": {}}')
    command(tmp_path / "run", tmp_path / "out")
    assert load_gallery(tmp_path / "out" / "gallery.npz")["Ada Stone"] == pytest.approx([1, 0, 0])
    assert json.loads((tmp_path / "out" / "gallery.json").read_text())["drawn_with"]["settings"]["model_hash"] == "abc"


def test_a_strange_name_is_found_under_the_folder_that_was_made_for_it(tmp_path):
    photo(tmp_path / "photos" / safe_name("Zoë / Z.") / "1.png", (9, 0, 0))
    assert list(person_folders(tmp_path / "photos", ["Zoë / Z."])) == ["Zoë / Z."]


def test_two_people_with_one_file_stem_are_kept_apart(tmp_path):
    for name in ("Ada Stone", "Ben Wood"):
        photo(tmp_path / "photos" / name / "1.png", (9, 0, 0) if name == "Ada Stone" else (0, 9, 0))
    command(tmp_path / "photos", tmp_path / "out")
    gallery = load_gallery(tmp_path / "out" / "gallery.npz")
    assert gallery["Ada Stone"] @ gallery["Ben Wood"] == 0


@pytest.mark.parametrize("other", ["Ada_Stone", "ADA STONE", "Ada\u00a0Stone"])
def test_two_folders_of_one_name_are_refused(tmp_path, capsys, other):
    for name in ("Ada Stone", other):
        photo(tmp_path / "photos" / name / "1.png", (9, 0, 0))
    assert "both called '" in sentence(capsys, tmp_path / "photos", tmp_path / "out")


def test_wrong_folders_are_refused(tmp_path, capsys):
    photo(tmp_path / "flat" / "1.png", (9, 0, 0))
    assert "is unknown; put it" in sentence(capsys, tmp_path / "flat", tmp_path / "out")
    (tmp_path / "bare" / "Ada").mkdir(parents=True)
    assert "holds no photos" in sentence(capsys, tmp_path / "bare", tmp_path / "out")
    photo(tmp_path / "dark" / "Ada" / "1.png", (0, 0, 0))
    assert "no face was found in any" in sentence(capsys, tmp_path / "dark", tmp_path / "out")
    assert "--photos none is not there; give a folder" in sentence(capsys, "none", tmp_path / "out")


@pytest.mark.parametrize("content", [b"name\nx\n", b"Class_ID, Name\nn1\n", b"\xff\xfe"])
def test_another_table_of_classes_is_refused(tmp_path, content):
    (tmp_path / "meta.csv").write_bytes(content)
    with pytest.raises(UserError, match="identity_meta.csv"):
        read_classes(tmp_path / "meta.csv")


def test_photos_below_the_folder_of_a_person_are_that_persons(tmp_path):
    photo(tmp_path / "Ada Stone" / "2019" / "1.png", (9, 0, 0))
    assert person_folders(tmp_path, ["Ada Stone"]) == {"Ada Stone": tmp_path / "Ada Stone" / "2019"}
    photo(tmp_path / "Ada Stone" / "2020" / "1.png", (9, 0, 0))
    with pytest.raises(UserError, match="both called 'Ada Stone'"):
        person_folders(tmp_path, ["Ada Stone"])
