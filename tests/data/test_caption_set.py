"""S_Reg from every public layout: what real writers wrote, what is left out and counted, what is refused."""

import csv
import importlib.util
import io
import json
import os
import shutil
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_generation
from ldm.data.captions import caption_images
from ldm.data.images import load_image
from ldm.images import read_image
from ldm.left_out import LeftOut
from tests.refusals import refusal

FIXTURES = Path(__file__).parents[1] / "fixtures"
PEOPLE = "name,group,attributes\nZoë O'Neil,test,A female chef\nBen Wood,train,A male chef\n"
needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="reads parquet, which needs pyarrow")


def make(folder, out_dir, *flags, people=PEOPLE):
    """Runs the command; returns what it kept, caption -> CaptionImage, and what it left out, reason -> count."""
    (folder.parent / "people.csv").write_text(people, encoding="utf-8")
    dataset_generation.main(["captions", "--preset", "mini", "--images", str(folder), "--out_dir", str(out_dir), "--people",
                             str(folder.parent / "people.csv"), "--min_size", "8", *map(str, flags)])
    with (out_dir / "dropped.csv").open(encoding="utf-8", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    return {image.caption: image for image in caption_images(out_dir)}, {reason: reasons.count(reason) for reason in reasons}


def sentence(capsys, folder, out_dir, *flags):
    return refusal(capsys, make, folder, out_dir, *flags)


def image(path, *, size=(20, 16), color=0, suffix="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 100, 200)).save(path, suffix)
    return path


def captioned(folder, **captions):
    """Pictures <stem>.png with <stem>.txt."""
    for number, (stem, caption) in enumerate(captions.items()):
        image(folder / f"{stem}.png", color=number)
        (folder / f"{stem}.txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return folder


def shard(path, members, *, cut=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    if cut:
        path.write_bytes(path.read_bytes()[:cut])


def png(color=0):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(color).integers(0, 255, (16, 20, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


# ------------------------------------------------------------------------------------------------- layouts of real writers

@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_what_img2dataset_wrote_is_read(tmp_path, layout):
    shutil.copytree(FIXTURES / "img2dataset" / layout, tmp_path / "in")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == {"a red ball", "ein grüner Ball"} and left_out == {"no caption": 1}
    red, green = (load_image(kept[caption].source, 8)[:, 4, 4] for caption in ("a red ball", "ein grüner Ball"))
    assert red[0] > 0 > red[1] and green[1] > 0 > green[0]


@needs_pyarrow
def test_the_parquet_tables_of_img2dataset_are_read(tmp_path):
    shutil.copytree(FIXTURES / "img2dataset" / "parquet", tmp_path / "in")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == {"a red ball", "ein grüner Ball"} and left_out == {"image missing": 2, "no caption": 1}
    assert load_image(kept["a red ball"].source, 8)[0, 4, 4] > 0


@needs_pyarrow
def test_the_parquet_tables_of_hugging_face_are_read(tmp_path):
    shutil.copytree(FIXTURES / "datasets", tmp_path / "in")
    (tmp_path / "in" / "train-broken.parquet").write_bytes(b"PAR1 cut")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == {"a red ball", "ein grüner Ball", "a blue ball"} and left_out == {"damaged table": 1}


@needs_pyarrow
def test_tables_with_other_text_or_without_images_are_counted(tmp_path):
    from pyarrow import array, binary, parquet, string, table

    (tmp_path / "in").mkdir()
    captions = array([b"good", b"\xff\xfe"], binary()).view(string())
    parquet.write_table(table({"jpg": [png(1), png(2)], "caption": captions}), tmp_path / "in" / "a.parquet")
    parquet.write_table(table({"url": ["x"]}), tmp_path / "in" / "b.parquet")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == {"good"} and left_out == {"text not UTF-8": 1, "table without images": 1}


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, capsys, monkeypatch):
    shutil.copytree(FIXTURES / "datasets", tmp_path / "in")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in sentence(capsys, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv"])
def test_imagefolder_is_read(tmp_path, kind):
    image(tmp_path / "in" / "train" / "1.png")
    text = '{"file_name": "1.png", "text": "a\u2028b"}\n' if kind == "metadata.jsonl" else 'file_name,text\n1.png,"a\u2028b"\n'
    (tmp_path / "in" / "train" / kind).write_text(text, encoding="utf-8-sig")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert list(kept) == ["a\u2028b"] and left_out == {}


def coco(folder, content):
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "captions.json"


def test_coco_gives_the_first_of_several_captions(tmp_path):
    for number in (9, 25, 42):
        image(tmp_path / "val2014" / f"COCO_val2014_{number:012d}.png", color=number)
    captions = coco(tmp_path, {
        "images": [{"id": number, "file_name": f"COCO_val2014_{number:012d}.png"} for number in (9, 25, 33, 42)],
        "annotations": [{"id": 8, "image_id": 9, "caption": "a later one"}, {"id": 3, "image_id": 9, "caption": "a cat \n"},
                        {"id": 4, "image_id": 25, "caption": "a dog"}, {"id": 5, "image_id": 33, "caption": "a cow"}]})
    kept, left_out = make(tmp_path / "val2014", tmp_path / "out", "--captions", captions)
    assert set(kept) == {"a cat", "a dog"} and left_out == {"image missing": 1, "no caption": 1, "further captions": 1}


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": [{"id": 1}], "annotations": []}, {"images": [], "annotations": [5]}])
def test_another_json_is_no_coco_file(tmp_path, capsys, content):
    image(tmp_path / "in" / "1.png")
    assert "not a COCO captions file" in sentence(capsys, tmp_path / "in", tmp_path / "out", "--captions", coco(tmp_path, content))


def test_coco_never_reads_beside_its_folder(tmp_path, capsys):
    image(tmp_path / "in" / "1.png")
    image(tmp_path / "secret.png")
    captions = coco(tmp_path, {"images": [{"id": 1, "file_name": "../secret.png"}],
                               "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]})
    assert "none of the 1 images" in sentence(capsys, tmp_path / "in", tmp_path / "out", "--captions", captions)


@pytest.mark.parametrize(("first", "there", "expected"), [
    (0, [0, 1, 2], ["a", "b", "c"]), (1, [1, 2, 3], ["a", "b", "c"]), (0, [0, 2], ["a", "c"]), (1, [2, 3], ["b", "c"])])
def test_numbered_images_belong_to_lines(tmp_path, first, there, expected):
    for number in there:
        image(tmp_path / "in" / f"laion_{number:05d}.png", color=number)
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    kept, _ = make(tmp_path / "in", tmp_path / "out", "--captions", tmp_path / "prompts.txt")
    assert sorted(kept) == expected
    assert all(load_image(kept[caption].source, 8)[0, 0, 0] == pytest.approx((first + "abc".index(caption)) / 127.5 - 1, abs=1e-6)
               for caption in kept)


@pytest.mark.parametrize("there", [[1, 2], [0, 3], [5, 6, 7]])
def test_images_whose_line_is_uncertain_are_refused(tmp_path, capsys, there):
    for number in there:
        image(tmp_path / "in" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    said = sentence(capsys, tmp_path / "in", tmp_path / "out", "--captions", tmp_path / "prompts.txt")
    assert "lines cannot be matched to images" in said


def test_two_images_of_one_number_are_left_out(tmp_path):
    for name in ("0.png", "00.png", "1.png", "x.png"):
        image(tmp_path / "in" / name)
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    kept, left_out = make(tmp_path / "in", tmp_path / "out", "--captions", tmp_path / "prompts.txt")
    assert list(kept) == ["b"] and left_out == {"two images of one number": 1, "image without a number": 1}


# ---------------------------------------------------------------------------------------------------------------- filters

def test_captions_that_name_somebody_are_left_out_and_counted(tmp_path):
    folder = captioned(tmp_path / "in", a="Chef ZOE O’NEIL at work", b="Ben-Wood's kitchen", c="ben woodworking", d="a chef", e="A  chef!")
    kept, left_out = make(folder, tmp_path / "out")
    assert set(kept) == {"ben woodworking", "a chef"}
    assert left_out == {"names a person of the test group": 1, "names a person of the train group": 1, "duplicate caption": 1}


def test_small_corrupt_and_strange_images_are_left_out_and_counted(tmp_path):
    folder = captioned(tmp_path / "in", good="good", cut="cut", small="small", gif="gif", bomb="bomb", script="script")
    (folder / "cut.png").write_bytes(png(3)[:200])
    image(folder / "small.png", size=(7, 100))
    image(folder / "gif.png", suffix="GIF")
    image(folder / "bomb.png", suffix="BMP")
    content = (folder / "bomb.png").read_bytes()
    (folder / "bomb.png").write_bytes(content[:18] + struct.pack("<ii", 9000, 9000) + content[26:])  # width and height
    (folder / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    kept, left_out = make(folder, tmp_path / "out")
    assert set(kept) == {"good", "gif"} and left_out == {"corrupt image": 2, "too small": 1, "too large": 1}
    assert kept["gif"].source.path.suffix == ".gif"


def test_a_image_without_or_with_unreadable_caption_is_left_out_and_counted(tmp_path):
    folder = captioned(tmp_path / "in", good="good", empty="  ", latin=b"caf\xe9", long=b"x" * (2**20 + 1), json="json")
    image(folder / "none.png")
    (folder / "json.json").write_text("{" + "[" * 100_000)
    image(folder / "half.png")
    (folder / "half.json").write_text('{"caption": "half a character \\ud83d"}')
    kept, left_out = make(folder, tmp_path / "out")
    assert set(kept) == {"good"}
    assert left_out == {"no caption": 2, "text not UTF-8": 1, "text too long": 1, "unreadable metadata": 2}


def test_two_images_to_which_one_text_could_belong_are_left_out(tmp_path):
    folder = captioned(tmp_path / "in", a="a", b="b")
    image(folder / "a.jpg", suffix="JPEG")
    shard(folder / "0.tar", [("c.png", png(1)), ("c.jpg", png(2)), ("c.txt", b"c"), ("d.png", png(3)), ("d.txt", b"d")])
    kept, left_out = make(folder, tmp_path / "out")
    assert set(kept) == {"b", "d"} and left_out == {"two images of one stem": 2}


@pytest.mark.parametrize("cut", [512 + 100, 512 + 1536 + 512 + 512 + 512 + 200, 512 + 1536 + 512 + 512])
def test_a_truncated_shard_gives_what_is_whole(tmp_path, cut):
    assert 1024 < len(png(1)) <= 1536 and 1024 < len(png(2)) <= 1536
    shard(tmp_path / "in" / "0.tar", [("1.png", png(1)), ("1.txt", b"one"), ("2.png", png(2)), ("2.txt", b"two")], cut=cut)
    captioned(tmp_path / "in", other="other")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == ({"other"} if cut == 612 else {"one", "other"}) and left_out == {"damaged shard": 1}


def test_a_shard_with_a_broken_header_in_its_middle_is_not_taken_for_whole(tmp_path):
    shard(tmp_path / "in" / "0.tar", [("1.png", png(1)), ("1.txt", b"one"), ("2.png", png(2)), ("2.txt", b"two")])
    content = bytearray((tmp_path / "in" / "0.tar").read_bytes())
    content[512 + 1536 + 1024:512 + 1536 + 1024 + 100] = b"\xff" * 100
    (tmp_path / "in" / "0.tar").write_bytes(content)
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == {"one"} and left_out == {"damaged shard": 1}


def test_nothing_left_is_refused_with_the_counts(tmp_path, capsys):
    said = sentence(capsys, captioned(tmp_path / "in", a="Ben Wood", b=" "), tmp_path / "out")
    assert "no image is left" in said and "1 x no caption" in said
    assert (tmp_path / "out" / "dropped.csv").exists()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.md").touch()
    assert "no images" in sentence(capsys, tmp_path / "none", tmp_path / "out2")


# ------------------------------------------------------------------------------------------------------- resume and folder

def test_images_are_copied_byte_for_byte_with_where_they_come_from(tmp_path):
    folder = captioned(tmp_path / "in", a="a")
    kept, _ = make(folder, tmp_path / "out")
    assert kept["a"].source.read() == (folder / "a.png").read_bytes()
    row = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())
    assert (row["text"], row["source"]) == ("a", "a.png")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["min_size"] == 8


def test_a_killed_run_goes_on_and_copies_nothing_twice(tmp_path, monkeypatch):
    folder = captioned(tmp_path / "in", a="a", b="b", c="c")
    import ldm.data.captions as module
    copied, real = [], module._copy

    def stopping(candidate, *rest):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(candidate.origin)
        return real(candidate, *rest)

    monkeypatch.setattr(module, "_copy", stopping)
    with pytest.raises(SystemExit) as stopped:
        make(folder, tmp_path / "out")
    assert stopped.value.code == 130 and not (tmp_path / "out" / "metadata.jsonl").exists()
    monkeypatch.setattr(module, "_copy", lambda candidate, *rest: copied.append(candidate.origin) or real(candidate, *rest))
    kept, _ = make(folder, tmp_path / "out")
    assert set(kept) == {"a", "b", "c"} and copied == ["a.png", "b.png", "c.png"]


def test_a_caption_that_changes_takes_its_image_along(tmp_path):
    folder = captioned(tmp_path / "in", a="a", b="b")
    make(folder, tmp_path / "out")
    (folder / "a.txt").write_text("Ben Wood")
    captioned(folder, c="c")
    kept, _ = make(folder, tmp_path / "out")
    assert set(kept) == {"b", "c"} and len(list((tmp_path / "out" / "images").iterdir())) == 2
    kept, _ = make(folder, tmp_path / "out", "--max_images", 1)
    assert set(kept) == {"b"}


@pytest.mark.parametrize("layout", ["files", "shard"])
def test_another_download_under_the_same_names_replaces_the_images(tmp_path, layout):
    folder = tmp_path / "in"
    for color, caption in ((1, "a"), (2, "b")):
        if layout == "files":
            image(folder / "1.png", color=color)
            (folder / "1.txt").write_text(caption)
        else:
            shard(folder / "0.tar", [("1.png", png(color)), ("1.txt", caption.encode())])
        changed = next(path for path in folder.iterdir() if path.suffix in (".png", ".tar"))
        os.utime(changed, ns=(color, color))
        kept, _ = make(folder, tmp_path / "out")
        assert list(kept) == [caption] and len(list((tmp_path / "out" / "images").iterdir())) == 1
        assert kept[caption].source.read() == (changed.read_bytes() if layout == "files" else png(color))


def test_a_image_that_is_a_link_to_nowhere_is_left_out(tmp_path):
    folder = captioned(tmp_path / "in", a="a", b="b")
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("none.png")
    kept, left_out = make(folder, tmp_path / "out")
    assert set(kept) == {"a"} and left_out == {"corrupt image": 1}


def test_the_source_may_move_but_another_one_is_refused(tmp_path, capsys, monkeypatch):
    folder = captioned(tmp_path / "in", a="a", b="b")
    make(folder, tmp_path / "out")
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
    folder = folder.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for place in (folder, Path("moved"), Path("link")):
        make(place, tmp_path / "out")
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()} == there
    other = captioned(tmp_path / "other", c="c")
    assert "holds images of another source, such as a.png" in sentence(capsys, other, tmp_path / "out")
    assert {image.caption for image in caption_images(tmp_path / "out", LeftOut())} >= {"a", "b"}
    assert set(make(other, tmp_path / "out", "--no-resume")[0]) == {"c"}


def test_a_photo_of_a_phone_is_copied_as_it_is_and_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = captioned(tmp_path / "in", a="a")
    Image.new("RGB", (40, 20)).save(folder / "a.png", exif=exif)
    kept, _ = make(folder, tmp_path / "out")
    assert kept["a"].source.read() == (folder / "a.png").read_bytes() and read_image(kept["a"].source.path).shape == (40, 20, 3)


@needs_pyarrow
def test_of_a_list_of_captions_in_a_table_the_first_is_taken(tmp_path):
    from pyarrow import parquet, table

    (tmp_path / "in").mkdir()
    parquet.write_table(table({"image": [{"bytes": png(1)}], "caption": [["a cat", "another cat"]]}), tmp_path / "in" / "a.parquet")
    kept, left_out = make(tmp_path / "in", tmp_path / "out")
    assert set(kept) == {"a cat"} and left_out == {"further captions": 1}


def test_a_image_that_coco_does_not_name_is_counted(tmp_path):
    for number in (1, 2):
        image(tmp_path / "in" / f"{number}.png", color=number)
    captions = coco(tmp_path, {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]})
    kept, left_out = make(tmp_path / "in", tmp_path / "out", "--captions", captions)
    assert set(kept) == {"a cat"} and left_out == {"not in the captions": 1}


def test_an_image_of_too_many_pixels_for_pillow_is_too_large(tmp_path):
    folder = captioned(tmp_path / "in", good="good", bomb="bomb")
    image(folder / "bomb.png", suffix="BMP")
    content = (folder / "bomb.png").read_bytes()
    (folder / "bomb.png").write_bytes(content[:18] + struct.pack("<ii", 20_000, 20_000) + content[26:])
    assert make(folder, tmp_path / "out")[1] == {"too large": 1}


def test_other_filters_are_refused_for_a_folder_that_is_there(tmp_path, capsys):
    folder = captioned(tmp_path / "in", a="a")
    make(folder, tmp_path / "out")
    assert "min_size" in sentence(capsys, folder, tmp_path / "out", "--min_size", 9)
    make(folder, tmp_path / "out", "--min_size", 9, "--no-resume")


def test_the_output_is_never_its_own_input(tmp_path, capsys):
    folder = captioned(tmp_path / "in", a="a")
    assert "lies in --images" in sentence(capsys, folder, folder / "out")


@pytest.mark.parametrize(("name", "table"), [
    ("c.csv", 'file_name,text\n00000.png,zero\n00001.png,"one, too"\n00002.png,two, lost\n00003.png,"a\nb"\n'),
    ("c.tsv", "text\tfile_name\nzero\t00000.png\none, too\t00001.png\ntwo\tlost\t00002.png\n\"a\nb\"\t00003.png\n"),
    ("c.txt", "file_name;caption\n00000.png;zero\n00001.png;one, too\n00002.png;two; lost\n00003.png;\"a\nb\"\n"),
    ("c.jsonl", '{"file_name": "00000.png", "text": ["zero", "0"]}\n{"file_name": "00001.png", "text": "one, too"}\n'
                '{"file_name": "00002.png", "text": "half \\ud83d"}\n{"file_name": "00003.png", "text": "a\\nb"}\n')])
def test_a_table_of_captions_is_read_by_its_columns_and_shifts_nothing(tmp_path, name, table):
    for number in range(4):
        image(tmp_path / f"in/{number:05d}.png", color=50 * number)
    (tmp_path / name).write_text(table, encoding="utf-8")
    kept, left_out = make(tmp_path / "in", tmp_path / "out", "--captions", tmp_path / name)
    assert set(kept) == {"zero", "one, too", "a\nb"} and load_image(kept["one, too"].source, 8)[0].mean() == pytest.approx(50 / 127.5 - 1)
    assert left_out["unreadable metadata"] == 1 and left_out["not in the captions"] == 1


def test_a_header_is_no_caption_of_the_first_image_and_half_a_character_stops_nothing(tmp_path):
    for number in (1, 2):
        image(tmp_path / f"in/{number}.png", color=100 * number)
    (tmp_path / "lines.txt").write_text("caption\none\ntwo\n")
    kept, _ = make(tmp_path / "in", tmp_path / "lines", "--captions", tmp_path / "lines.txt")
    assert load_image(kept["one"].source, 8)[0].mean() == pytest.approx(100 / 127.5 - 1, abs=0.01)
    captions = coco(tmp_path, {"images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2)], "annotations": [
        {"id": 1, "image_id": 1, "caption": "half \ud83d a face"}, {"id": 2, "image_id": 2, "caption": "whole"}]})
    assert make(tmp_path / "in", tmp_path / "coco", "--captions", captions) == (
        {"whole": kept_one(tmp_path / "coco")}, {"unreadable metadata": 1, "no caption": 1})


def kept_one(folder):
    (image,) = caption_images(folder)
    return image
