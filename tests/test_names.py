"""One normal form of names: for lists, for folders as systems write them, and for captions in every script."""

import unicodedata

import numpy as np
import pytest

from ldm.data.captions import caption_key
from ldm.data.identities import identity_images, read_people
from ldm.evaluation.gallery import person_folders, portraits_in
from ldm.evaluation.id_acc import load_gallery
from ldm.images import write_image
from ldm.names import NameList, NamesInText, normal_form
from ldm.run_folder import safe_name
from ldm.util import UserError

PEOPLE = ["Ada Stone", "Lupita O'Neil", "Zoë Wood", "Robert Wood Jr.", 'Ann "AC/DC" Stone', "例子 一郎", "Ana-Lena Stone", "Zoe Wood"]


@pytest.mark.parametrize(("name", "spelled"), [
    ("Ada Stone", "ADA  STONE"), ("Ada Stone", "ada_stone"), ("Ada Stone", "Ada\u00a0Stone"), ("Ada Stone", "\ufeffＡｄａ\u3000Stone\t"),
    ("Ada Stone", "Ada\u200b Stone"), ("Lupita O'Neil", "Lupita O\u2019Neil"), ("Lupita O'Neil", "Lupita O\u02bcNeil"),
    ("Lupita O'Neil", "Lupita O\u00b4Neil"), ("Lupita O'Neil", "Lupita O`Neil"), ("Ana-Lena Stone", "Ana\u2013Lena Stone"),
    ("Ana-Lena Stone", "Ana\u2011Lena Stone"), ("Zoë Wood", unicodedata.normalize("NFD", "Zoë Wood")), ("Zoë Wood", "ZOË WOOD"),
    ("Robert Wood Jr.", "Robert Wood Jr"), ("Robert Wood Jr.", "Robert_Wood_Jr."), ('Ann "AC/DC" Stone', "Ann _AC_DC_ Stone"),
    ('Ann "AC/DC" Stone', "Ann AC:DC Stone"), ("例子 一郎", "例子\u3000一郎")])
def test_a_name_is_found_in_every_spelling_and_returned_as_the_list_has_it(name, spelled):
    assert NameList(PEOPLE).find(spelled) == name


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_folder_that_was_made_for_a_name_is_found(name, form):
    assert NameList(PEOPLE).find(unicodedata.normalize(form, safe_name(name))) == name


def test_accents_tell_people_apart_and_other_spellings_do_not():
    assert normal_form("Zoe") != normal_form("Zoë")
    with pytest.raises(UserError, match="people.csv holds 'Ada Stone' and 'ada_stone', two spellings of one name"):
        NameList(["Ada Stone", "Ben Wood", "ada_stone"], "people.csv")


def test_a_folder_form_of_two_people_stands_for_neither():
    assert NameList(["A/B", "A?B"]).find("A B") is None and NameList(["Wood Jr", "Wood Jr."]).find("Wood Jr") == "Wood Jr"


def test_the_nearest_name_is_a_hint():
    assert NameList(PEOPLE, "people.csv").hint("Ada Ston") == " (the nearest name in people.csv is 'Ada Stone')"
    assert NameList(PEOPLE).hint("Quentin") == ""


@pytest.mark.parametrize(("name", "caption"), [
    ("例子一郎", "例子一郎が笑う"), ("例子一郎", "東京の例子 一郎さん"), ("例子 一郎", "東京の例子一郎さん"),
    ("王小明", "昨天王小明在北京"), ("สมชาย ใจดี", "ภาพของสมชาย ใจดีที่บ้าน"), ("สมชาย ใจดี", "ภาพของสมชายใจดี"),
    ("김철수", "김철수가 웃는다"), ("ສົມຊາຍ", "ຮູບສົມຊາຍຢູ່"), ("សុខា", "រូបសុខានៅ"), ("အောင်ဆန်း", "ဓာတ်ပုံအောင်ဆန်းသည်"),
    ("マイケル・ジャクソン", "昔のマイケルジャクソンです"), ("マイケル・ジャクソン", "マイケル＝ジャクソンの歌"),
    ("Ada Stone", "这是Ada Stone在笑"), ("शाहरुख़ ख़ान", "यह शाहरुख़ ख़ान है"), ("Ada Stone", "Ada Stone's car"),
    ("Ada Stone", "ADA STONE!"), ("Ada Stone", "an Ada-Stone-like look"), ("Ada Stone", "a #AdaStone fan"),
    ("Ada Stone", "by @adastone"), ("Ada Stone", "by ＠ada_stone"), ("Ada Stone", "Stone, Ada: a portrait"),
    ("Ada M. Stone", "Stone, Ada M."), ("Ada Stone", "ada\nstone"), ("Ada Stone", "🌟Ada🌟Stone🌟"), ("Pelé", "Pele scores"),
    ("Pele", "PELÉ scores"), ("Lech Wałęsa", "Lech Walesa"), ("Lupita O'Neil", "Lupita O’Neil"),
    ("Lupita O'Neil", "Lupita O&#39;Neil laughs"), ("will.i.am", "will.i.am on stage"), ("P!nk", "P!nk sings"),
    ("Madonna", "a #madonna concert"), ("Beyoncé", "Beyonce\u0301 sings"), ("Иван Петров", "Фото: ИВАН ПЕТРОВ."),
    ("محمد صلاح", "صورة مُحَمَّد صلاح")])
def test_a_caption_that_names_somebody_is_found(name, caption):
    assert NamesInText(["Nobody Else", name]).find(caption) == name


@pytest.mark.parametrize(("name", "caption"), [
    ("Will", "a willing man"), ("Madonna", "madonnas"), ("will.i.am", "William laughs"), ("Ada Stone", "Ada Stonewood"),
    ("Ada Stone", "Ada and a stone"), ("Paris Hilton", "the Hilton Paris"), ("リン", "マリリンの写真"), ("王", "王様の城"),
    ("จา", "จา\u0e34"), ("Pelé", "a pelerine"), ("Ada Stone", "#AdaStoneHouse"), ("कमल", "कमला")])
def test_a_part_of_another_word_names_nobody(name, caption):
    assert NamesInText([name]).find(caption) is None


@pytest.mark.parametrize("texts", [("🎉🎉", "🔥🔥"), ("कि", "की"), ("กิน", "กัน"), ("ம", "மா"), ("a 👍🏻", "a 👍🏿"),
                                   ("cafe", "café"), ("!", "?")])
def test_marks_and_symbols_tell_captions_apart(texts):
    assert len(set(map(caption_key, texts))) == 2


def test_case_punctuation_and_spaces_tell_no_captions_apart():
    assert len(set(map(caption_key, ("A cat, asleep.", "a  CAT asleep", "“a cat” — asleep!", "a_cat\u00a0asleep")))) == 1


SPELLINGS = ["Zoë O'Neil", unicodedata.normalize("NFD", "Zoë O'Neil"), "ZOË_O’NEIL", "zoë\u00a0o\u02bcneil"]


@pytest.fixture
def people(tmp_path):
    """Zoë O'Neil and Ada Stone."""
    (tmp_path / "people.csv").write_text("name,group,attributes\nZoë O'Neil,train,A chef\nAda Stone,train,A pilot\n", encoding="utf-8")
    return read_people(tmp_path / "people.csv")


def images(folder, *names):
    for name in names:
        write_image(folder / name / "1.png", np.zeros((8, 8, 3), np.uint8))
    return folder


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_every_reader_finds_a_person_under_any_spelling_and_returns_that_of_the_list(tmp_path, people, spelled):
    folder = images(tmp_path / "images", spelled)
    assert [image.name for image in identity_images(folder, people)] == ["Zoë O'Neil"]
    assert list(person_folders(folder, people)) == list(portraits_in(folder, list(people))) == ["Zoë O'Neil"]
    np.savez(tmp_path / "gallery.npz", **{spelled: np.ones(3), "Ben": np.ones(3)})
    assert set(load_gallery(tmp_path / "gallery.npz", ["Zoë O'Neil"])) == {"Zoë O'Neil", "Ben"}


def test_who_is_in_no_list_is_named_with_the_nearest_name(tmp_path, people):
    folder = images(tmp_path / "images", "Zoe ONeil")
    np.savez(tmp_path / "gallery.npz", **{"Ada Ston": np.ones(3)})
    for read in (lambda: identity_images(folder, people), lambda: portraits_in(folder, list(people))):
        with pytest.raises(UserError, match="'Zoe ONeil'.* nearest name in the list of people is 'Zoë O'Neil'"):
            read()
    with pytest.raises(UserError, match="no face for 'Ada Stone' .the nearest name in the gallery .* is 'Ada Ston'"):
        load_gallery(tmp_path / "gallery.npz", ["Ada Stone"])


def test_two_folders_of_one_person_are_refused_or_taken_together_with_a_word(tmp_path, people, capsys):
    folder = images(tmp_path / "images", "Ada Stone", "ADA_STONE")
    with pytest.raises(UserError, match="both folders of 'Ada Stone'"):
        portraits_in(folder, list(people))
    assert len(identity_images(folder, people)) == 2
    assert "under the names 'ADA_STONE', 'Ada Stone'; all are used as 'Ada Stone'" in capsys.readouterr().err


def test_two_rows_of_one_person_are_refused_with_both_lines(tmp_path):
    (tmp_path / "people.csv").write_text("name,group,attributes\nAda Stone,train,A\nBen,test,B\nADA  STONE,test,A\n")
    with pytest.raises(UserError, match="'Ada Stone' of line 2 is listed twice, as 'ADA STONE' in line 4"):
        read_people(tmp_path / "people.csv")
