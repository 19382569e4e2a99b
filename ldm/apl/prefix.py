"""The anonymization prompt [AP] = [V_1]..[V_m] of a frozen model (paper section 3.3, Eq. 2)."""

import torch
from torch import nn

from ldm.modules.embedding_manager import INITIALIZATIONS, EmbeddingManager
from ldm.util import UserError


def build_prefix(model: nn.Module, *, placeholder: str = "alz", num_vectors: int = 10, init: str = "uniform01",
                 initializer_words: str | None = None, seed: int = 0) -> EmbeddingManager:
    """Prefix of (m, d) numbers that stands for `placeholder`; from here on nothing else has a gradient.

    Args:
        model: LatentDiffusion; its parameters stop requiring gradients.
        placeholder: a word of one CLIP token.
        num_vectors: m.
        init: "uniform01" or "vocab", see EmbeddingManager, or the file of a prefix with m vectors.
        initializer_words: a text whose token embeddings start the vectors instead.
        seed: of the initial draw.

    Raises:
        UserError: the placeholder is no single token, a value is out of range, or the file holds no prefix of this model.
    """
    model.requires_grad_(False)
    words = None if initializer_words is None else [initializer_words]
    drawn = init if init in INITIALIZATIONS else INITIALIZATIONS[0]
    prefix = EmbeddingManager(model.cond_stage_model, [placeholder], words, num_vectors, init=drawn,
                              generator=torch.Generator().manual_seed(seed))
    if init not in INITIALIZATIONS:
        prefix.load(init)
        counts = [len(vectors) for vectors in prefix.embedding_parameters()]
        if counts != [num_vectors]:
            raise UserError(f"{init} holds {' and '.join(map(str, counts))} vectors where --num_vectors {num_vectors} are to be "
                            "learned; give a file with as many, or the other number")
    return prefix
