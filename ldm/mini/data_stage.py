"""Writes the miniature's data: the prompts, S_Reg (drawn pictures with captions), S_ID (pictures by the frozen model), photos."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.data.images import write_metadata
from ldm.generation import generate
from ldm.mini.people import Person, anonymous_caption, attribute_prompt, named_people, sample_person, sample_view
from ldm.mini.portraits import draw_portrait
from ldm.mini.renders import COUNT, NAMED, SIZE, draw, subject
from ldm.mini.scenes import sample_scene, scene_phrase
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import write_atomically

PROMPTS = 50              # of scenes, and as many of people without a name
CAPTION_IMAGES = 2_000    # S_Reg
IMAGES_PER_IDENTITY = 4   # S_ID
NEW_PEOPLE, PHOTOS = 12, 12
PORTRAIT = "A close-up portrait of {}"


def write_prompts(data_dir: Path) -> None:
    """prompts.txt: distinct scenes; anonymous_prompts.txt: people by their attributes."""
    rng = random.Random("prompts")
    scenes: dict[str, None] = {}
    while len(scenes) < PROMPTS:
        scenes[scene_phrase(sample_scene(rng))] = None
    people = [anonymous_caption(sample_person(rng), sample_view(rng), rng) for _ in range(PROMPTS)]
    (data_dir / "prompts.txt").write_text("\n".join(scenes) + "\n")
    (data_dir / "anonymous_prompts.txt").write_text("\n".join(people) + "\n")


def write_caption_images(folder: Path) -> None:
    """S_Reg: pictures that no model was trained on, without named people, and their captions."""
    rng = random.Random("S_Reg")
    indices = [COUNT + rng.randrange(NAMED, COUNT) for _ in range(CAPTION_IMAGES)]
    _write_folder(folder, ((f"{number:05d}.jpg", draw(index)[0], {"text": subject(index).caption(rng)})
                           for number, index in enumerate(tqdm(indices, desc="S_Reg", unit="image"))))


def write_identity_images(model: LatentDiffusion, folder: Path, *, scale: float, ddim_steps: int = 20, seed: int = 1) -> None:
    """S_ID: pictures of the first half of the named people, drawn by the frozen model itself (section 4.1)."""
    names = list(named_people())
    jobs = [(PORTRAIT.format(name), sample) for name in names[:len(names) // 2] for sample in range(IMAGES_PER_IDENTITY)]
    name_of = {PORTRAIT.format(name): name for name in names}
    made = generate(model, jobs, ddim_steps=ddim_steps, scale=scale, seed=seed)
    _write_folder(folder, ((f"{name_of[prompt].replace(' ', '-')}-{sample}.jpg", image, {"name": name_of[prompt]})
                           for (prompt, sample), image in tqdm(made, total=len(jobs), desc="S_ID", unit="image")))


def write_photos(folder: Path) -> None:
    """<identity>/<number>.jpg of people whom no model has seen, no two described alike: what is learned later (section 4.4)."""
    rng = random.Random("photos")
    people: dict[str, Person] = {}
    while len(people) < NEW_PEOPLE:
        person = sample_person(rng)
        people.setdefault(attribute_prompt(person), person)
    for number, person in enumerate(people.values(), start=1):
        for photo in range(1, PHOTOS + 1):
            _write_jpeg(folder / f"n{number:06d}" / f"{photo}.jpg", draw_portrait(person, sample_view(rng), SIZE).image)


def _write_folder(folder: Path, pictures: Iterable[tuple[str, np.ndarray, dict[str, str]]]) -> None:
    """Pictures and their metadata.jsonl, which is written last."""
    rows = []
    for file_name, pixels, fields in pictures:
        _write_jpeg(folder / file_name, pixels)
        rows.append({"file_name": file_name, **fields})
    write_metadata(folder, rows)


def _write_jpeg(path: Path, pixels: np.ndarray) -> None:
    write_atomically(path, lambda target: Image.fromarray(pixels).save(target, quality=92))
