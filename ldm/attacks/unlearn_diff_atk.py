"""UnlearnDiffAtk (arXiv 2310.11868): words in front of the prompt, searched as distributions over words (L2; without prefix L1)."""

from typing import Any

import torch
from torch import Tensor

from ldm.attacks.case import Case, Found, denoising_loss
from ldm.attacks.service import FREE


def unlearn_diff_atk(case: Case, generator: torch.Generator, *, tokens: int, timesteps: int, updates: int, lr: float,
                     weight_decay: float) -> Found:
    """Words that lower MSE(n, eps_AP(z_t, [words][prompt])).

    Each row of W (tokens, V) is a distribution over words, from which a word is sampled per update. The timesteps are visited in ascending
    order; after each of them the likeliest words are judged, and the first success ends the search.

    Args:
        tokens: number of words.
        timesteps: number of timesteps, equally spaced.
        updates: of W per timestep, each with one sample.
    """
    service = case.service
    row, table = [FREE] * tokens + service.row(case.prompt), service.table[service.words.to(service.table.device)]  # (V, d)
    weights = project_on_simplex(torch.rand(tokens, len(table), generator=generator)).to(table.device).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=lr, weight_decay=weight_decay)
    control = case.worded(row, service.random_words(tokens, generator))
    total = service.model.num_timesteps
    found = control
    for number in range(timesteps):
        for update in range(updates):
            one_hot = SampledWords.apply(weights, generator)  # (tokens, V)
            loss = denoising_loss(case, service.context([row], one_hot @ table), [number * updates + update],
                                  timestep=(2 * number + 1) * total // (2 * timesteps))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                weights.copy_(project_on_simplex(weights))
        found = case.worded(row, service.words[weights.argmax(1).cpu()])
        if case.judge and case.judge(found).success:
            break
    return Found([found], control)


class SampledWords(torch.autograd.Function):
    """One-hot rows sampled from distributions (k, V); the gradient passes straight through, each entry clipped to [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(weights.detach().cpu(), 1, generator=generator).to(weights.device)
        return torch.zeros_like(weights).scatter_(1, chosen, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.clamp(-1.0, 1.0), None


def project_on_simplex(rows: Tensor) -> Tensor:
    """The nearest points, by Euclidean distance, with entries of at least 0 that sum to 1; rows (k, V)."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - 1.0) / torch.arange(1, rows.shape[1] + 1, device=rows.device)  # (k, V): the shift if j entries stay
    kept = (ordered > excess).sum(1, keepdim=True)
    return (rows - excess.gather(1, kept - 1)).clamp_min(0.0)
