"""Textual inversion (arXiv 2208.01618): learns the vector of a new token from photos; the model stays frozen.

As an attack (see arXiv 2308.01508), the token is learned with the anonymization prompt in front of it. It is also the first stage of
Forget-Me-Not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ldm.contents import digest, hashes_of
from ldm.data.benchmarks import fill
from ldm.finetuning.samples import ImageLatents, noise_of, rng_of, timesteps_of
from ldm.finetuning.trainer import FinetuningSettings, adam, training_step
from ldm.generation import with_prefix
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_file import write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.run_folder import safe_name
from ldm.sharing import Devices, OneDevice, share

NAME_TOKEN, NAME_VECTORS = "sks", 4  # of Forget-Me-Not's first stage


class TokenVectors:
    """Trainable vectors of one placeholder of a manager; its other placeholders stay frozen."""

    def __init__(self, manager: EmbeddingManager, token: str):
        self.manager, self.token = manager, token
        manager.requires_grad_(False)
        self.vectors = manager.string_to_param_dict[token].requires_grad_(True)

    def parameters(self) -> Iterator[Tensor]:
        return iter([self.vectors])

    def state_dict(self) -> dict[str, Any]:
        return self.manager.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.manager.load_state_dict(state)

    def save(self, path: Path, *, step: int, **metadata: Any) -> None:
        """Write an embedding file with only this placeholder."""
        write_embedding_file(path, {self.token: self.vectors.detach()}, {self.token: self.manager.string_to_token_dict[self.token]},
                             step=step, metadata=metadata)


@dataclass
class TextualInversion:
    """Textual inversion as a `ldm.finetuning.trainer.Method`. A training sample is a photo and a template filled with the token."""

    model: LatentDiffusion
    trained: TokenVectors
    photos: ImageLatents
    templates: Sequence[str]  # with {}
    phrase: str               # text with the token that fills the templates
    prefixed: bool            # put the manager's first placeholder in front of every prompt
    seed: int

    def loss(self, numbers: range) -> Tensor:
        rngs = [rng_of(self.seed, number) for number in numbers]
        latent = self.photos([rng.randrange(len(self.photos.sources)) for rng in rngs], rngs)
        prompts = [fill(rng.choice(self.templates), self.phrase) for rng in rngs]
        timestep, noise = timesteps_of(self.model, rngs), noise_of(self.model, rngs)
        manager = self.trained.manager
        context = self.model.get_learned_conditioning(with_prefix(prompts, manager if self.prefixed else None), manager)
        eps = self.model.apply_model(self.model.q_sample(latent, timestep, noise), timestep, context)
        return F.mse_loss(eps.float(), noise)


def tokens_of_names(fabric: Devices, images: ImageLatents, of_name: Mapping[str, Sequence[int]], *, template: str, iterations: int,
                    seed: int, model_hash: str, folder: Path, kept: Callable[[], None] = lambda: None) -> dict[str, EmbeddingManager]:
    """Vectors for each name, learned from its images by textual inversion. All devices share the names; files cache the vectors.

    Args:
        images: images of all names.
        of_name: name -> indices of its images.
        template: prompt template of the images, with {}.
        iterations: optimizer steps per name.
        folder: folder of the cached files; those of the same settings are reused.
        kept: called on rank 0 after each file.
    """
    model = images.model
    taken = dict(of_name), hashes_of(images.sources, folder / "hashes.json")
    key = digest(template, iterations, seed, model_hash, str(model.model.diffusion_model.dtype), taken)
    files = {name: folder / f"tokens-{key}" / f"{safe_name(name)}.pt" for name in of_name}
    missing = share(fabric, lambda: [name for name, path in files.items() if not path.exists()])
    settings = FinetuningSettings(iterations, batch_size=1, lr=1e-3, weight_decay=0.1)
    for name in tqdm(missing, "textual inversion", unit="name", disable=not fabric.is_global_zero):
        photos = ImageLatents(model, [images.sources[number] for number in of_name[name]])
        method = TextualInversion(model, TokenVectors(manager_of_name(model, name, seed), NAME_TOKEN), photos, templates=[template],
                                  phrase=NAME_TOKEN, prefixed=False, seed=seed)
        optimizer = adam(method, settings)
        for step in range(1, iterations + 1):
            training_step(OneDevice(), method, optimizer, settings, step)
        method.trained.save(files[name], step=iterations)
        if fabric.is_global_zero:
            kept()
    fabric.barrier()
    managers = {name: manager_of_name(model, name, seed) for name in of_name}
    for name, manager in managers.items():
        manager.load(files[name])
    return managers


def manager_of_name(model: LatentDiffusion, name: str, seed: int) -> EmbeddingManager:
    """Manager with the first NAME_VECTORS token embeddings of a name, filled up with random ones if the name has fewer tokens."""
    embedder = model.cond_stage_model
    manager = EmbeddingManager(embedder, [NAME_TOKEN], num_vectors_per_token=NAME_VECTORS, init="vocab",
                               generator=torch.Generator().manual_seed(seed))
    token_ids = embedder.tokenizer(name, add_special_tokens=False)["input_ids"][:NAME_VECTORS]
    with torch.no_grad():
        manager.string_to_param_dict[NAME_TOKEN][:len(token_ids)] = embedder.get_input_embeddings().weight[token_ids].float()
    return manager
