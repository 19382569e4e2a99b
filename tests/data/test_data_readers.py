"""Readers of S_ID, S_Reg and the templates: every layout gives the same, and a mistake is named."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.benchmarks import fill, read_templates
from ldm.data.captions import caption_images
from ldm.data.identities import Person, identity_images, read_people
from ldm.data.images import ImageSource, load_image
from ldm.experiments.identity_table import people_asked_for
from ldm.left_out import LeftOut
from ldm.util import UserError

PEOPLE = "name,group,attributes\nAda Stone,train,\"A female pale-skinned pilot, brown eyes\"\nBen Wood,test,A male chef\n"


def save_image(path, color=(255, 0, 0), size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def people(tmp_path):
    (tmp_path / "people.csv").write_text(PEOPLE)
    return read_people(tmp_path / "people.csv")


def test_an_image_is_the_centre_square_in_minus_one_to_one(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255  # only the centre square is white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(ImageSource(tmp_path / "a.png"), 4)
    assert torch.equal(image, torch.ones(3, 4, 4))


@pytest.mark.parametrize("layout", ["metadata", "folders", "shard"])
def test_identities_of_every_layout_carry_name_and_attributes(tmp_path, people, layout):
    folder = tmp_path / "s_id"
    if layout == "metadata":
        save_image(folder / "1.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "name": "Ada Stone"}))
    elif layout == "folders":
        save_image(folder / "Ada_Stone" / "1.png")
    else:
        write_shard(folder / "0.tar", {"1.json": json.dumps({"name": "Ada Stone"}).encode()})
    (image,) = identity_images(folder, people)
    assert (image.name, image.attributes) == ("Ada Stone", "A female pale-skinned pilot, brown eyes")
    assert load_image(image.source, 8).shape == (3, 8, 8)


def test_people_of_the_test_group_stay_unseen(tmp_path, people):
    for name in ("Ada Stone", "Ben Wood"):
        save_image(tmp_path / "s_id" / name / "1.png")
    assert [image.name for image in identity_images(tmp_path / "s_id", people)] == ["Ada Stone"]


def test_people_of_the_keep_group_are_listed_and_neither_trained_on_nor_scored(tmp_path):
    (tmp_path / "people.csv").write_text(PEOPLE + "Cleo Vance,keep,\n")
    people, left_out = read_people(tmp_path / "people.csv"), LeftOut()
    assert people["Cleo Vance"].group == "keep"
    for name in people:
        save_image(tmp_path / "s_id" / name / "1.png")
    assert [image.name for image in identity_images(tmp_path / "s_id", people, left_out)] == ["Ada Stone"]
    assert [row["reason"] for row in left_out.rows] == ["of the test group", "of the keep group"]
    assert identity_images(tmp_path / "s_id", people)  # no mistake, for which training would stop
    assert people_asked_for(people, "all", None) == {"train": ["Ada Stone"], "test": ["Ben Wood"]}


@pytest.mark.parametrize("layout", ["txt", "jsonl", "csv", "img2dataset", "shard"])
def test_captions_of_every_layout_are_found(tmp_path, layout):
    folder = tmp_path / "s_reg"
    if layout != "shard":
        save_image(folder / "00000" / "7.jpg")
    if layout == "txt":
        (folder / "00000" / "7.txt").write_text("a red car\n")
    elif layout == "jsonl":
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "00000/7.jpg", "text": "a red car"}))
    elif layout == "csv":
        (folder / "metadata.csv").write_text("file_name,prompt\n00000/7.jpg,a red car\n")
    elif layout == "img2dataset":
        (folder / "00000" / "7.json").write_text(json.dumps({"caption": "a red car", "width": 20}))
    else:
        write_shard(folder / "00000.tar", {"1.txt": b"a red car"})
    (image,) = caption_images(folder)
    assert image.caption == "a red car" and load_image(image.source, 8)[0].min() > 0.9


def test_a_shard_is_never_unpacked(tmp_path):
    write_shard(tmp_path / "s" / "0.tar", {"1.txt": b"x"}, prefix="../../outside/")
    assert [image.caption for image in caption_images(tmp_path / "s")] == ["x"]
    assert not (tmp_path.parent / "outside").exists()


def write_shard(path, members, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    Image.new("RGB", (20, 10), (255, 0, 0)).save(image, "PNG")
    with tarfile.open(path, "w") as shard:
        for name, content in {"1.png": image.getvalue(), **members}.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def test_a_corrupt_image_is_named(tmp_path):
    path = save_image(tmp_path / "broken.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="broken.jpg"):
        load_image(ImageSource(path), 8)


def test_a_name_without_attributes_is_named(tmp_path, people):
    save_image(tmp_path / "s_id" / "Cleo Vance" / "1.png")
    with pytest.raises(UserError, match="'Cleo Vance'.*no attributes"):
        identity_images(tmp_path / "s_id", people)


@pytest.mark.parametrize(("folder", "message"), [("empty", "holds no images"), ("absent", "does not exist")])
def test_a_folder_without_images_is_refused(tmp_path, folder, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        caption_images(tmp_path / folder)


def test_a_image_without_caption_is_refused(tmp_path):
    save_image(tmp_path / "7.png")
    with pytest.raises(UserError, match="7.png has no caption"):
        caption_images(tmp_path)


def test_metadata_for_a_missing_image_is_refused(tmp_path):
    save_image(tmp_path / "7.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "8.png", "text": "a red car"}))
    with pytest.raises(UserError, match="'8.png' in its entry 1"):
        caption_images(tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    ("name,group\nAda,train\n", "no attributes"), ("name,group,attributes\nAda,val,A chef\n", "'val'"),
    ("name,group,attributes\nAda,train,A chef\nAda,test,A chef\n", "listed twice")])
def test_a_wrong_list_of_people_is_refused(tmp_path, content, message):
    (tmp_path / "people.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_people(tmp_path / "people.csv")


def test_templates_are_filled_alike(tmp_path):
    (tmp_path / "templates.txt").write_text("# comment\n\na photo of {}\n{}\n")
    templates = read_templates(tmp_path / "templates.txt")
    assert [fill(template, "Ada {x}") for template in templates] == ["a photo of Ada {x}", "Ada {x}"]


@pytest.mark.parametrize("content", ["", "a photo\n", "{} and {}\n"])
def test_wrong_templates_are_refused(tmp_path, content):
    (tmp_path / "templates.txt").write_text(content)
    with pytest.raises(UserError, match="template"):
        read_templates(tmp_path / "templates.txt")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("7.txt", b"caf\xe9", "7.txt is not UTF-8 text"), ("7.json", b"{", "not valid JSON"), ("metadata.jsonl", b"\xff", "not UTF-8"),
    ("7.json", b"[1]", "^the .json of .*7.png holds .1. instead of an object"),
    ("metadata.csv", b'file_name,text\n7.png,"' + b"x" * 200_000 + b'"', "not valid CSV"), ("8.tar", b"\0" * 100, "8.tar is damaged"),
    ("7.jpg", b"", "have the same stem")])
def test_training_refuses_a_flawed_collection_with_the_file(tmp_path, name, content, message):
    save_image(tmp_path / "7.png")
    (tmp_path / "7.txt").write_text("a red car")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        caption_images(tmp_path)


def test_a_shard_that_was_cut_is_refused(tmp_path):
    write_shard(tmp_path / "s" / "0.tar", {"1.txt": b"x"})
    whole = (tmp_path / "s" / "0.tar").read_bytes()
    for cut in (1400, 700, 600):
        (tmp_path / "s" / "0.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="0.tar is damaged"):
            caption_images(tmp_path / "s")


@pytest.mark.parametrize(("kind", "size"), [
    (tarfile.REGTYPE, -512), (tarfile.REGTYPE, 2**40), (b"Z", -1024), (tarfile.GNUTYPE_LONGNAME, -1024), (tarfile.XHDTYPE, -1024)])
def test_a_shard_whose_member_has_an_impossible_size_is_refused(tmp_path, kind, size):
    member = tarfile.TarInfo("1.txt")
    member.size, member.type = size, kind
    content = member.tobuf(tarfile.GNU_FORMAT)  # sizes in base 256, which can be negative
    (tmp_path / "0.tar").write_bytes(content + bytes(1024))
    with pytest.raises(UserError, match="0.tar is damaged"):
        caption_images(tmp_path)


def test_two_people_with_one_file_stem_are_kept_apart(tmp_path, people):
    for name, color in (("Ada Stone", (255, 0, 0)), ("Ben Wood", (0, 0, 255))):
        save_image(tmp_path / "s_id" / name / "1.png", color)
    (image,) = identity_images(tmp_path / "s_id", people)
    assert image.name == "Ada Stone" and load_image(image.source, 8)[0].min() == 1


@pytest.mark.parametrize(("row", "message"), [
    ("Ada,train,A female White singer, long face, brown eyes\n", "line 2, has 5 fields where the header has 3"),
    ('Ada,train,"A female singer\nBo,test,"A male actor"\nCy,train,A cook\n', "line 2, is not valid CSV"),
    ('Ada,train,"A female singer\nBo,test,A male actor"\n', "line 2, has a text that runs over lines"),
    ("Ada,train\n", "line 2, has 2 fields"), ("Ada,tarin,A chef\n", "line 2, puts 'Ada' into the group 'tarin'")])
def test_a_row_of_people_that_is_not_whole_is_refused_with_its_line(tmp_path, row, message):
    (tmp_path / "people.csv").write_text("name,group,attributes\n" + row)
    with pytest.raises(UserError, match=message):
        read_people(tmp_path / "people.csv")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfName;Group;Attributes;\r\nAda;Train;A chef, tall;\r\n;;;\r\n",
                                     "name\tgroup\tattributes\nAda\ttrain\tA chef, tall\n".encode("utf-16"),
                                     b'name, group, attributes\rAda , train, "A chef, tall"\r'])
def test_a_list_of_people_is_read_as_spreadsheets_write_it(tmp_path, content):
    (tmp_path / "people.csv").write_bytes(content)
    assert read_people(tmp_path / "people.csv") == {"Ada": Person("Ada", "train", "A chef, tall")}


@pytest.mark.parametrize("content", [b"name,group,attributes\nZo\xeb,train,A chef\n",
                                     b'name,group,attributes\nAda,train,"' + b"x" * 200_000 + b'"\n'])
def test_a_list_of_people_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "people.csv").write_bytes(content)
    with pytest.raises(UserError, match="people.csv(, line 2,)? is n"):
        read_people(tmp_path / "people.csv")
