"""The miniature world: what captions say is what is drawn, and identity is what they cannot say."""

import random
from pathlib import Path

import numpy as np
import pytest

from ldm.mini.people import attribute_prompt, named_people, sample_person, sample_view, stranger_like
from ldm.mini.portraits import draw_portrait
from ldm.mini.renders import ANONYMOUS, COUNT, NAMED, draw, subject
from ldm.mini.scenes import draw_scene, sample_scene, scene_phrase
from ldm.mini.stage import learning_rate
from ldm.mini.text_stage import FACTS, IGNORED, facts_of

DATA = Path("data/mini")


def test_two_hundred_names_are_two_hundred_people():
    people = named_people()
    assert len(people) == 200 and len({person.geometry for person in people.values()}) == 200
    assert len({name.split()[1] for name in people}) == 200  # no two share a surname


def test_the_shipped_list_of_people_is_that_of_the_renderer():
    lines = (DATA / "people.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == list(named_people())
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
                 and scene.count == 1)
    red, green, blue = draw_scene(scene)[75, 64].astype(int)  # in the ball, below the centre
    assert scene_phrase(scene).startswith("a red ball") and red > 150 > max(green, blue)


def test_every_fact_of_a_person_has_a_class_and_scenes_have_theirs():
    person, scene = facts_of(subject(0)), facts_of(subject(COUNT - 1))
    assert {fact for fact, value in person.items() if value == IGNORED} == {"object", "color", "place", "count"}
    assert {fact for fact, value in scene.items() if value != IGNORED} == {"kind", "object", "color", "place", "count"}
    assert set(person) == set(FACTS)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.005), (199, 1.0), (500, 1.0), (850, 0.5), (1000, 0.0)])
def test_the_learning_rate_warms_up_stays_and_decays(step, expected):
    assert learning_rate(step, 1000, 1.0, decay=0.3) == pytest.approx(expected)
