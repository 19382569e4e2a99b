"""The alternating form of `--train_method apl-robust`: tokens that bring names back join S_ID (ours, in the manner of STEREO).

At the start of each round, an attack learns a token S* of k vectors behind the prefix, for each of some people of S_ID. Then the prefix is
trained on all tokens found so far: in the samples of S_ID that are attacked, S* stands in place of the name. c2 and the target (Eq. 5) are
the person's.

    S*   = argmin ||eps(x, tau_AP(c1 with S*), t) - eps(x, tau(c1), t)||^2
    L_ID = ||eps(x, tau_AP(c1 with S*), t) - target||^2
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.apl.fast_step import Batch
from ldm.apl.robust import with_attacks
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager

WORD = "sks"  # stands k times for the k vectors of a token


class WithToken:
    """EmbeddingHook for [AP] + B prompts, in each of which a block (B, k, d) takes the places of a word in order."""

    def __init__(self, prefix: Manager, block: Tensor, word: int):
        self.prefix, self.block, self.word = prefix, block, word

    def __call__(self, token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        """(B, 77, d); gradients reach prefix and block."""
        places = token_ids == self.word                                    # (B, 77)
        number = (places.cumsum(1) - 1) % self.block.shape[1]
        vectors = self.block[torch.arange(len(places), device=places.device)[:, None], number].to(token_embeddings)
        return self.prefix(token_ids, torch.where(places[..., None], vectors, token_embeddings))


class Tokens:
    """The tokens of all rounds, as the attack of `train_prefix`; its state is theirs and the prefix's.

    Args:
        word: token id of WORD.
        owners: for each of `Mixture.attacked`, whose image it is; numbers of `people` people.
        vectors: k.
        first_steps: first step of each round; a round begins before it.
        learn: learns the tokens of a round behind the prefix as it is, (people, k, d).
    """

    def __init__(self, model: LatentDiffusion, prefix: Manager, *, word: int, owners: Sequence[int], people: int, vectors: int,
                 first_steps: Sequence[int], learn: Callable[[], Tensor]):
        self.model, self.prefix, self.word, self.owners, self.first_steps, self.learn = model, prefix, word, owners, first_steps, learn
        like = next(prefix.embedding_parameters()).detach()
        self.learned = like.new_zeros(len(first_steps), people, vectors, like.shape[1])  # of rounds to come: zeros

    def __call__(self, step: int) -> Callable[[Batch, Tensor], Tensor]:
        """See `train_prefix`. Learns the tokens of a round before its first step."""
        if step in self.first_steps:
            self.learned[self.first_steps.index(step)] = self.learn().to(self.learned)
        return partial(self.context, sum(first <= step for first in self.first_steps))

    def context(self, rounds: int, batch: Batch, context: Tensor) -> Tensor:
        """`context` tau_AP(c1) of a batch (B, 77, d), with tokens of the first `rounds` rounds in the samples that are attacked."""
        def hook(attacked: Batch) -> WithToken:
            places = [divmod(seed, len(self.owners)) for seed in attacked.attack_seed.tolist()]
            block = torch.stack([self.learned[of_round % rounds, self.owners[image]] for of_round, image in places])
            return WithToken(self.prefix, block, self.word)

        return with_attacks(self.model, batch, context, hook)

    def state_dict(self) -> dict[str, Any]:
        return self.prefix.state_dict() | {"tokens": self.learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learned.copy_(state["tokens"])
        self.prefix.load_state_dict({key: value for key, value in state.items() if key != "tokens"})
