"""One reader of texts and tables: right, or refused with file, line and reason; the same whatever program has written them."""

import codecs
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from args.test_fid_clip_score_args import parse_test_fid_clip_score_args
from ldm.data.attribute_sentences import read_names
from ldm.data.benchmarks import read_benchmark, read_templates
from ldm.data.captions import caption_images
from ldm.data.identities import read_people
from ldm.images import write_image
from ldm.text_files import read_text, rows_of
from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = 'name,group,attributes\nAda Example,train,"A female White singer, long face"\nBo Example,test,"A male Black actor, beard"\n'


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", [
    PEOPLE, PEOPLE.replace("\n", "\r\n"), PEOPLE.replace("\n", "\r"), codecs.BOM_UTF8.decode() + PEOPLE, PEOPLE.encode("utf-16"),
    codecs.BOM_UTF16_BE + PEOPLE.encode("utf-16-be"), "\n\n" + PEOPLE.rstrip(), PEOPLE.replace("\n", "\n\n"), PEOPLE + ",,\n  , ,\n",
    PEOPLE.replace("name,group,attributes", "Name, GROUP ,Attributes"), PEOPLE.replace("train", " Train "),
    PEOPLE.replace("\n", ",,\n"), 'name\tgroup\tattributes\nAda Example\ttrain\tA female White singer, long face\n'
    'Bo Example\ttest\tA male Black actor, beard\n', "name;group;attributes;born\nAda Example;train;A female White singer, long face;1\n"
    "Bo Example;test;A male Black actor, beard;\n", '{"name": "Ada Example", "group": "train", "attributes": "A female White singer, '
    'long face", "exif": "\\ud83d"}\n\n{"Name": "Bo Example", "group": "test", "attributes": "A male Black actor, beard", "born": null}\n'])
@pytest.mark.parametrize("name", ["people.csv", "PEOPLE.CSV", "people"])
def test_every_form_of_a_list_of_people_is_the_same(tmp_path, content, name):
    people = read_people(written(tmp_path, name, content))
    assert [(one.name, one.group, one.attributes) for one in people.values()] == [
        ("Ada Example", "train", "A female White singer, long face"), ("Bo Example", "test", "A male Black actor, beard")]


@pytest.mark.parametrize(("rows", "words"), [
    ("Ada,train,A female White singer, long face", "line 2, has 4 fields where the header has 3"),
    ("Ada,train", "line 2, has 2 fields where the header has 3"),
    ('Ada,train,"A female White singer, long face\nBo,test,"A male Black actor"', "line 2, is not valid CSV"),
    ('Ada,train,"A female, long face\nBo,test,A male, beard"\nCy,train,x', "line 2, has a text that runs over lines up to line 3"),
    ('Bo,test,x\nAda,train,"never closed', "line 3, is not valid CSV"),
    ('"Weird" Al,train,x', "line 2, is not valid CSV"),
    ("Ada,train,x\n\nada ,test,y", "'Ada' of line 2 is listed twice, as 'ada' in line 4"),
    ("Ada,trian,x", "line 2, puts 'Ada' into the group 'trian'"), (",train,x", "line 2: the name is empty")])
def test_a_damaged_row_is_refused_with_its_line(tmp_path, rows, words):
    with pytest.raises(UserError) as error:
        read_people(written(tmp_path, "people.csv", f"name,group,attributes\n{rows}\n"))
    assert str(tmp_path / "people.csv") in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(("content", "words"), [
    ("name,group,atributes\nAda,train,x\n", "no attributes ('atributes' may be meant so)"), ("", "is empty"),
    ("name,group,attributes\n", "has a header and no row; add a row"),
    ("Ada Example,train,x\n", "no name, group, attributes"), ("name,name,group,attributes\n", "the column 'name' twice"),
    (b"PK\x03\x04sheet", "an Excel workbook"), (b"\x1f\x8b\x08", "compressed"), (b"name,gr\0up", "zero bytes"), (b"n\xe4me", "not UTF-8"),
    ('{"name": "Ada",\n', "line 1, is not valid JSON"),
    ('{"name": "half \\ud83d", "group": "train", "attributes": "x"}', "line 1, has half"),
    ('{"name": "Ada"}\n[1]\n', "line 1, has no 'group'")])
def test_what_is_no_such_table_is_named(tmp_path, content, words):
    with pytest.raises(UserError) as error:
        read_people(written(tmp_path, "people.csv", content))
    assert "people.csv" in str(error.value) and words in str(error.value)


def test_a_flaw_that_is_reported_leaves_out_its_row_alone():
    flaws = []
    table = 'file_name,text\na.jpg,one\nb.jpg,two, more\nc.jpg,"runs\nover lines"\nd.jpg,"swallows\ne.jpg,""x"\nf.jpg,three\n'
    rows = list(rows_of(table, "m.csv", ["file_name"], ["text"], multiline=True, on_error=flaws.append))
    assert [(row.line, row.fields["file_name"], row.fields["text"]) for row in rows] == [
        (2, "a.jpg", "one"), (4, "c.jpg", "runs\nover lines"), (8, "f.jpg", "three")]
    assert ["line 3," in flaws[0], "line 6," in flaws[1], len(flaws)] == [True, True, 2]


@pytest.mark.parametrize(("name", "content"), [
    ("parti.tsv", "Prompt\tCategory\tChallenge\na cat, on a mat\tAnimals\tBasic\na red bus\tVehicles\tBasic\n"),
    ("parti.txt", "Prompt\tCategory\tChallenge\na cat, on a mat\tAnimals\tBasic\na red bus\tVehicles\tBasic\n"),
    ("p.csv", 'case_number;prompt;seed\n1;a cat, on a mat;7\n2;a red bus;8\n'), ("p.txt", "prompt\na cat, on a mat\na red bus\n"),
    ("p.csv", 'prompt\n"a cat, on a mat"\na red bus\n'), ("fd", '{"caption": "a cat, on a mat"}\n{"caption": "a red bus"}\n'),
    ("fd", '[\n "a cat, on a mat", {"text": "a red bus"}]'), ("p.txt", "a cat, on a mat\r\n\r\na red bus"),
    ("fd", '{\n "annotations": [{"image_id": 1, "caption": "a cat, on a mat"}, {"image_id": 2, "caption": "a red bus"}]}')])
def test_no_header_is_a_prompt_and_no_prompt_is_shortened(tmp_path, name, content):
    assert read_benchmark([written(tmp_path, name, content)], None) == [("a cat, on a mat", 0), ("a red bus", 0)]


@pytest.mark.parametrize("content", ["prompt\na cat, on a mat\na dog, in a park\n", "id,prompt\n1,a\n2\n", 'a,b\n1,2\n3,4\n',
                                     "prompt\n\"a\nb\n"])
def test_a_table_of_prompts_that_does_not_fit_its_header_is_refused(tmp_path, content):
    with pytest.raises(UserError, match="p.csv"):
        read_benchmark([written(tmp_path, "p.csv", content)], None)


def test_names_are_lines_or_a_column(tmp_path):
    wanted = (["Ada Example", "Sammy Davis, Jr."], 1)
    for content in ("Ada Example\n# others\nSammy  Davis, Jr.\nada example\n", "Name\nAda Example\nSammy Davis, Jr.\nAda Example\n",
                    'name,born\nAda Example,1\n"Sammy Davis, Jr.",2\nAda Example,1\n'):
        assert read_names(written(tmp_path, "names.txt", content)) == wanted


def test_captions_of_a_table_are_whole_or_refused(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    written(tmp_path, "metadata.csv", "file_name,text\na.png,a cat, on a mat\n")
    with pytest.raises(UserError, match=r"metadata.csv, line 2, has 3 fields"):
        caption_images(tmp_path)
    written(tmp_path, "metadata.csv", 'file_name,text,width\na.png,"a cat,\non a mat",3\n')
    assert [image.caption for image in caption_images(tmp_path)] == ["a cat,\non a mat"]


def test_a_pipe_is_read_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("APL_PIPES", "{}")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a cat\na dog\n",))
    writer.start()
    first, second = (parse_test_fid_clip_score_args(["--preset", "mini", "--half", "non_id", "--benchmark", str(tmp_path / "pipe")])
                     for _ in range(2))
    writer.join()
    assert first.benchmark == second.benchmark != [tmp_path / "pipe"]
    assert [read_text(path) for path in first.benchmark] == ["a cat\na dog\n"]


def test_a_pipe_in_place_of_a_checkpoint_is_named(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SystemExit):
        parse_test_fid_clip_score_args(["--preset", "mini", "--ckpt_path", str(tmp_path / "pipe")])
    assert f"{tmp_path / 'pipe'} is a pipe" in capsys.readouterr().err


def test_names_come_from_standard_input_and_a_terminal_without_letters_is_no_reason_to_stop(tmp_path):
    command = [sys.executable, "dataset_generation.py", "attributes", "--names", "/dev/stdin", "--out_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, input="Beyonc\u00e9 Example\n".encode(), capture_output=True, timeout=120,
                          env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout.decode("ascii").rstrip().endswith("Beyonc\\xe9 Example")


@pytest.mark.parametrize(("content", "words"), [
    ("<!DOCTYPE html>\n<p>404", "an HTML page"), ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ("1,a cat\n2,a dog\n", "without a header"), ("1.jpg\ta cat\n2.jpg\ta dog\n", "without a header"),
    ("1.png: a cat\n2.png: a dog\n", "without a header"), ("a.jpg#0\ta cat\na.jpg#1\ta dog\n", "without a header")])
def test_a_page_a_pointer_and_rows_without_a_header_are_no_prompts(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_benchmark([written(tmp_path, "prompts.txt", content)], None)


@pytest.mark.parametrize(("name", "content"), [
    ("prompts.txt", "Prompts\na cat\na dog\n"), ("prompts.txt", 'id|caption\n1|a cat\n2|a dog\n'),
    ("prompts.txt", '"caption"\n"a cat"\n"a dog"\n'), ("prompts.json", '{"text": "a cat"}\n{"text": "a dog"}\n'),
    ("prompts.json", '["a cat", "a dog"]'), ("prompts.txt", '[{"caption": "a cat"},\n {"text": "a dog"}]')])
def test_one_column_bars_and_json_are_read_by_content(tmp_path, name, content):
    assert read_benchmark([written(tmp_path, name, content)], None) == [("a cat", 0), ("a dog", 0)]


@pytest.mark.parametrize(("row", "words"), [
    ('{"name": "Ada", "name": "Bo", "group": "test", "attributes": ""}', "'name' is there twice"),
    ('{"name": "Ada", "Name": "Bo", "group": "test", "attributes": ""}', "'name' twice"),
    ('{"name": "Ada", "group": "test", "attribute": ""}', "line 1, has no 'attributes'"),
    ('{"name": "Ada", "group": "test", "attributes": ["A female"]}', "no text as 'attributes'"),
    ('{"name": "Ada\\u0000", "group": "test", "attributes": ""}', "a zero byte"), ('[{"name": "Ada"}]', "entry 1, has no 'group'")])
def test_a_row_of_json_that_is_not_whole_is_refused(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        read_people(written(tmp_path, "people.jsonl", row))


def test_people_of_a_json_list_and_of_joined_files_have_clean_names(tmp_path):
    listed = '[{"name": "Ada\\nExample", "group": "train", "attributes": null}]'
    joined = "\ufeff\ufeffname,group,attributes\n\ufeffAda\u00a0 Example,train,\n"
    for content in (listed, joined):
        assert list(read_people(written(tmp_path, "people", content))) == ["Ada Example"]


@pytest.mark.parametrize("name", ["1. Ada Stone", "- Ada Stone", "\u2022 Ada Stone", '"Ada Stone"', "'Ada Stone',", '["Ada Stone",', "---",
                                  "\u200b"])
def test_a_line_that_is_no_bare_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="write the bare name"):
        read_names(written(tmp_path, "names.txt", f"Bo Example\n{name}\n"))


def test_names_that_look_like_marks_are_names(tmp_path):
    names = ["50 Cent", '"Weird Al" Yankovic', "-M-", "3 Doors", "2.5 Men"]
    assert read_names(written(tmp_path, "names.txt", "\n".join(names)))[0] == names
    assert read_names(written(tmp_path, "names.json", '["50 Cent", "Ada"]'))[0] == ["50 Cent", "Ada"]


@pytest.mark.parametrize("content", ["template\nan {}\n", "id,template\n1,an {}\n", '["an {}"]', "an {}"])
def test_templates_are_lines_a_column_or_a_list(tmp_path, content):
    assert read_templates(written(tmp_path, "templates", content)) == ["an {}"]
