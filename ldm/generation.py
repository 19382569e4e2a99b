"""Generates images from prompts and seeds: DDIM with classifier-free guidance on a frozen model, with or without a prefix."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.finite import is_finite
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.sharing import Devices, gather, share
from ldm.util import UserError, warn

Job = tuple[str, int]  # prompt, sample number
Item = TypeVar("Item")


@dataclass
class WeightedPrompts:
    """Score corrector of the sampler, whose own prediction is the first prompt's: eps_n + sum_i w_i (eps(p_i) - eps_n)."""

    contexts: Tensor          # (1 + n, B or 1, 77, d), of the negative prompt and of n further prompts
    weights: Sequence[float]  # of the first prompt and of the n further ones, with the guidance scale

    def modify_score(self, model: Any, eps: Tensor, x: Tensor, t: Tensor, _context: Tensor) -> Tensor:
        """The composed prediction, (B, 4, h, w); `eps` is the first prompt's."""
        count = len(self.contexts)
        contexts = self.contexts.expand(-1, len(x), -1, -1).flatten(0, 1)  # (B (1 + n), 77, d)
        found = model.apply_model(x.repeat(count, 1, 1, 1), t.repeat(count), contexts)
        negative, *others = found.chunk(count)
        return negative + sum(weight * (one - negative) for weight, one in zip(self.weights, [eps, *others], strict=True))


@dataclass(frozen=True)
class Target:
    """Eq. 5's prediction in place of a prompt's, eps_hat = eps(c2) + alpha (eps(c2) - eps(c1)): what a prefix is trained to reach.

    The guidance scale s acts on eps_hat as on any prediction: eps_n + s (eps_hat - eps_n), with eps_n of the negative prompt.
    """

    attribute_prompts: Mapping[str, str]  # c1 -> c2
    alpha: float

    def corrector(self, model: Any, name_prompts: Sequence[str], negative: Tensor, scale: float) -> WeightedPrompts:
        """Score corrector for the contexts of B name prompts; `negative` is the context of the negative prompt, (1, 77, d)."""
        attributes = model.get_learned_conditioning([self.attribute_prompts[prompt] for prompt in name_prompts])  # (B, 77, d)
        contexts = torch.stack([negative.expand_as(attributes), attributes])
        return WeightedPrompts(contexts, [-self.alpha * scale, (1 + self.alpha) * scale])


def image_noise(seed: int, prompt: str, sample: int, shape: Sequence[int]) -> Tensor:
    """Initial noise z_T of an image, `shape` float32 on the CPU: a pure function of the arguments, with the prompt without prefix."""
    digest = hashlib.sha256(f"{seed}\n{sample}\n{prompt}".encode()).digest()
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1))


@torch.no_grad()
def generate(model, jobs: Iterable[Job], *, embedding_manager=None, ddim_steps: int = 20, scale: float = 7.0, seed: int = 0,
             batch_size: int = 16, negative_prompt: str = "", target: Target | None = None) -> Iterator[tuple[Job, np.ndarray]]:
    """Generate the image of each job; yields (job, image) in order, with images (H, W, 3) uint8 RGB. UserError if a pixel is not finite.

    An image depends on the model, the prefix, its job and the settings, but not on the other images of its batch.

    Args:
        model: LatentDiffusion.
        jobs: pairs (prompt, sample number); prompts are given without the placeholder.
        embedding_manager: holds the prefix, which is placed in front of each prompt, or a context map; not for the negative prompt.
        ddim_steps: number of DDIM steps, with eta = 0.
        scale: guidance scale.
        batch_size: images per batch; the U-Net's batch is twice as large.
        negative_prompt: prompt of the unconditional prediction.
        target: replaces the prediction of each prompt c1, whose noise the image keeps; None: no replacement.
    """
    sampler = DDIMSampler(model)
    shape = (model.channels, model.image_size, model.image_size)
    unconditional = model.get_negative_conditioning(negative_prompt)  # (1, 77, d); SDXL: (1, 78, d)
    jobs = iter(jobs)
    while batch := list(islice(jobs, batch_size)):
        prompts = list(dict.fromkeys(prompt for prompt, _ in batch))
        contexts = model.get_learned_conditioning(with_prefix(prompts, embedding_manager), embedding_manager)
        context = contexts[[prompts.index(prompt) for prompt, _ in batch]]  # (B, 77, d)
        noise = torch.stack([image_noise(seed, prompt, sample, shape) for prompt, sample in batch])
        guidance: dict[str, Any] = {"unconditional_guidance_scale": scale, "unconditional_conditioning": unconditional}
        if target:
            guidance = {"score_corrector": target.corrector(model, [prompt for prompt, _ in batch], unconditional, scale)}
        latent, _ = sampler.sample(ddim_steps, len(batch), shape, context, verbose=False, x_T=noise.to(model.device), **guidance)
        yield from zip(batch, to_uint8(model.decode_first_stage(latent)), strict=True)


def generate_shared(fabric: Devices, model, jobs: Sequence[Job], *, label: str, batch_size: int = 16, **settings) -> list[np.ndarray]:
    """The image of each job, in order, gathered on every rank. Each rank generates its shard of the batches by `generate`."""
    mine = share(fabric, lambda: batches_of(jobs, batch_size))
    images = [[image for _, image in generate(model, batch, batch_size=batch_size, **settings)]
             for batch in tqdm(mine, label, unit="batch", disable=not fabric.is_global_zero)]
    return list(chain(*gather(fabric, images)))


def batches_of(jobs: Sequence[Item], batch_size: int) -> list[Sequence[Item]]:
    """Split the items into batches of `batch_size`; the last may be smaller."""
    return [jobs[start:start + batch_size] for start in range(0, len(jobs), batch_size)]


def with_prefix(prompts: Sequence[str], embedding_manager=None) -> list[str]:
    """The prompts with the manager's first placeholder in front; unchanged without a manager, and with a context map, which has none."""
    placeholder = next(iter(embedding_manager.string_to_token_dict), "") if embedding_manager else ""
    return [f"{placeholder} {prompt}" if placeholder else prompt for prompt in prompts]


def warn_of_cut_texts(model, texts: Iterable[str], managers: Iterable = (), *, what: str = "prompts") -> None:
    """Warn about texts, given without the placeholder, that the text encoder truncates behind each manager's prefix (None: no prefix)."""
    embedder, texts = model.cond_stage_model, list(dict.fromkeys(texts))
    lengths = [len(ids) for ids in embedder.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]] if texts else []
    for m in sorted({0 if manager is None else manager.num_vectors for manager in managers}):
        room = embedder.max_length - 2 - m  # without begin and end of text
        cut, without = (sum(length > limit for length in lengths) for limit in (room, room + m))
        if cut:
            also = f"; {without} of them would without a prefix too" if m and without else ""
            behind = f"the {room} tokens that {m} vectors leave" if m else f"the text encoder's {room} tokens"
            warn(f"{cut} of {len(texts)} {what} ({cut / len(texts):.0%}) are longer than {behind} and lose their last words{also}")


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert images (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8 RGB; values are clamped. UserError if a pixel is not finite."""
    if not is_finite(image):
        raise UserError("the model has generated NaN or infinity where pixels should be, which would be a black image; give --precision "
                        "fp32, a smaller guidance scale, or another checkpoint or autoencoder")
    return ((image.float() + 1.0) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
