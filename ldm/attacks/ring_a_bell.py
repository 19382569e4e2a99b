"""Ring-A-Bell (arXiv 2310.10012): words near the name's direction in the text encoder, by genetic search (L1; fitness with prefix: L2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.attacks.case import Case, Found
from ldm.attacks.service import FREE, Service

BATCH = 64  # prompts per evaluation of the text encoder


@torch.no_grad()
def ring_a_bell(case: Case, generator: torch.Generator, *, tokens: int, strength: float, population: int, generations: int,
                templates: Sequence[str], class_word: str) -> Found:
    """Words whose context behind the prefix is near tau(neutral prompt) + strength * v.

    v is the mean over templates of tau(template with the name) - tau(template with the class word).
    """
    base, service = Service(case.service.model), case.service

    def contexts(text: str) -> Tensor:
        return base.context([base.row(template.replace("{name}", text)) for template in templates])

    concept = (contexts(case.name) - contexts(class_word)).mean(0, keepdim=True)  # v, (1, 77, d)
    target = base.context_of(case.filled(class_word)) + strength * concept

    def distances(candidates: Tensor) -> Tensor:
        """Squared distance to the target for token ids (N, tokens); (N,)."""
        return torch.cat([(service.context(rows.tolist()) - target).square().sum((1, 2)).cpu() for rows in candidates.split(BATCH)])

    best = genetic_search(distances, service.words, tokens, population=population, generations=generations, generator=generator)
    row = [FREE] * tokens
    return Found([case.worded(row, best)], case.worded(row, service.random_words(tokens, generator)))


def genetic_search(distances: Callable[[Tensor], Tensor], words: Tensor, tokens: int, *, population: int, generations: int,
                   generator: torch.Generator) -> Tensor:
    """Token ids (tokens,) of small distance.

    Per generation the better half survives; each survivor crosses with a random partner with probability 1/2, at one cut, and both children
    join; then each but the best mutates with probability 1/4, at one place, but not in the last generation.

    Args:
        distances: token ids (N, tokens) -> (N,), to be minimized.
        words: token ids that may occur.
    """
    def chance(count: int, probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    def random(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    survivors = words[random(len(words), population * tokens)].view(population, tokens)
    for number in range(generations):
        survivors = survivors[distances(survivors).argsort()[:population // 2]]
        if number == generations - 1:
            break
        count = len(survivors)
        partners, cuts = survivors[random(count, count)], random(tokens, count)
        front = torch.arange(tokens) < cuts[:, None]  # (count, tokens)
        crossed = chance(count, 0.5)
        children = [torch.where(front, survivors, partners)[crossed], torch.where(front, partners, survivors)[crossed]]
        survivors = torch.cat([survivors, *children])
        mutated = chance(len(survivors), 0.25)
        mutated[0] = False
        places = mutated.nonzero()[:, 0]
        survivors[places, random(tokens, len(places))] = words[random(len(words), len(places))]
    return survivors[0]
