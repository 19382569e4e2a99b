"""Textual inversion (arXiv 2208.01618): a new token learns what some photos show; nothing else in the model changes.

As an attack (as in arXiv 2308.01508), the anonymization prompt stands in front while the token is learned. It is also the first stage of
Forget-Me-Not.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ldm.contents import digest, hashes_of
from ldm.data.templates import fill
from ldm.finetuning.samples import ImageLatents, Work, dtype_of, noise_of, rng_of, timesteps_of
from ldm.finetuning.trainer import FinetuningSettings, adam, training_step
from ldm.generation import with_prefix
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_file import write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.run_folder import safe_name
from ldm.sharing import OneDevice, share

NAME_TOKEN, NAME_VECTORS = "sks", 4  # of Forget-Me-Not's first stage
NAME_OPTIMIZER: dict[str, Any] = {"batch_size": 1, "lr": 1e-3, "weight_decay": 0.1}


class TokenVectors:
    """The vectors of one placeholder of a manager, which are trained; its others stay."""

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
        """An embedding file of this placeholder alone."""
        write_embedding_file(path, {self.token: self.vectors.detach()}, {self.token: self.manager.string_to_token_dict[self.token]},
                             step=step, metadata=metadata)


class TextualInversion:
    """Training samples: one of the photos, noised, and a template with the token in it.

    Args:
        vectors: what is trained.
        photos: encoded.
        templates: with {} for the token.
        phrase: what stands in the templates, the token among it.
        prefixed: the manager's first placeholder stands in front of every prompt.
    """

    def __init__(self, model: LatentDiffusion, vectors: TokenVectors, photos: ImageLatents, *, templates: Sequence[str], phrase: str,
                 prefixed: bool, seed: int):
        self.model, self.trained, self.photos = model, vectors, photos
        self.templates, self.phrase, self.prefixed, self.seed = templates, phrase, prefixed, seed

    def loss(self, numbers: range) -> Tensor:
        """See `ldm.finetuning.trainer.Method`."""
        rngs = [rng_of(self.seed, number) for number in numbers]
        latent = self.photos([rng.randrange(len(self.photos.sources)) for rng in rngs], rngs)
        prompts = [fill(rng.choice(self.templates), self.phrase) for rng in rngs]
        timestep, noise = timesteps_of(self.model, rngs), noise_of(self.model, rngs)
        manager = self.trained.manager
        context = self.model.get_learned_conditioning(with_prefix(prompts, manager if self.prefixed else None), manager)
        eps = self.model.apply_model(self.model.q_sample(latent, timestep, noise), timestep, context)
        return F.mse_loss(eps.float(), noise)


def tokens_of_names(work: Work, pictures: ImageLatents, of_name: Mapping[str, Sequence[int]], *, template: str, iterations: int,
                    seed: int, model_hash: str, folder: Path) -> dict[str, EmbeddingManager]:
    """For each name the vectors that textual inversion finds for its pictures, learned by all devices together and kept in files.

    Args:
        pictures: of all names; with the numbers of each name's.
        template: prompt of the pictures, with {}.
        iterations: for each name.
        folder: where the files are; those of the same settings are not learned again.
    """
    fabric, model = work.fabric, pictures.model
    taken = dict(of_name), hashes_of(pictures.sources, folder / "hashes.json")
    key = digest(template, iterations, seed, model_hash, dtype_of(model), taken)
    files = {name: folder / f"tokens-{key}" / f"{safe_name(name)}.pt" for name in of_name}
    missing = share(fabric, lambda: [name for name, path in files.items() if not path.exists()])
    settings = FinetuningSettings(iterations=iterations, **NAME_OPTIMIZER)
    for name in tqdm(missing, "textual inversion", unit="name", disable=not fabric.is_global_zero):
        photos = ImageLatents(model, [pictures.sources[number] for number in of_name[name]])
        method = TextualInversion(model, TokenVectors(manager_of_name(model, name, seed), NAME_TOKEN), photos, templates=[template],
                                  phrase=NAME_TOKEN, prefixed=False, seed=seed)
        optimizer = adam(method, settings)
        for step in range(1, iterations + 1):
            training_step(OneDevice(), method, optimizer, settings, step)
        method.trained.save(files[name], step=iterations)
        if fabric.is_global_zero:
            work.kept()
    fabric.barrier()
    managers = {name: manager_of_name(model, name, seed) for name in of_name}
    for name, manager in managers.items():
        manager.load(files[name])
    return managers


def manager_of_name(model: LatentDiffusion, name: str, seed: int) -> EmbeddingManager:
    """The first NAME_VECTORS token embeddings of a name, and drawn ones where it has fewer."""
    embedder = model.cond_stage_model
    manager = EmbeddingManager(embedder, [NAME_TOKEN], num_vectors_per_token=NAME_VECTORS, init="vocab",
                               generator=torch.Generator().manual_seed(seed))
    token_ids = embedder.tokenizer(name, add_special_tokens=False)["input_ids"][:NAME_VECTORS]
    with torch.no_grad():
        manager.string_to_param_dict[NAME_TOKEN][:len(token_ids)] = embedder.get_input_embeddings().weight[token_ids].float()
    return manager
