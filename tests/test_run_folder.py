"""The output folder: resumes, keeps names apart, and never mixes images of different settings."""

import json

import numpy as np
import pytest

from ldm.evaluation.tables import console_table, markdown_table, write_results
from ldm.images import image_grid, images_in, read_image, write_image
from ldm.run_folder import RunFolder, safe_name, write_arrays
from ldm.util import UserError

SETTINGS = {"model": "1234", "seed": 0, "scale": 7.0, "size": (4, 16, 16)}
RED, BLUE = (np.full((32, 32, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))


def test_the_same_settings_find_the_images_again(tmp_path):
    first = RunFolder(tmp_path, SETTINGS)
    write_image(first.image_path("none", "Ada", 0), RED)
    again = RunFolder(tmp_path, dict(reversed(SETTINGS.items())))
    assert np.array_equal(read_image(again.image_path("none", "Ada", 0)), RED)


@pytest.mark.parametrize("change", [{"seed": 1}, {"scale": 7.5}, {"model": "abcd"}, {"more": True}])
def test_other_settings_are_refused_with_what_differs(tmp_path, change):
    RunFolder(tmp_path, SETTINGS)
    with pytest.raises(UserError, match=f"{next(iter(change))} .*--out_dir.*--no-resume"):
        RunFolder(tmp_path, SETTINGS | change)


def test_no_resume_deletes_the_old_images_and_starts_anew(tmp_path):
    old = RunFolder(tmp_path, SETTINGS).image_path("none", "Ada", 0)
    write_image(old, RED)
    RunFolder(tmp_path, SETTINGS | {"seed": 1}, resume=False)
    assert not old.exists()
    RunFolder(tmp_path, SETTINGS | {"seed": 1})


def test_a_prefix_that_changed_under_its_name_is_refused(tmp_path):
    RunFolder(tmp_path, SETTINGS).add_prefix("apl", "hash-1")
    folder = RunFolder(tmp_path, SETTINGS)
    folder.add_prefix("apl", "hash-1")
    folder.add_prefix("none", None)
    with pytest.raises(UserError, match="hash-1.*hash-2"):
        folder.add_prefix("apl", "hash-2")


@pytest.mark.parametrize("resume", [True, False])
def test_images_that_no_run_of_ours_made_are_neither_used_nor_deleted(tmp_path, resume):
    write_image(tmp_path / "images" / "holiday.png", RED)
    with pytest.raises(UserError, match="without a manifest"):
        RunFolder(tmp_path, SETTINGS, resume=resume)
    assert (tmp_path / "images" / "holiday.png").exists()


def test_a_broken_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not a manifest"):
        RunFolder(tmp_path, SETTINGS)


def test_arguments_stand_beside_the_images_with_the_versions(tmp_path):
    RunFolder(tmp_path, SETTINGS).write_arguments({"seed": 3, "out_dir": tmp_path})
    written = json.loads((tmp_path / "arguments.json").read_text())
    assert written["arguments"] == {"seed": 3, "out_dir": str(tmp_path)} and "numpy" in written["versions"]


@pytest.mark.parametrize("name", ["Ada Lovelace", "Zoë O'Neil-Smith", "李小龙", "J. R. (Bob) Dobbs"])
def test_an_ordinary_name_is_its_own_folder(name):
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\\b", "..", "", "con:", "x" * 300, "𠀀" * 300, "tail. ",
                                  "new\nline", "a*?\"<>|"])
def test_a_strange_name_becomes_one_short_harmless_folder(tmp_path, name):
    made = safe_name(name)
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert len(made.encode()) < 255 and made.strip(". ") == made
    assert not set(made) & set('/\\:*?"<>|\n')


def test_different_names_have_different_folders():
    names = ["a/b", "a\\b", "a:b", "a_b", "x" * 300, "x" * 301, " a", "a"]
    assert len({safe_name(name) for name in names}) == len(names)


def test_a_picture_survives_the_disk(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    write_image(tmp_path / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"no picture"])
def test_a_corrupt_picture_is_named(tmp_path, damage):
    path = tmp_path / "a.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\.png"):
        read_image(path)


def test_picture_files_come_in_natural_order_without_hidden_ones(tmp_path):
    for name in ("10.png", "2.png", "1.JPG", ".3.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["1.JPG", "2.png", "10.png"]


def test_the_grid_shows_every_picture_in_its_cell():
    sheet = image_grid([[RED, BLUE], [BLUE, None]], ["no prefix", "with prefix"], ["Ada Lovelace", "Ben"], cell=32)
    pixels = np.asarray(sheet)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 32 * 32 and (pixels == (0, 0, 255)).all(-1).sum() == 2 * 32 * 32


def test_a_label_stays_above_its_own_column():
    wide, narrow = (image_grid([[RED, BLUE]], [""], [label, ""], cell=64) for label in ("WWWW " * 4, "i i i i"))
    right = np.asarray(wide.crop((wide.width - 64, 0, wide.width, wide.height - 68)))  # above the second column
    assert (right == 255).all() and wide.height > narrow.height


def test_a_grid_with_too_few_labels_is_refused():
    with pytest.raises(ValueError, match="label"):
        image_grid([[RED, BLUE]], ["row"], ["only one"])


ROWS = [{"prefix": "none", "id_acc_mean": 0.5, "n_images": 4},
        {"prefix": "a|b", "id_acc_mean": None, "n_images": 4, "tar": np.float32(1)}]


def test_results_are_the_same_rows_in_json_csv_and_markdown(tmp_path):
    write_results(ROWS, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == [ROWS[0], ROWS[1] | {"tar": 1.0}]
    assert (tmp_path / "results.csv").read_text() == "prefix,id_acc_mean,n_images,tar\nnone,0.5,4,\na|b,,4,1.0\n"
    assert "| none | 0.5000 | 4 | - |" in (tmp_path / "results.md").read_text()


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path):
    write_results([{"fid": float("nan")}], tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == [{"fid": None}]


def test_tables_align_and_escape():
    assert markdown_table(ROWS).splitlines()[1] == "| --- | ---: | ---: | ---: |"
    assert "a\\|b" in markdown_table(ROWS)
    assert console_table(ROWS).splitlines()[1] == "none         0.5000         4       -"
    assert console_table([{key: row.get(key) for key in ("prefix", "tar")} for row in ROWS], []).splitlines()[1] == "none         -"


def test_a_file_of_arrays_takes_any_name(tmp_path):
    names = ["file", "allow_pickle", "arr_0", "a/b", "none", "x.npy"]
    write_arrays(tmp_path / "a.npz", {name: np.full(2, number) for number, name in enumerate(names)})
    with np.load(tmp_path / "a.npz") as arrays:
        assert {name: int(arrays[name][0]) for name in arrays.files} == {name: number for number, name in enumerate(names)}


def test_half_characters_and_line_ends_stop_no_table(tmp_path):
    write_results([{"photo": "caf\udce9.jpg", "name": "a|b\nc"}], tmp_path)
    assert all("caf\\" + "udce9.jpg" in (tmp_path / f"results.{kind}").read_text(encoding="utf-8") for kind in ("csv", "md"))
    assert len((tmp_path / "results.md").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["con", "NUL.txt", "caf\udce9", "..", "a/b", "x" * 300])
def test_a_name_that_no_file_may_have_gets_another(name):
    safe_name(name).encode()
    assert safe_name(name) != name and len(safe_name(name)) < 100
