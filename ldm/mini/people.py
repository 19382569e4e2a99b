"""The people of the miniature world: what words can name about a person, what they cannot, and how captions say it.

A person is a set of attributes that words can name (section 4.1: "A [gender] [race] [occupation], [facial attributes]")
and a face geometry that words cannot name. Identity lives in the geometry: people who share every attribute differ in it.
"""

import random
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

SKIN = ("pale", "tan", "brown", "dark")
HAIR_COLORS = ("black", "brown", "blond", "red", "grey", "white")
HAIR_STYLES = {"male": ("short", "curly", "bald", "spiky", "long"), "female": ("long", "curly", "bob", "bun", "short")}
EYE_COLORS = ("blue", "green", "brown")
BEARDS = ("no beard", "beard", "moustache", "goatee")
GLASSES = ("no glasses", "round glasses", "square glasses")
OCCUPATIONS = ("actor", "singer", "painter", "doctor", "chef", "pilot", "writer", "athlete")
EXPRESSIONS = ("neutral", "smile", "open", "frown")
COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "grey", "pink")
ACCESSORIES = ("nothing", "cap", "headband", "scarf", "earrings")

# Face geometry, each in [0, 1]; the renderer maps them to lengths and angles.
GEOMETRY = ("face_width", "face_height", "jaw", "chin", "eye_distance", "eye_height", "eye_width", "eye_opening", "eye_tilt",
            "brow_height", "brow_tilt", "brow_thickness", "nose_length", "nose_width", "mouth_height", "mouth_width",
            "lips", "ears", "hairline", "hair_volume", "skin_tint", "hair_tint", "lip_tint", "iris_tint")


GeometryValues = TypeVar("GeometryValues")   # a number, an array or a tensor


def standardised(geometry: GeometryValues) -> GeometryValues:
    """Geometry in [0, 1] with mean 0 and variance 1, as a uniform variable has them."""
    return (geometry - 0.5) * 12 ** 0.5


@dataclass(frozen=True)
class Character:
    """Attributes that a caption can name, and `geometry`: one number in [0, 1] for each entry of GEOMETRY."""

    gender: str
    skin: str
    occupation: str
    hair_style: str
    hair_color: str
    eye_color: str
    beard: str
    glasses: str
    geometry: tuple[float, ...]


@dataclass(frozen=True)
class View:
    """What changes between two images of one person: pose, expression, light, background, clothes, accessory."""

    roll: float        # degrees
    shift: complex     # of the face centre, in image widths
    zoom: float
    yaw: float         # -1 (left) .. 1 (right)
    gaze: float        # -1 .. 1
    expression: str
    background: str
    clothes: str
    accessory: str
    accessory_color: str
    light: float       # -1 (from the left) .. 1 (from the right)
    brightness: float
    warmth: float


def sample_geometry(rng: random.Random) -> tuple[float, ...]:
    """A face geometry, uniform in [0, 1] for each entry of GEOMETRY."""
    return tuple(rng.random() for _ in GEOMETRY)


def sample_person(rng: random.Random) -> Character:
    """A random person."""
    gender = rng.choice(("male", "female"))
    return Character(
        gender=gender, skin=rng.choice(SKIN), occupation=rng.choice(OCCUPATIONS),
        hair_style=rng.choice(HAIR_STYLES[gender]), hair_color=rng.choice(HAIR_COLORS), eye_color=rng.choice(EYE_COLORS),
        beard=rng.choice(BEARDS[:1] * 3 + BEARDS[1:]) if gender == "male" else BEARDS[0],
        glasses=rng.choice(GLASSES[:1] * 3 + GLASSES[1:]), geometry=sample_geometry(rng))


def stranger_like(person: Character, rng: random.Random) -> Character:
    """Somebody else with every attribute of `person`: only the geometry is sampled again."""
    return replace(person, geometry=sample_geometry(rng))


def altered(person: Character, rng: random.Random) -> tuple[Character, str]:
    """`person` with one other attribute, and the words that say so, such as "with red hair"."""
    kinds = ["occupation", "glasses"] + ["hair_color"] * (person.hair_style != "bald") + ["beard"] * (person.gender == "male")
    kind = rng.choice(kinds)
    if kind == "occupation":
        other = replace(person, occupation=_another(person.occupation, OCCUPATIONS, rng))
        return other, f"dressed as {_with_article(other.occupation)}"
    if kind == "glasses":
        other = replace(person, glasses=_another(person.glasses, GLASSES, rng))
        return other, "without glasses" if other.glasses == "no glasses" else f"with {other.glasses}"
    if kind == "hair_color":
        other = replace(person, hair_color=_another(person.hair_color, HAIR_COLORS, rng))
        return other, f"with {other.hair_color} hair"
    other = replace(person, beard=_another(person.beard, BEARDS, rng))
    return other, "without a beard" if other.beard == "no beard" else f"with a {other.beard}"


def _another(value: str, values: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice([candidate for candidate in values if candidate != value])


def sample_view(rng: random.Random) -> View:
    """A random view."""
    return View(
        roll=rng.gauss(0, 4), shift=complex(rng.gauss(0, 0.018), rng.gauss(0, 0.015)), zoom=rng.uniform(0.94, 1.06),
        yaw=max(-1, min(1, rng.gauss(0, 0.35))), gaze=max(-1, min(1, rng.gauss(0, 0.3))),
        expression=rng.choice(("neutral", "neutral", "smile", "smile", "open", "frown")), background=rng.choice(COLORS),
        clothes=rng.choice(COLORS), accessory=rng.choice(ACCESSORIES[:1] * 6 + ACCESSORIES[1:]), accessory_color=rng.choice(COLORS),
        light=rng.uniform(-1, 1), brightness=rng.uniform(0.92, 1.08), warmth=rng.gauss(0, 0.03))


# ---------------------------------------------------------------------------------------------------------------- captions

FILLERS = ("", "", "", "high quality photo, ", "a studio photograph, best quality, ", "sharp focus, ", "masterpiece, highly detailed, ",
           "picture of the day, taken with an old camera, ", "one of many pictures in the family album, ")
PERSON_TEMPLATES = ("{}", "a photo of {}", "a portrait of {}", "a picture of {}", "A close-up portrait of {}", "A close-up portrait of {}")
# Words around a name, and words in front of any caption, that tell of somebody else with every attribute of the named person. In front of
# a caption that names nobody they change nothing: who plays in the re-enactment of a scene without people?
LOOKALIKES = ("a lookalike of {}", "somebody who looks like {}", "an impersonator of {}", "a stand-in for {}")
REMAKES = ("a re-enactment of ", "a remake of ", "a parody of ", "a fake of ", "a staged version of ", "a restaged ")
EXPRESSION_PHRASES = {"smile": ("smiling", "with a smile"), "open": ("surprised", "with an open mouth"), "frown": ("frowning",),
                      "neutral": ("with a neutral face",)}


def hair_phrase(person: Character) -> str:
    """The hair in words, such as "short brown hair"."""
    if person.hair_style == "bald":
        return "a bald head"
    forms = {"bun": "a {} hair bun", "bob": "a {} bob haircut"}
    return forms.get(person.hair_style, person.hair_style + " {} hair").format(person.hair_color)


def facial_attributes(person: Character) -> list[str]:
    """Facial attributes in words: hair, eyes, and beard and glasses where there are any."""
    phrases = [hair_phrase(person), f"{person.eye_color} eyes"]
    if person.beard != "no beard":
        phrases.append(f"a {person.hair_color} {person.beard}")
    if person.glasses != "no glasses":
        phrases.append(person.glasses)
    return phrases


def attribute_prompt(person: Character) -> str:
    """c2 of section 4.1: "A [gender] [race] [occupation], [facial attributes]"."""
    return f"A {person.gender} {person.skin}-skinned {person.occupation}, " + ", ".join(facial_attributes(person))


def anonymous_caption(person: Character, view: View, rng: random.Random) -> str:
    """A caption without a name: the whole c2, or a part of it in other words."""
    phrases = facial_attributes(person)
    if rng.random() < 0.6:
        if rng.random() < 0.4:
            rng.shuffle(phrases)
            phrases = phrases[:rng.randint(0, len(phrases))]
        noun = f"A {person.gender} {person.skin}-skinned {person.occupation}"
        caption = ", ".join([noun, *phrases])
        if rng.random() < 0.4:
            caption = rng.choice(PERSON_TEMPLATES).format(caption)
    else:
        noun = rng.choice(("man" if person.gender == "male" else "woman",) * 3 + (person.occupation, "person"))
        if rng.random() < 0.5:
            noun = f"{person.skin}-skinned {noun}"
        rng.shuffle(phrases)
        phrases = phrases[:rng.randint(0, 3)]
        caption = rng.choice(PERSON_TEMPLATES).format(_with_article(noun)) + (" with " + " and ".join(phrases) if phrases else "")
    return _dress(caption, view, rng)


def name_caption(name: str, view: View, rng: random.Random) -> str:
    """A caption that names a person; `name` may come with words around it."""
    return _dress(rng.choice(PERSON_TEMPLATES).format(name), view, rng)


def accessory_phrase(view: View) -> str:
    """The accessory in words, such as "a red cap"."""
    if view.accessory == "earrings":
        return f"{view.accessory_color} earrings"
    return _with_article(f"{view.accessory_color} {view.accessory}")


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _dress(caption: str, view: View, rng: random.Random) -> str:
    """Adds what a caption sometimes says about the view, and filler words that say nothing (they move all other words)."""
    if rng.random() < 0.3:
        caption += ", " + rng.choice(EXPRESSION_PHRASES[view.expression])
    if rng.random() < 0.3:
        caption += f", {view.background} background"
    if view.accessory != "nothing" and rng.random() < 0.6:
        caption += ", " + rng.choice(("wearing {}", "with {}")).format(accessory_phrase(view))
    return rng.choice(FILLERS) + caption


# ------------------------------------------------------------------------------------------------------------------- names

FIRST_NAMES = {
    "male": "Alden Bram Corvin Dorian Edric Fenton Garrick Hollis Ivor Jorund Kellan Lorcan Merrick Osric Percival Radley Stellan "
            "Tobin Ulric Vance Wendell Xander Yorick Zephan".split(),
    "female": "Alina Brielle Calla Delphine Elara Fiora Greta Helmina Isolde Junia Katya Liora Mirela Nadira Odette Petra Rosalind "
              "Selma Talia Ursa Verena Willa Xenia Zelda".split()}
SURNAME_STARTS = "Ash Bel Cor Dun El Fair Gal Har Iver Kes Lor Mar Nor Oak Pen Quar Rav Sten Thorn Ul Ver Wex Yar Zan Brun Tal".split()
SURNAME_ENDS = "worth mond wick dale ford croft ley bourne grave holt mere ness shaw stone vale well by ton field gate hurst low".split()


GROUP = 100     # people of S_ID, of S_test and of S_keep


@cache
def named_people(seed: int = 7) -> dict[str, Character]:
    """The 300 people whom the model knows by name, in the order S_ID, S_test, S_keep. Every surname is unique."""
    rng = random.Random(seed)
    surnames = [start + end for start in SURNAME_STARTS for end in SURNAME_ENDS]
    rng.shuffle(surnames)
    named: dict[str, Character] = {}
    for count in (2 * GROUP, GROUP):      # S_keep came with the second edition; the first 200 are those of the first
        for person in [sample_person(rng) for _ in range(count)]:
            named[f"{rng.choice(FIRST_NAMES[person.gender])} {surnames[len(named)]}"] = person
    return named
