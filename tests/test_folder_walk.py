"""The one folder walk: every reader finds the same files, and what is left out is counted with its reason."""

import os
import tarfile

import pytest
from PIL import Image

from ldm.data.captions import caption_images
from ldm.data.identities import identity_images
from ldm.data.images import read_collection
from ldm.evaluation.gallery import person_folders, portraits_in
from ldm.image_files import image_files, image_suffixes, natural_order
from ldm.images import images_in
from ldm.left_out import LeftOut
from ldm.util import UserError


def png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def names(paths):
    return [path.name for path in paths]


@pytest.fixture
def left_out():
    return LeftOut()


def reasons(left_out):
    return sorted(row["reason"] for row in left_out.rows)


def test_every_suffix_that_pillow_opens_counts_in_any_case(tmp_path, left_out):
    assert {".jfif", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".jpe", ".webp", ".bmp", ".ppm", ".tga", ".apng"} <= image_suffixes()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf", ".txt", ".json", ".csv", ".tar"} & image_suffixes()
    for name in ("1.JFIF", "2.Tif", "3.gif", "4.PNG"):
        (tmp_path / name).touch()
    assert names(image_files(tmp_path, left_out)) == ["1.JFIF", "2.Tif", "3.gif", "4.PNG"] and not left_out.rows


def test_files_come_in_natural_order_of_their_folders(tmp_path, left_out):
    for name in ("b/1.png", "a10/1.png", "a2/10.png", "a2/9.png", "٣.png", "3.png"):
        png(tmp_path / name)
    assert [str(path.relative_to(tmp_path)) for path in image_files(tmp_path, left_out)] == [
        "3.png", "a2/9.png", "a2/10.png", "a10/1.png", "b/1.png", "٣.png"]
    assert sorted(tmp_path.rglob("*.png"), key=natural_order) == image_files(tmp_path, left_out)


def test_links_are_followed_once_and_loops_end(tmp_path, left_out):
    png(tmp_path / "disk" / "Ada" / "1.png")
    png(tmp_path / "other.png")
    folder = tmp_path / "set"
    png(folder / "real" / "2.png")
    (folder / "Ada").symlink_to(tmp_path / "disk" / "Ada")
    (folder / "aaa").symlink_to(folder / "real")      # named before the folder itself
    (folder / "real" / "up").symlink_to(folder)       # loops
    (folder / "self").symlink_to(folder / "self")
    (folder / "3.png").symlink_to(tmp_path / "other.png")
    (folder / "gone").symlink_to(tmp_path / "unplugged")
    found = [str(path.relative_to(folder)) for path in image_files(folder, left_out)]
    assert found == ["3.png", "Ada/1.png", "real/2.png"]
    assert reasons(left_out) == ["link to nowhere", "link to nowhere", "met twice", "met twice"]
    with pytest.raises(UserError, match="(gone|self) is a link to .* which does not exist"):
        image_files(folder, LeftOut(strict=True))


def test_hidden_files_and_folders_are_passed_over_and_counted(tmp_path, left_out):
    for name in ("1.png", "._1.png", ".hidden.jpg", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/._1.png", "@eaDir/1.png/SYNO.jpg",
                 ".git/config", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert names(image_files(tmp_path, left_out)) == ["1.png"] and reasons(left_out) == ["hidden"] * 5
    assert names(images_in(tmp_path)) == ["1.png"]


def test_what_seems_to_be_an_image_or_holds_some_is_listed(tmp_path, left_out):
    for name in ("a.heic", "b.SVG", "c.nef", "d.zip", "e.tar.gz", "notes.txt", "readme", "film.mp4"):
        (tmp_path / name).write_bytes(b"text")
    for name in ("nameless", "photo.jpg_large"):
        png(tmp_path / "x.png").rename(tmp_path / name)
    assert image_files(tmp_path, left_out) == []
    for read in (caption_images, person_folders, lambda folder: portraits_in(folder, ["Ada"])):
        with pytest.raises(UserError, match=r"holds no [ip].*left out: 3 x other format"):
            read(tmp_path)
    assert reasons(left_out) == ["archive"] * 2 + ["no image suffix"] * 2 + ["other format"] * 3


def test_a_folder_that_cannot_be_read_is_named(tmp_path, left_out, monkeypatch):
    png(tmp_path / "1.png")
    (tmp_path / "locked").mkdir()
    real = os.listdir
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "listdir", lambda place: (_ for _ in ()).throw(denied) if place.name == "locked" else real(place))
    assert names(image_files(tmp_path, left_out)) == ["1.png"] and reasons(left_out) == ["unreadable folder"]
    with pytest.raises(UserError, match="locked cannot be read .Permission denied."):
        image_files(tmp_path, LeftOut(strict=True))


def test_every_reader_walks_alike(tmp_path, left_out):
    png(tmp_path / "disk" / "Ada" / "1.png")
    (tmp_path / "disk" / "Ada" / "1.txt").write_text("a cat")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "Ada").symlink_to(tmp_path / "disk" / "Ada")
    png(tmp_path / "set" / ".cache" / "Ben" / "1.png")
    folder, path = tmp_path / "set", tmp_path / "set" / "Ada" / "1.png"
    people = {"Ada": type("Person", (), {"name": "Ada", "group": "train", "attributes": "A chef"})}
    assert [source.path for source in read_collection(folder, left_out)] == [path]
    assert [image.source.path for image in caption_images(folder, left_out)] == [path]
    assert [image.source.path for image in identity_images(folder, people, left_out)] == [path]
    assert person_folders(folder, report=left_out) == {"Ada": path.parent} and portraits_in(folder, ["Ada"], left_out) == {"Ada": [path]}
    assert reasons(left_out) == ["hidden"] * 5


def test_pictures_beside_the_folders_of_people_are_listed(tmp_path, left_out):
    for name in ("grid.png", "Ada/1.png", "Ada/old/2.png"):
        png(tmp_path / name)
    assert portraits_in(tmp_path, ["Ada"], left_out) == {"Ada": [tmp_path / "Ada" / "1.png"]}
    assert reasons(left_out) == ["in another folder"] * 2


def test_hidden_members_and_links_of_a_shard_are_listed(tmp_path, left_out):
    png(tmp_path / "x" / "1.png")
    with tarfile.open(tmp_path / "0.TAR", "w") as shard:
        for name in ("./a/1.png", "a/._1.png", "__MACOSX/1.png", "a/2.heic"):
            shard.add(tmp_path / "x" / "1.png", name)
        link = tarfile.TarInfo("a/3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        shard.addfile(link)
    (tmp_path / "x" / "1.png").unlink()
    assert [source.member for source in read_collection(tmp_path, left_out)] == ["./a/1.png"]
    assert reasons(left_out) == ["hidden", "hidden", "link in a shard", "other format"]


# ------------------------------------------------------------------------------------------------------------------ captions

@pytest.mark.parametrize(("name", "text"), [
    ("1.txt", "\r\na cat\r\nanother cat\n"), ("1.json", '{"caption": ["a cat", "another cat"]}'),
    ("metadata.jsonl", '{"file_name": "1.png", "text": "a cat"}\n{"file_name": "1.png", "text": "another cat"}\n'),
    ("metadata.csv", "file_name,text\n1.png,a cat\n1.png,another cat\n"),
    ("metadata.jsonl", '{"file_name": "1.png", "text": ["a cat", "another cat", "a third"]}')])
def test_of_several_captions_the_first_is_taken_and_the_others_are_counted(tmp_path, left_out, name, text):
    png(tmp_path / "1.png")
    (tmp_path / name).write_bytes(text.encode())
    assert [image.caption for image in caption_images(tmp_path, left_out)] == ["a cat"] and reasons(left_out) == ["further captions"]
    assert [image.caption for image in caption_images(tmp_path)] == ["a cat"]  # no mistake, for which training would stop


def test_a_file_that_is_there_is_never_called_missing(tmp_path):
    png(tmp_path / "1.png")
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,a cat\na.heic,a dog\n")
    with pytest.raises(UserError, match="'a.heic' in its entry 2, which exists but"):
        caption_images(tmp_path)


def test_what_was_left_out_is_written_and_goes_with_its_reason(tmp_path, capsys, left_out):
    left_out("hidden", "a is hidden")
    left_out("hidden", "b \udcff is hidden")
    left_out.announce(tmp_path)
    assert "left out: 2 x hidden, such as: a is hidden" in capsys.readouterr().out
    assert (tmp_path / "left_out.csv").read_text().splitlines()[1] == "hidden,a is hidden"
    LeftOut().announce(tmp_path)
    assert not (tmp_path / "left_out.csv").exists() and capsys.readouterr().out == ""


def test_pipes_are_listed_and_never_waited_for(tmp_path, left_out):
    png(tmp_path / "1.png")
    for name in ("2.png", "1.txt", "metadata.csv"):
        os.mkfifo(tmp_path / name)
    assert [source.path.name for source in read_collection(tmp_path, left_out)] == ["1.png"]
    assert reasons(left_out) == ["no file"] * 3
    (tmp_path / "folder.png").mkdir()
    assert names(images_in(tmp_path)) == ["1.png"]


@pytest.mark.parametrize(("name", "text"), [
    ("1.TXT", "a cat"), ("1.caption", "a cat"), ("1.Json", '{"caption": "a cat"}'), ("metadata.tsv", "file_name\ttext\n1.png\ta cat\n"),
    ("Metadata.CSV", "file_name,text\n1.png,a cat\n")])
def test_captions_count_in_any_case_of_their_suffix(tmp_path, name, text):
    png(tmp_path / "1.png")
    (tmp_path / name).write_text(text)
    assert [image.caption for image in caption_images(tmp_path)] == ["a cat"]


@pytest.mark.parametrize("name", ["1.png.txt", "one.txt", "one.caption"])
def test_a_text_of_no_image_is_listed(tmp_path, left_out, name):
    png(tmp_path / "1.png")
    (tmp_path / name).write_text("a cat")
    read_collection(tmp_path, left_out)
    assert reasons(left_out) == ["text of no image"] and name in left_out.rows[0]["what"]


@pytest.mark.parametrize(("name", "text", "taken"), [("1.json", '{"caption": "a dog"}', "a cat"),
                                                     ("metadata.csv", "file_name,text\n1.png,a dog\n", "a dog")])
def test_two_captions_in_two_files_are_counted(tmp_path, left_out, name, text, taken):
    png(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("a cat")
    (tmp_path / name).write_text(text)
    assert caption_images(tmp_path, left_out)[0].caption == taken and reasons(left_out) == ["further captions"]


def test_a_file_name_that_no_system_takes_is_missing(tmp_path, left_out):
    png(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "{"a" * 3000}.png", "text": "x"}}\n')
    read_collection(tmp_path, left_out)
    assert reasons(left_out) == ["image missing"]
