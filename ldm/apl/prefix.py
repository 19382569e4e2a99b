"""The anonymization prompt [AP] = [V_1]..[V_m] of a frozen model (paper section 3.3, Eq. 2), and the context map in its place."""

import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.context_map import ContextMap, context_width, text_encoder_hash
from ldm.modules.embedding_manager import INITIALIZATIONS, EmbeddingManager, manager_for
from ldm.util import UserError


def build_prefix(model: LatentDiffusion, *, placeholder: str = "alz", num_vectors: int = 10, init: str = "uniform01",
                 initializer_words: str | None = None, seed: int = 0) -> EmbeddingManager:
    """Build the prefix, (m, d) vectors for each text encoder, and freeze the model: only the vectors require gradients.

    Args:
        placeholder: word that stands for the prefix in a prompt; one CLIP token.
        num_vectors: m.
        init: "uniform01" or "vocab", see EmbeddingManager, or the file of a prefix with m vectors.
        initializer_words: a text whose token embeddings initialize the vectors instead.

    Raises:
        UserError: the placeholder is no single token, a value is out of range, or the file holds no prefix of this model.
    """
    model.requires_grad_(False)
    words = None if initializer_words is None else [initializer_words]
    is_file = init not in INITIALIZATIONS
    prefix = manager_for(model.cond_stage_model, [placeholder], words, num_vectors, init=INITIALIZATIONS[0] if is_file else init,
                         generator=torch.Generator().manual_seed(seed))
    if is_file:
        wanted = [len(vectors) for vectors in prefix.embedding_parameters()]  # num_vectors for each text encoder
        prefix.load(init)
        counts = [len(vectors) for vectors in prefix.embedding_parameters()]
        if counts != wanted:
            raise UserError(f"{init} holds {' and '.join(map(str, counts))} vectors where --num_vectors {num_vectors} are to be "
                            "learned; give a file with as many, or the other number")
    return prefix


def build_context_map(model: LatentDiffusion, *, rank: int = 16, seed: int = 0) -> ContextMap:
    """Build a context map that is the identity, W = U V^T of rank r (0: a full matrix), and freeze the model; `seed` is that of V.

    Raises:
        UserError: the rank is out of range, or the model has two text encoders.
    """
    model.requires_grad_(False)
    embedder = model.cond_stage_model
    context_map = ContextMap(context_width(embedder), rank, generator=torch.Generator().manual_seed(seed))
    context_map.text_encoder = text_encoder_hash(embedder)
    return context_map.to(next(embedder.parameters()).device)
