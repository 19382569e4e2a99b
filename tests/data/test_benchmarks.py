"""Prompts of a benchmark: every form gives the same list, repeats have numbers, a wrong file is named."""

import json

import pytest

from ldm.data.benchmarks import read_benchmark
from ldm.util import UserError

PROMPTS = ["a red boat", "Zoë's \"two\" cats"]
FORMS = {
    "txt": "a red boat\n\n  Zoë's \"two\" cats \n",
    "csv": "image_id,prompt,evaluation_seed\n1,a red boat,7\n2,\"Zoë's \"\"two\"\" cats\",8\n",
    "jsonl": '{"file_name": "1.png", "text": "a red boat"}\n{"text": "Zo\\u00eb\'s \\"two\\" cats"}\n',
    "json": json.dumps({"images": [], "annotations": [
        {"image_id": 9, "id": 1, "caption": "a red boat"}, {"image_id": 9, "id": 2, "caption": "a second caption of image 9"},
        {"image_id": 3, "id": 3, "caption": "Zoë's \"two\"\ncats"}]}),
    "list.json": json.dumps(PROMPTS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_prompts(tmp_path, form):
    path = tmp_path / f"prompts.{form}"
    path.write_text(FORMS[form], encoding="utf-8")
    assert read_benchmark([path], 10) == [(prompt, 0) for prompt in PROMPTS]


def test_a_repeated_prompt_has_its_own_number_and_only_the_first_count(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\na dog\nA cat\na cat\na cow\n")
    assert read_benchmark([tmp_path / "a.txt"], 4) == [("a cat", 0), ("a dog", 0), ("A cat", 1), ("a cat", 2)]


def test_several_files_take_turns(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    (tmp_path / "b.txt").write_text("a\nb\n")
    assert [prompt for prompt, _ in read_benchmark([tmp_path / "a.txt", tmp_path / "b.txt"], 9)] == ["1", "a", "2", "b", "3"]


@pytest.mark.parametrize(("name", "content"), [
    ("a.json", b"{"), ("b.json", b'{"images": []}'), ("c.json", b"[{\"name\": \"x\"}]"), ("d.csv", b"name\nx\ny\n"),
    ("e.txt", b"\xff\xfe\n\x00"), ("f.jsonl", b'[1]\n'), ("g.txt", b"only one\n"), ("h.txt", b""),
    ("deep.json", b"[" * 200_000), ("deep.jsonl", b"[" * 200_000)])
def test_a_file_without_prompts_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read_benchmark([tmp_path / name], 9)


@pytest.mark.parametrize(("name", "content"), [
    ("a.json", r'["a cat", "half \ud83d a face"]'), ("b.jsonl", '{"text": "a cat"}\n' r'{"text": "half \ud83d a face"}')])
def test_half_a_character_in_a_prompt_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}, (entry|line) 2, has half a character.*'half \\ud83d a face'"):
        read_benchmark([tmp_path / name], 9)


def test_the_field_of_a_prompt_is_chosen_as_that_of_a_caption(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,caption,text\nc,b,a\nf,e,d\n")
    assert read_benchmark([tmp_path / "a.csv"], 2) == [("a", 0), ("d", 0)]
