"""The data of the public scale: people.csv is balanced and in the paper's form, and every preset fits every command."""

import csv
import importlib
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import yaml

from args import common
from ldm.data.attribute_sentences import flaw_of, parse_answer
from ldm.data.benchmarks import read_templates
from ldm.data.identities import read_people
from ldm.evaluation.gallery import person_folders
from ldm.images import images_in, read_image
from ldm.run_folder import safe_name

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
PUBLIC = ("sd-v1-5", "sd-v1-4", "realistic-vision-v5-1", "sdxl")
COMMANDS = sorted(path.stem for path in (ROOT / "args").glob("*_args.py") if "add_preset_argument(" in path.read_text())
RACES = ("White", "Black", "East Asian", "Southeast Asian", "South Asian", "Middle Eastern", "North African", "Latina", "Latino",
         "multiracial", "Indigenous", "Aboriginal Australian", "Polynesian")
FORM = re.compile(rf"A (female|male) ({'|'.join(RACES)}) ([a-z]+(?: [a-z]+)?), ([a-z][a-z -]+(?:, [a-z][a-z -]+)+)")


@pytest.fixture(scope="module")
def people():
    return list(read_people(DATA / "people.csv").values())


def folded(name):
    """What is left of a name where accents, case and punctuation do not count."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.lower())


def test_a_hundred_people_train_and_a_hundred_others_test(people):
    assert Counter(person.group for person in people) == {"train": 100, "test": 100}
    assert len({folded(person.name) for person in people}) == 200  # nobody twice under another spelling


def test_people_whom_the_paper_names_are_in_its_groups(people):
    groups = {person.name: person.group for person in people}
    table_a1 = ("Emma Stone", "David Beckham", "Jackie Chan", "Britney Spears", "Steve Jobs", "Albert Einstein")
    assert {name: groups[name] for name in table_a1} == dict.fromkeys(table_a1, "train")
    assert groups["Taylor Swift"] == "test"  # Figure 3


@pytest.mark.parametrize("group", ["train", "test"])
@pytest.mark.parametrize("first", [10, 100])
def test_both_genders_in_each_group_and_in_its_first_names(people, group, first):
    sentences = [person.attributes for person in people if person.group == group][:first]
    assert Counter(sentence.split()[1] for sentence in sentences) == {"female": first // 2, "male": first // 2}


def test_both_groups_are_of_many_origins_and_occupations(people):
    for group in ("train", "test"):
        matches = [FORM.fullmatch(person.attributes) for person in people if person.group == group]
        assert len({match[2] for match in matches}) >= 8 and len({match[3] for match in matches}) >= 20


def test_every_sentence_has_the_papers_form(people):
    assert [person.name for person in people if not FORM.fullmatch(person.attributes)] == []
    assert [flaw_of(person.attributes, person.name) for person in people] == [None] * 200


def test_the_list_passes_as_an_assistants_answer(people):
    answer = "\n".join(f"{person.name}: {person.attributes}." for person in people)
    assert parse_answer(answer, [person.name for person in people]) == ({person.name: person.attributes for person in people}, [])


def test_a_sentence_belongs_to_one_person_and_names_nobody(people):
    assert len({person.attributes for person in people}) == 200
    words = {word for person in people for word in person.name.split() if len(word) > 2 and word[0].isupper()}
    in_sentences = {word for person in people for word in re.findall(r"\w+", person.attributes)}
    assert not words & in_sentences


def test_a_name_is_its_own_folder_name(people):
    assert [person.name for person in people if safe_name(person.name) != person.name] == []
    assert all(unicodedata.is_normalized("NFC", person.name) for person in people)


def test_people_csv_is_plain_utf8_with_the_three_columns():
    text = (DATA / "people.csv").read_bytes().decode("utf-8")
    rows = list(csv.reader(text.splitlines()))
    assert not text.startswith("\ufeff") and "\r" not in text and rows[0] == ["name", "group", "attributes"]
    assert {len(row) for row in rows} == {3}


def test_a_quarter_of_the_prompts_is_the_bare_text():
    templates = read_templates(DATA / "templates.txt")
    openings = Counter(re.search(r"(a|a close-up) (photo|portrait) of", template.lower()) is not None for template in templates)
    endings = Counter(not template.endswith("{}") for template in templates)
    assert len(templates) == 4 * templates.count("{}") and openings[True] == openings[False] and endings[True] == endings[False]


def test_no_prompt_names_anybody(people):
    prompts = (DATA / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(prompts)) == len(prompts) >= 50 and all(prompts)
    assert not [prompt for prompt in prompts for person in people if person.name.lower() in prompt.lower()]


@pytest.mark.parametrize("preset", sorted(path.stem for path in common.PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_preset(command, preset):
    module = importlib.import_module(f"args.{command}")
    for subcommand in getattr(module, "COMMANDS", [None]):
        parser = module.build_parser(subcommand) if subcommand else module.build_parser()
        assert common.parse_with_preset(parser, ["--preset", preset]).preset == preset


@pytest.mark.parametrize("preset", PUBLIC)
def test_every_path_of_a_preset_ships_or_is_explained(preset):
    values = values_of(preset)
    paths = [value for value in values.values() if isinstance(value, str) and re.match(r"(data|models|configs|embeddings)/", value)]
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert len(paths) >= 8
    assert [path for path in paths if not (ROOT / path).exists() and f"`{path}" not in readme] == []


@pytest.mark.parametrize("preset", [*PUBLIC, "mini-sd-b", "mini-sepia", "mini-xl"])
def test_presets_of_one_scale_differ_only_in_the_model(preset):
    values, base = values_of(preset), values_of("mini" if preset.startswith("mini") else "sd-v1-5")
    assert {key for key in values | base if values.get(key) != base.get(key)} <= {
        *common.MODEL_FILES, "test_id.embedding", "test_fid_clip_score.embedding", "train.identity_images"}


def test_the_miniatures_photos_show_twelve_new_people_in_vggface2s_layout():
    people = person_folders(DATA / "mini" / "photos")
    assert list(people) == [f"n{number:06d}" for number in range(1, 13)]
    assert {name: len(images_in(folder)) for name, folder in people.items()} == dict.fromkeys(people, 12)
    assert {read_image(images_in(folder)[0]).shape for folder in people.values()} == {(128, 128, 3)}


def values_of(preset: str) -> dict:
    values = yaml.safe_load((common.PRESETS / f"{preset}.yaml").read_text())
    return values_of(values.pop("like")) | values if "like" in values else values
