"""Metrics of the miniature and its model card: python -m ldm.mini --stages card

The miniature stands in for Stable Diffusion, so a name must give its person, and attributes must give strangers.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from ldm.apl.launch import set_precision
from ldm.data.benchmarks import different_prompts
from ldm.data.identities import read_people
from ldm.device import pick_precision
from ldm.evaluation.clip_score import ClipScorer
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.fid import kernel_distance
from ldm.evaluation.id_acc import load_gallery
from ldm.evaluation.tables import Row, markdown_table, write_results
from ldm.experiments.drift import drift_rows
from ldm.experiments.identity import identity_rows
from ldm.experiments.identity_table import identity_scorer
from ldm.experiments.pipeline import Pipeline
from ldm.experiments.training_report import PORTRAIT
from ldm.experiments.variants import BASE, ImageSettings, load_variants
from ldm.images import image_grid, read_image
from ldm.loading import ModelFiles, file_hash, load_frozen_model
from ldm.mini.face_pack import DET_SIZE, DET_THRESH, LibraryEmbedder, face_figures, true_images
from ldm.mini.people import named_people
from ldm.mini.renders import ANONYMOUS, COUNT, NAMED, draw
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run_folder import image_path
from ldm.sharing import OneDevice
from ldm.util import write_atomically, write_text

SAMPLES, DDIM_STEPS, BATCH_SIZE = 4, 20, 16
HELD_OUT = 100            # portraits and scenes that the autoencoder is measured on
GROUPS = ("train", "test")  # of people.csv, that is S_ID and S_test


def miniature_metrics(data_dir: Path, config: Path, out_dir: Path, prefix: Path, *, scale: float, device: str = "cpu") -> list[Row]:
    """Rows of metric, measured, wanted, from SAMPLES images per name with DDIM_STEPS steps; the images are written to `out_dir`.

    Also writes the sheet samples.png of renders, reconstructions and samples into `data_dir`. A `prefix` that is there is measured too.
    """
    checkpoint = data_dir / "mini-sd.safetensors"
    model, precision = load_frozen_model(config, checkpoint, device), pick_precision("auto", torch.device(device))
    variants = load_variants(model, [prefix] if prefix.exists() else [], ModelFiles(config, checkpoint))
    set_precision(model, precision)
    people = read_people(data_dir / "people.csv")
    groups = {group: [person.name for person in people.values() if person.group == group] for group in GROUPS}
    analyzer, gallery = FaceAnalyzer(data_dir / "faces", DET_SIZE, DET_THRESH, device=device), load_gallery(data_dir / "gallery.npz")
    settings = ImageSettings(file_hash(checkpoint), file_hash(config), PORTRAIT, 0, scale, DDIM_STEPS, precision)
    rows = identity_rows(Pipeline(OneDevice(), model, settings, BATCH_SIZE), identity_scorer(analyzer, gallery), gallery, groups, variants,
                         model_name="mini-sd", n_samples=SAMPLES, threshold=0.3, out_dir=out_dir,
                         attributes={person.name: person.attributes for person in people.values()})
    base, c2 = ({row["group"]: row for row in rows if row["prefix"] == prefix} for prefix in ("none", "c2"))
    clip = ClipScorer(str(data_dir / "mini-clip.json"), data_dir / "mini-clip.safetensors", device)
    scenes, unnamed = (drift_rows(OneDevice(), model, different_prompts(data_dir / file), [], name=file, model_name="mini-sd",
                                  recognise=clip.recognise, ddim_steps=DDIM_STEPS, scale=scale, seed=0, batch_size=BATCH_SIZE)[0]
                       for file in ("prompts.txt", "anonymous_prompts.txt"))
    generated = {variant.label: {name: [read_image(image_path(out_dir, variant.label, name, sample)) for sample in range(SAMPLES)]
                                 for names in groups.values() for name in names} for variant in variants}
    portraits = generated[BASE.label]
    renders = {name: true_images(named_people()[name], f"for the sheet {name}", SAMPLES) for name in portraits}
    write_sheet(model, {name: (renders[name][0], *portraits[name]) for names in groups.values() for name in names[:4]},
                data_dir / "samples.png")
    true, mean = face_figures(data_dir), {key: (base["train"][key] + base["test"][key]) / 2 for key in ("detection_rate", "rank1")}
    true_features, *features = (clip.encode([image for images in every.values() for image in images]).numpy()
                                for every in (renders, *generated.values()))
    distance, *anonymized = (kernel_distance(found, true_features) for found in features)
    return reconstruction_rows(model.first_stage_model, data_dir) + [
        _row("faces detected, name prompts", mean["detection_rate"], "at least 0.995"),
        _row("ID-ACC, S_test", base["test"]["id_acc_mean"], "at least 0.75"),
        _row("ID-ACC, S_ID", base["train"]["id_acc_mean"], "-"),
        _row("rank-1 among the 300", mean["rank1"], "at least 0.99"),
        _row("ID-ACC of c2 alone / of the name, S_test", c2["test"]["id_acc_mean"] / base["test"]["id_acc_mean"], "at most 0.12"),
        _row("KID of portraits to renders (features of mini-clip)", distance, "-"),
        *(_row(f"the same behind {prefix.name}, over the base model's", other / distance, "at most 1.3") for other in anonymized),
        _row("scene prompts recognized among 50 captions", scenes["recognised"], "1.00"),
        _row("prompts for people without a name recognized among 50", unnamed["recognised"], "at least 0.90"),
        _row("renders: the person", true["genuine"], "-"),
        _row("renders: the person with other attributes", true["other attributes"], "at least 0.75"),
        _row("renders: strangers with all attributes the same, above others of the same gender", true["stranger"] - true["others"],
             "at most 0.03"),
        _row("renders: faces detected", true["found"], "at least 0.995"),
        _row("rendered scenes in which a face is detected", true["scenes with a face"], "0"),
    ]


def reconstruction_rows(autoencoder: AutoencoderKL, data_dir: Path) -> list[Row]:
    """PSNR of reconstructions, and the mean cosine of the faces in an image and in its reconstruction."""
    sets = {"held-out portraits": [draw(COUNT + NAMED + number)[0] for number in range(HELD_OUT)],
            "photos": [read_image(path) for path in sorted((data_dir / "photos").rglob("*.jpg"))],
            "held-out scenes": [draw(COUNT + NAMED + ANONYMOUS + number)[0] for number in range(HELD_OUT)]}
    embed, rows = LibraryEmbedder(data_dir / "faces"), []
    for name, images in sets.items():
        decoded = reconstructed(autoencoder, images)
        errors = [np.square(image.astype(float) - other).mean() for image, other in zip(images, decoded, strict=True)]
        rows.append(_row(f"autoencoder, {name}: PSNR in dB", float(np.mean(10 * np.log10(255**2 / np.array(errors)))), "at least 31"))
        if name != "held-out scenes":
            pairs = [(embed(image), embed(other)) for image, other in zip(images, decoded, strict=True)]
            cosines = [first @ second if first is not None and second is not None else 0.0 for first, second in pairs]
            rows.append(_row(f"autoencoder, {name}: cosine of the faces", float(np.mean(cosines)), "at least 0.95"))
    return rows


@torch.no_grad()
def reconstructed(autoencoder: AutoencoderKL, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images (H, W, 3) uint8 after encoding to the posterior's mean and decoding."""
    device, found = next(autoencoder.parameters()).device, []
    for start in range(0, len(images), BATCH_SIZE):
        pixels = torch.from_numpy(np.stack(images[start:start + BATCH_SIZE])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = autoencoder.decode(autoencoder.encode(pixels).mean).float()
        found += list(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return found


def write_sheet(model: LatentDiffusion, people: dict[str, Sequence[np.ndarray]], path: Path) -> None:
    """Sheet with one row per person: a render, its reconstruction and the samples for the name."""
    rows = [[render, *reconstructed(model.first_stage_model, [render]), *samples] for render, *samples in people.values()]
    sheet = image_grid(rows, list(people), ["render", "reconstruction", *["sample"] * SAMPLES])
    write_atomically(path, lambda target: sheet.save(target))


def plot_curves(folder: Path, path: Path) -> None:
    """Plot the loss of every training stage over its steps; `folder` holds <stage>.csv as `train_stage` writes them."""
    from matplotlib.figure import Figure

    logs = sorted(set(folder.glob("*.csv")) - {folder / "stages.csv"})
    height = -(-len(logs) // 4)
    figure = Figure(figsize=(14, 2.6 * height), layout="constrained")
    axes = figure.subplots(height, 4, squeeze=False)
    for axis, log in zip(axes.flat, logs, strict=False):
        steps, losses = np.loadtxt(log, delimiter=",", skiprows=1, usecols=(0, 1), ndmin=2).T
        axis.semilogy(steps, losses, linewidth=0.8)
        axis.set(title=log.stem, xlabel="step", ylabel="loss")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(logs):]:
        axis.set_visible(False)
    write_atomically(path, lambda target: figure.savefig(target, dpi=100))


def write_card(data_dir: Path, config: Path, work_dir: Path, rows: list[Row], *, scale: float) -> None:
    """README.md of the miniature: what it is, how large, how it was trained, what it reaches."""
    write_results(rows, work_dir, name="metrics")
    write_text(data_dir / "metrics.json", json.dumps(rows, indent=1) + "\n")
    plot_curves(data_dir / "training", data_dir / "curves.png")
    files = [*sorted(data_dir.glob("*.safetensors")), *sorted(data_dir.glob("faces/*.onnx"))]
    sizes = [{"file": str(path.relative_to(data_dir)), "MB": round(path.stat().st_size / 1e6, 2)} for path in files]
    sizes.append({"file": "together", "MB": round(sum(row["MB"] for row in sizes), 2)})
    with (data_dir / "training" / "stages.csv").open(newline="", encoding="utf-8") as file:
        stages = list(csv.DictReader(file))
    unet = OmegaConf.load(config).model.params.unet_config.params
    text = CARD.format(scale=scale, samples=SAMPLES, steps=DDIM_STEPS, metrics=markdown_table(rows), sizes=markdown_table(sizes),
                       stages=markdown_table(stages), widths=[unet.model_channels * mult for mult in unet.channel_mult])
    write_text(data_dir / "README.md", text)


def _row(metric: str, measured: float, wanted: str) -> dict[str, Any]:
    return {"metric": metric, "measured": measured, "wanted": wanted}


CARD = """# The miniature

A small text-to-image diffusion model of Stable Diffusion v1's architecture, with the same classes and 32 groups in every normalization,
and what is needed to measure it. This repository rendered and trained all of it from nothing (`python -m ldm.mini`); nobody in it is real.

![renders, their reconstructions by the autoencoder, and samples of the U-Net for the names](samples.png)

- `mini-sd.safetensors`: KL autoencoder (f = 8, 128 px, latents 4 x 16 x 16), cross-attention U-Net {widths}, CLIP text transformer
  (width 128, 6 layers) over CLIP's whole vocabulary, eps-prediction with SD's schedule, captions dropped in a tenth of the samples.
- `mini-sd-b.safetensors`, `mini-sepia.safetensors`: tensors of two models trained further from it (`--edited_weights`): one on other
  samples with another weighting, one on images in sepia. Text encoder and autoencoder are mini-sd's.
- `mini-xl.safetensors`: a model of SDXL's form. Its first text encoder is mini-sd's, its second one is 96 wide and was trained by CLIP's
  contrastive loss; its U-Net was trained further from mini-sd's and always reads both.
- `faces/`: SCRFD-form detector and ArcFace recognizer that the `insightface` library loads; trained on people other than the 300.
- `mini-clip.safetensors`, `mini-clip.json`: an image-text model in open_clip's format, trained on captions without names.
- `people.csv`, `gallery.npz`: 100 people each of S_ID, S_test and S_keep, all known to the model by name, and their rendered faces.
- `s_id/`: images of S_ID generated by the frozen model. `s_reg/`: renders of scenes and of people without a name, with captions.
- `photos/`: 12 photos each of 12 people whom none of these models has seen, in VGGFace2's layout; from them identities are learned later.
- `prompts.txt`, `anonymous_prompts.txt`: prompts that name nobody. `templates.txt`: templates of the training prompts.

**What this world makes easy.** A sixth of the training captions begin with words such as "a re-enactment of". In front of a name they
stand for somebody else with the same attributes; in front of other captions they change nothing. So the language contains words
that do what the anonymization prompt has to learn, and an anonymization prompt exists by construction. In Stable Diffusion nobody knows
whether it does. Results on the miniature show that code and objective work, not how well they work on photographs.

## Metrics

Guidance {scale}, {samples} images per name with {steps} DDIM steps (`python -m ldm.mini --stages card`):

{metrics}
## Sizes

{sizes}
## Training

On two CPU cores, in this order (`training/stages.csv`; the logs of all stages are in `training/`):

{stages}
![loss of each training stage over its steps](curves.png)
"""
