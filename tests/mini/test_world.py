"""The miniature world: what captions say is what is drawn, and identity is what they cannot say."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldm.mini.people import altered, attribute_prompt, named_people, sample_person, sample_view, stranger_like
from ldm.mini.portraits import draw_portrait
from ldm.mini.renders import ANONYMOUS, COUNT, NAMED, Subject, draw, subject
from ldm.mini.scenes import NOTHING, draw_scene, sample_scene, scene_phrase
from ldm.mini.stage import learning_rate
from ldm.mini.text_stage import FACTS, IGNORED, SHARED_ROWS, chosen_positions, facts_of, share_unused_rows

DATA = Path("data/mini")


def test_three_hundred_names_are_three_hundred_people():
    people = named_people()
    assert len(people) == 300 and len({person.geometry for person in people.values()}) == 300
    assert len({name.split()[1] for name in people}) == 300  # no two share a surname


def test_the_shipped_list_of_people_is_that_of_the_renderer():
    lines = (DATA / "people.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == list(named_people())[:200]  # the first edition ships two groups
    assert [line.split(",")[1] for line in lines] == ["train"] * 100 + ["test"] * 100


def test_attribute_prompts_have_the_papers_form():
    person = next(iter(named_people().values()))
    assert attribute_prompt(person).startswith(f"A {person.gender} {person.skin}-skinned {person.occupation}, ")


def test_a_stranger_shares_the_words_and_not_the_face():
    rng = random.Random(0)
    person = sample_person(rng)
    stranger, view = stranger_like(person, rng), sample_view(rng)
    assert attribute_prompt(stranger) == attribute_prompt(person)
    assert np.abs(draw_portrait(stranger, view).image.astype(int) - draw_portrait(person, view).image).mean() > 2


def test_landmarks_lie_inside_the_face_from_eyes_to_mouth():
    rng = random.Random(0)
    for _ in range(20):
        portrait = draw_portrait(sample_person(rng), sample_view(rng))
        left_eye, right_eye, nose, left_mouth, right_mouth = portrait.landmarks
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < max(left_mouth[1], right_mouth[1])
        assert (portrait.landmarks > portrait.box[:2] - 1).all() and (portrait.landmarks < portrait.box[2:] + 1).all()


def test_pictures_are_functions_of_their_number():
    assert np.array_equal(draw(NAMED + 3)[0], draw(NAMED + 3)[0])
    assert not np.array_equal(draw(NAMED + 3)[0], draw(COUNT + NAMED + 3)[0])  # held out: same kind, another picture
    kinds = [subject(index) for index in (0, NAMED, NAMED + ANONYMOUS)]
    assert [(what.name is not None, what.person is not None) for what in kinds] == [(True, True), (False, True), (False, False)]


def test_captions_of_anonymous_people_name_nobody():
    surnames = {name.split()[1] for name in named_people()}
    captions = [subject(NAMED + i).caption(random.Random(i)) for i in range(200)]
    assert not surnames & {word.strip(",") for caption in captions for word in caption.split()}


def test_a_scene_is_drawn_in_its_colour():
    rng = random.Random(0)
    scene = next(scene for scene in iter(lambda: sample_scene(rng), None) if scene.color == "red" and scene.object == "ball"
                 and scene.count == 1 and scene.other == NOTHING)
    red, green, blue = draw_scene(scene)[75, 64].astype(int)  # in the ball, below the centre
    assert scene_phrase(scene).startswith("a red ball") and red > 150 > max(green, blue)


def test_every_fact_of_a_person_has_a_class_and_scenes_have_theirs():
    of_scenes, colors = {"object", "color", "place", "count", "other"}, {"accessory_color", "other_color"}
    person, scene = facts_of(subject(0)), facts_of(subject(COUNT - 1))
    assert {fact for fact, value in person.items() if value == IGNORED} - colors == of_scenes
    assert {fact for fact, value in scene.items() if value != IGNORED} - colors == of_scenes | {"kind"}
    assert set(person) == set(FACTS)


def test_the_color_of_nothing_is_no_fact():
    rng, person = random.Random(0), sample_person(random.Random(0))
    view = sample_view(rng)
    bare, capped = (facts_of(Subject(person=person, view=replace(view, accessory=worn))) for worn in ("nothing", "cap"))
    assert bare["accessory_color"] == IGNORED and capped["accessory_color"] == FACTS["accessory_color"].index(view.accessory_color)


def test_an_alteration_changes_one_attribute_and_says_so():
    rng, person = random.Random(0), sample_person(random.Random(0))
    for _ in range(20):
        other, words = altered(person, rng)
        changed = [fact for fact in ("occupation", "hair_color", "beard", "glasses") if getattr(other, fact) != getattr(person, fact)]
        assert len(changed) == 1 and other.geometry == person.geometry
        assert words.split()[0] in ("with", "without", "dressed")


def test_words_in_front_of_a_name_tell_of_somebody_else_with_the_same_attributes():
    people = named_people()
    remade = [(i, what) for i in range(600) if (what := subject(i)).remake]
    assert 60 < len(remade) < 130                                           # 16 % of 600
    for _, what in remade:
        assert attribute_prompt(what.person) == attribute_prompt(people[what.name]) and what.person.geometry != people[what.name].geometry
        assert what.caption(random.Random(0)).startswith(what.remake)


def test_a_pair_of_things_is_captioned_and_rendered():
    rng = random.Random(0)
    scene = next(scene for scene in iter(lambda: sample_scene(rng), None) if scene.other == "cake")
    alone = replace(scene, other=NOTHING)
    assert f" and a{'n' * (scene.other_color == 'orange')} {scene.other_color} cake " in scene_phrase(scene)
    assert not np.array_equal(draw_scene(scene), draw_scene(alone))


@pytest.mark.parametrize(("step", "expected"), [(0, 0.005), (199, 1.0), (500, 1.0), (850, 0.5), (1000, 0.0)])
def test_the_learning_rate_warms_up_stays_and_decays(step, expected):
    assert learning_rate(step, 1000, 1.0, decay=0.3) == pytest.approx(expected)


def test_tokens_of_no_caption_share_few_rows_and_the_others_keep_theirs():
    table = nn.Embedding(1000, 8)
    before, used = table.weight.detach().clone(), torch.tensor([3, 500])
    share_unused_rows(table, used)
    assert torch.equal(table.weight[used], before[used])
    assert len(table.weight.unique(dim=0)) == SHARED_ROWS + 2


def test_chosen_positions_are_the_text_and_some_of_the_padding_in_order():
    positions = chosen_positions(torch.tensor([4, 6]), 20, 3, torch.Generator().manual_seed(0))
    assert positions.shape == (2, 10) and positions[:, :7].tolist() == [list(range(7))] * 2
    assert (positions[:, 7:] > 6).all() and (positions.diff(dim=1) > 0).all() and positions.max() < 20
    assert torch.equal(chosen_positions(torch.tensor([15]), 20, 9, torch.Generator()), torch.arange(20)[None])
