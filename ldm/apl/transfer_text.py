"""The transfer's route "text": vectors for SDXL's second encoder, fitted on texts by the objective of --train_method apl-text.

The context of [X] + c1 moves as Eq. 5 asks for, and that of captions stays; the vectors of the first encoder are fixed.
Of the checkpoint the two text encoders are used, and neither an image nor the U-Net.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.apl.examples import TrainingSet
from ldm.apl.look_ahead import Share
from ldm.apl.text_objective import text_batches, text_step
from ldm.data.benchmarks import read_templates
from ldm.data.captions import caption_images
from ldm.data.identities import read_people
from ldm.data.mixture import Mixture
from ldm.diffusers_folder import is_model_folder, read_folder
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.hub import local_model
from ldm.loading import check_state, read_config, read_state_dict
from ldm.modules.embedding_manager import DualEmbeddingManager
from ldm.modules.encoders.sdxl import GeneralConditioner
from ldm.sharing import OneDevice
from ldm.util import UserError, instantiate_from_config

BATCH_SIZE, LR_DECAY = 8, 0.7  # as train.py --train_method apl-text
PART = "conditioner."  # begin of the text encoders' keys in a checkpoint


class TextEncoders:
    """The part of a model that texts need."""

    device = torch.device("cpu")

    def __init__(self, conditioner: GeneralConditioner):
        self.cond_stage_model = self.get_learned_conditioning = conditioner


def read_text_encoders(config_path: Path, ckpt_path: Path) -> GeneralConditioner:
    """SDXL's text encoders of a checkpoint, float32 and frozen; UserError if it is not one of this config, or damaged."""
    params, path = read_config(config_path)["params"], local_model(ckpt_path)
    if "conditioner_config" not in params:
        raise UserError(f"{config_path} describes a model with one text encoder, and the route text needs SDXL's two; give another one")
    with torch.device("meta"):
        conditioner = instantiate_from_config(params["conditioner_config"])
    content = read_folder(path, read_state_dict, ("text_encoder", "text_encoder_2")) if is_model_folder(path) else read_state_dict(path)
    expected = {PART + key: tuple(tensor.shape) for key, tensor in conditioner.state_dict().items()}
    check_state({key: tensor for key, tensor in content.items() if key.startswith(PART)}, expected, path, config_path)
    state = {key: content[key].float() for key in expected}
    check_finite(state, path, FETCH_AGAIN)
    conditioner.load_state_dict({key.removeprefix(PART): tensor for key, tensor in state.items()}, assign=True)
    return conditioner.eval().requires_grad_(False)


def texts(people: Path, templates: Path, captions: Path, seed: int) -> TrainingSet:
    """S_ID and S_Reg as texts, half of the samples from each; UserError if nobody of the group train has attributes."""
    identities = [person for person in read_people(people).values() if person.group == "train" and person.attributes]
    if not identities:
        raise UserError(f"{people} has nobody of the group train with attributes (c2), from which the route text learns; give another one")
    found, phrases = caption_images(captions), read_templates(templates)
    mixture = Mixture(seed, len(identities), len(found), len(phrases), bins=1)
    return TrainingSet(cast(Any, None), identities, found, phrases, mixture)  # without a model, which only images need


def by_texts(prefix: Tensor, conditioner: GeneralConditioner, data: TrainingSet, *, alpha: float, steps: int,
             lr: float, seed: int) -> tuple[Tensor, dict[str, float]]:
    """Vectors (m, d_t) of the second encoder after `steps` steps of Adam, whose rate falls to 0 over the last LR_DECAY of them.

    Returns:
        The vectors, and the mean loss of S_ID ("loss_id") and of S_Reg ("loss_reg") over the last fifth of the steps.
    """
    manager = DualEmbeddingManager(conditioner, num_vectors_per_token=len(prefix), init="vocab",
                                   generator=torch.Generator().manual_seed(seed))
    first, second = manager.embedding_parameters()
    first.requires_grad_(False).copy_(prefix)
    optimizer = torch.optim.Adam([second], lr=lr)
    model: Any = TextEncoders(conditioner)
    batches = text_batches(model, manager, data, Share(BATCH_SIZE, 1), first_step=0, iterations=steps)
    sums: list[Tensor] = []
    for step, batch in enumerate(tqdm(batches, "fitting", steps, unit="step")):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (1 - step / steps) / LR_DECAY)
        sums.append(text_step(OneDevice(), model, manager, optimizer, batch, alpha=alpha))
        check_finite({"the loss": sums[-1]}, f"step {step + 1} of route text", f"give a smaller --lr than {lr:g}")
    losses, counts = torch.stack(sums[-max(1, steps // 5):]).sum(0).split(2)
    return second.detach(), dict(zip(("loss_id", "loss_reg"), (losses / counts.clamp_min(1)).tolist(), strict=True))
