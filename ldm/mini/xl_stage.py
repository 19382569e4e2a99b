"""The second miniature, of SDXL's form: mini-sd's U-Net learns to read two text encoders instead of one.

Its first text encoder is mini-sd's, read at the penultimate layer, as SDXL reads the encoder of Stable Diffusion v1. The second has
other widths and was trained by another recipe (`contrastive_stage`). The U-Net always sees both, as SDXL's does.
"""

import random
from pathlib import Path

import torch
from torch import Tensor

from ldm.loading import read_config, read_state_dict
from ldm.mini.renders import COUNT, NAMED, subject
from ldm.mini.unet_stage import latents_of_renders, train_unet
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sdxl import DiffusionEngine
from ldm.util import instantiate_from_config

CONFIG = Path("configs/stable-diffusion/mini-xl-next.yaml")
CAPTIONS = 512  # from which the first guess of the new attention keys and values is made


def build_mini_xl() -> DiffusionEngine:
    """With random weights."""
    return instantiate_from_config(read_config(CONFIG)).eval()


def train_mini_xl(small: LatentDiffusion, work_dir: Path, *, steps: int) -> DiffusionEngine:
    """The second miniature after `steps` steps, from mini-sd and the second text encoder that the stage text-xl left in `work_dir`."""
    model = build_mini_xl().to(small.device)
    second = model.conditioner.embedders[1]
    second.load_state_dict(read_state_dict(work_dir / "text-xl.safetensors"))
    start_from(small.eval(), model)
    latents = latents_of_renders(model.first_stage_model, work_dir)
    model.model = train_unet(model, latents, work_dir, steps=steps, lr=8e-4, name="mini-xl", ema=0.995)
    return model


@torch.no_grad()
def start_from(small: LatentDiffusion, model: DiffusionEngine) -> None:
    """Gives `model`, whose second text encoder is trained, the weights of `small` as far as they fit, and a first guess for the rest."""
    model.first_stage_model.load_state_dict(small.first_stage_model.state_dict())
    model.conditioner.embedders[0].load_state_dict(small.cond_stage_model.state_dict())
    read = _reading(small, model)                                                              # (224, 128)
    unet = model.model.diffusion_model
    weights = dict(small.model.diffusion_model.state_dict())
    for key, own in unet.state_dict().items():
        if key.startswith("label_emb."):
            weights[key] = torch.zeros_like(own) if key.startswith("label_emb.0.2.") else own
        elif key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weights[key] = weights[key] @ read.T
        else:
            weights[key] = weights[key].view_as(own)  # 1 x 1 convolutions become linear layers
    unet.load_state_dict(weights)


def _reading(small: LatentDiffusion, model: DiffusionEngine) -> Tensor:
    """Least squares: from the states of each encoder half of what `small` reads, (224, 128)."""
    rng = random.Random("captions of mini-xl")
    captions = [subject(rng.randrange(NAMED) if i % 2 else rng.randrange(COUNT)).caption(rng) for i in range(CAPTIONS)]
    wanted = small.get_learned_conditioning(captions).flatten(0, 1)                            # (512 * 77, 128)
    states = model.get_learned_conditioning(captions)[:, :-1].flatten(0, 1)                    # (512 * 77, 224)
    halves = states.split([wanted.shape[1], states.shape[1] - wanted.shape[1]], dim=1)
    return torch.cat([0.5 * torch.linalg.lstsq(half, wanted).solution for half in halves])
