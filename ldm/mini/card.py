"""What the shipped miniature is worth, measured, and its model card: python -m ldm.mini --stages card

The miniature stands in for Stable Diffusion, so its names must give their people and its attributes strangers.
"""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ldm.apl.launch import set_precision
from ldm.data.benchmarks import different_prompts
from ldm.data.identities import GROUPS, read_people
from ldm.device import pick_precision
from ldm.evaluation.clip_score import ClipScorer
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.tables import markdown_table, write_results
from ldm.experiments.drift import drift_rows
from ldm.experiments.identity import identity_rows
from ldm.experiments.identity_table import identity_scorer
from ldm.experiments.pipeline import Pipeline
from ldm.experiments.training_report import PORTRAIT
from ldm.experiments.variants import BASE, ImageSettings
from ldm.loading import file_hash, load_frozen_model
from ldm.mini.face_pack import DET_SIZE, DET_THRESH, face_figures
from ldm.sharing import OneDevice
from ldm.util import write_text

SAMPLES, DDIM_STEPS, BATCH_SIZE = 4, 20, 16


def miniature_figures(data_dir: Path, config: Path, out_dir: Path, *, scale: float, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of figure, measured, wanted: 4 images a name of all people, with 20 DDIM steps; pictures go to `out_dir`."""
    checkpoint = data_dir / "mini-sd.safetensors"
    model, precision = load_frozen_model(config, checkpoint, device), pick_precision("auto", torch.device(device))
    set_precision(model, precision)
    people = read_people(data_dir / "people.csv")
    groups = {group: [person.name for person in people.values() if person.group == group] for group in GROUPS}
    analyzer, gallery = FaceAnalyzer(data_dir / "faces", DET_SIZE, DET_THRESH, device=device), load_gallery(data_dir / "gallery.npz")
    settings = ImageSettings(file_hash(checkpoint), file_hash(config), PORTRAIT, 0, scale, DDIM_STEPS, precision)
    rows = identity_rows(Pipeline(OneDevice(), model, settings, BATCH_SIZE), identity_scorer(analyzer, gallery), gallery, groups, [BASE],
                         model_name="mini-sd", n_samples=SAMPLES, threshold=0.3, out_dir=out_dir,
                         attributes={person.name: person.attributes for person in people.values()})
    base, c2 = ({row["group"]: row for row in rows if row["prefix"] == prefix} for prefix in ("none", "c2"))
    clip = ClipScorer(str(data_dir / "mini-clip.json"), data_dir / "mini-clip.safetensors", device)
    prompts = different_prompts(data_dir / "prompts.txt")
    scenes = drift_rows(OneDevice(), model, prompts, [], name="scenes", model_name="mini-sd", recognise=clip.recognise,
                        ddim_steps=DDIM_STEPS, scale=scale, seed=0, batch_size=BATCH_SIZE)
    true = face_figures(data_dir)
    mean = {key: (base["train"][key] + base["test"][key]) / 2 for key in ("detection_rate", "rank1")}
    return [
        _row("faces detected, name prompts", mean["detection_rate"], "at least 0.95"),
        _row("ID-ACC, S_test", base["test"]["id_acc_mean"], "at least 0.55"),
        _row("ID-ACC, S_ID", base["train"]["id_acc_mean"], "-"),
        _row("rank-1 among the 200", mean["rank1"], "at least 0.80"),
        _row("ID-ACC of c2 alone / of the name, S_test", c2["test"]["id_acc_mean"] / base["test"]["id_acc_mean"], "at most 0.40"),
        _row("scene prompts recognised among 50 captions", scenes[0]["recognised"], "at least 0.90"),
        _row("true pictures: the person", true["genuine"], "-"),
        _row("true pictures: others of the same gender", true["others"], "below 0.15"),
        _row("true pictures: strangers with all attributes the same", true["stranger"], "at most 0.30"),
        _row("true pictures: faces detected", true["found"], "-"),
        _row("true scenes in which a face is found", true["scenes with a face"], "0"),
    ]


def write_card(data_dir: Path, config: Path, work_dir: Path, rows: list[dict[str, Any]], *, scale: float) -> None:
    """README.md of the miniature: what it is, how large, how it was trained, what it reaches."""
    write_results(rows, work_dir, name="figures")
    write_text(data_dir / "figures.json", json.dumps(rows, indent=1) + "\n")
    files = [*sorted(data_dir.glob("*.safetensors")), *sorted(data_dir.glob("faces/*.onnx"))]
    sizes = [{"file": str(path.relative_to(data_dir)), "MB": round(path.stat().st_size / 1e6, 2)} for path in files]
    sizes.append({"file": "together", "MB": round(sum(row["MB"] for row in sizes), 2)})
    with (data_dir / "history.csv").open(newline="", encoding="utf-8") as file:
        stages = list(csv.DictReader(file))
    unet = OmegaConf.load(config).model.params.unet_config.params
    text = CARD.format(scale=scale, figures=markdown_table(rows), sizes=markdown_table(sizes), stages=markdown_table(stages),
                       widths=[unet.model_channels * mult for mult in unet.channel_mult])
    write_text(data_dir / "README.md", text)


def _row(figure: str, measured: float, wanted: str) -> dict[str, Any]:
    return {"figure": figure, "measured": measured, "wanted": wanted}


CARD = """# The miniature

A small text-to-image diffusion model of Stable Diffusion v1's architecture, with the same classes, and what is needed to measure it.
Everything here was drawn and trained by this repository from nothing (`python -m ldm.mini`); nobody in it is real.

- `mini-sd.safetensors`: KL autoencoder (f = 8, 128 px, latents 4 x 16 x 16), cross-attention U-Net {widths}, CLIP text transformer
  (width 96, 4 layers) over CLIP's whole vocabulary, trained to tell what a caption says and
  nothing else, eps-prediction with SD's schedule, captions dropped in a tenth of the samples.
- `mini-sd-b.safetensors`, `mini-sepia.safetensors`: tensors of two models that went on from it (`--edited_weights`): one trained
  further on other samples and by another weighting, one on pictures in sepia. Text encoder and autoencoder are mini-sd's.
- `mini-xl.safetensors`: a model of SDXL's form. Its first text encoder is mini-sd's, its second one is 128 wide and was trained apart;
  its U-Net went on from mini-sd's and listens to both, for in training one of them was sometimes left out.
- `faces/`: SCRFD-form detector and ArcFace recogniser that the `insightface` library loads; trained on people other than the 200.
- `mini-clip.safetensors`, `mini-clip.json`: an image-text model in open_clip's format, trained on captions without names.
- `people.csv`, `gallery.npz`: 100 people of S_ID and 100 of S_test, all known to the model by name, and their true faces.
- `s_id/`: pictures of S_ID drawn by the frozen model. `s_reg/`: pictures of scenes and of people without a name, with captions.
- `photos/`: 12 photos each of 12 people whom none of these models has seen, in VGGFace2's layout; from them identities are learned later.
- `prompts.txt`, `anonymous_prompts.txt`: prompts that name nobody. `templates.txt`: of the training prompts.

## Figures

Guidance {scale}, 20 DDIM steps, 4 images a name (`python -m ldm.mini --stages card`):

{figures}
## Sizes

{sizes}
## Training

What these weights have seen, in order (`history.csv`), over four sessions on two CPU cores. The code trains each stage in one go, so a
rebuild gives other weights of the same kind.

{stages}"""
