"""Names to erase and to keep: from lists, people.csv and MACE's table, and the samples of S_Reg that name S_keep."""

from pathlib import Path

import pytest

from ldm.data.celebrities import (
    TEMPLATES,
    CelebrityPrompt,
    kept_captions,
    read_celebrity_table,
    read_erased_names,
    read_kept_names,
    refuse_both,
)
from ldm.data.identities import IdentityImage
from ldm.data.images import ImageSource
from ldm.util import UserError
from tests.test_text_files import written

TABLE = ",type,prompt,evaluation_seed\n" + "".join(
    f"{number},{kind},{template.format(name)},{seed}\n" for number, (kind, name, template, seed) in enumerate(
        (kind, name, template, seed) for kind, name in (("erased", "Ada Stone"), ("erased", "Ben Wood"), ("others", "Cleo de la Vance"))
        for template in TEMPLATES for seed in (1, 2)))


def test_the_table_is_read_as_it_is_published(tmp_path):
    path = written(tmp_path, "celebrity.csv", TABLE)
    rows = read_celebrity_table(path)
    assert len(rows) == 30 and rows[3] == CelebrityPrompt("Ada Stone", "A sketch of {}", 2, False) and rows[-1].kept
    assert read_erased_names(path) == (["Ada Stone", "Ben Wood"], 0) and read_kept_names(path) == ["Cleo de la Vance"]


@pytest.mark.parametrize(("name", "content", "kept"), [
    ("keep.txt", "# who may be shown\nCleo Vance\nDora Lane\nCleo  Vance\n", ["Cleo Vance", "Dora Lane"]),
    ("keep.csv", "name\nCleo Vance\n", ["Cleo Vance"]),
    ("people.csv", "name,group,attributes\nAda Stone,train,A pilot\nCleo Vance,keep,\nBen Wood,test,A chef\n", ["Cleo Vance"])])
def test_names_that_may_be_shown_come_from_any_list(tmp_path, name, content, kept):
    assert read_kept_names(written(tmp_path, name, content)) == kept


@pytest.mark.parametrize(("content", "said"), [
    ("name,group,attributes\nAda Stone,train,A pilot\n", "nobody of the group keep"),
    (TABLE.replace("others", "other"), "the type erased or others"),
    (TABLE.replace("A sketch of", "A woodcut of", 1), "line 4: .*A woodcut of Ada Stone"),
    (TABLE.replace("Cleo de la Vance", "Ada Stone"), "Ada Stone both"),
    (TABLE.replace(",2\n", ",two\n", 1), "evaluation_seed")])
def test_a_list_with_a_flaw_is_refused(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        read_kept_names(written(tmp_path, "list.csv", content))


def test_a_name_to_erase_must_not_be_kept_in_any_spelling():
    refuse_both(["Ada Stone"], ["Cleo Vance"], "keep.txt")
    with pytest.raises(UserError, match="'Ada Stone' is to be erased and is also on the list keep.txt"):
        refuse_both(["Ben Wood", "Ada Stone"], ["Cleo Vance", "ada  STONE"], "keep.txt")


def test_samples_of_kept_people_show_them_where_a_picture_does():
    images = [IdentityImage(ImageSource(Path(f"{name} {number}.png")), name, "")
              for name in ("Ada Stone", "Cleo Vance") for number in (1, 2)]
    captions = kept_captions(["Cleo Vance", "Dora Lane"], images, ["{}", "a photo of {}"], 40)
    assert captions == kept_captions(["Cleo Vance", "Dora Lane"], images, ["{}", "a photo of {}"], 40) and len(captions) == 40
    assert {one.caption for one in captions} == {"Cleo Vance", "a photo of Cleo Vance", "Dora Lane", "a photo of Dora Lane"}
    assert {one.source.path.stem for one in captions if "Cleo" in one.caption} == {"Cleo Vance 1", "Cleo Vance 2"}
    assert {one.source.path.stem for one in captions if "Dora" in one.caption} == {image.source.path.stem for image in images}
