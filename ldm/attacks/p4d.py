"""P4D (arXiv 2309.06135): words whose prediction behind the prefix is the base model's for the name (L2)."""

import torch

from ldm.attacks.case import Case, Found, denoising_loss
from ldm.attacks.pez import projected_search
from ldm.attacks.service import FREE, Service


def p4d(case: Case, generator: torch.Generator, *, iterations: int, judge_every: int, lr: float, weight_decay: float,
        tokens: int | None = None, every: int | None = None) -> Found:
    """Words that lower MSE(eps_AP(z_t, words), eps(z_t, prompt)); of the judged ones those with the largest cosine.

    Args:
        judge_every: steps between two judged prompts.
        tokens: of P4D-N, whose prompt consists of as many free words; None for P4D-K.
        every: of P4D-K, which puts a free word in front of every so many tokens of the prompt; None for P4D-N.
    """
    service = case.service
    row = [FREE] * tokens if tokens else interleaved(service, case.prompt, every or 1)
    reference = Service(service.model).context_of(case.prompt)
    table, words = service.table[service.words.to(service.table.device)], service.words
    count = row.count(FREE)
    control = case.worded(row, service.random_words(count, generator))
    numbers = iter(range(iterations))
    search = projected_search(lambda vectors: denoising_loss(case, service.context([row], vectors), [next(numbers)], reference=reference),
                              table, table[torch.randint(len(table), (count,), generator=generator)],
                              iterations=iterations, lr=lr, weight_decay=weight_decay)
    best, most = control, -float("inf")
    for step, (chosen, _) in enumerate(search, start=1):
        if step % judge_every == 0 or step == iterations:
            found = case.worded(row, words[chosen.cpu()])
            cosine = case.judge(found).cosine if case.judge else step  # without queries the last words
            if cosine > most:
                best, most = found, cosine
    return Found([best], control)


def interleaved(service: Service, prompt: str, every: int) -> list[int]:
    """Token ids of a prompt with FREE in front of every `every` tokens and at the end, or at the next word where that is within a word."""
    token_ids = service.row(prompt)
    row: list[int] = []
    due, starts_word = True, True
    for number, token in enumerate(token_ids):
        due |= number % every == 0
        if due and starts_word:
            row, due = [*row, FREE], False
        row.append(token)
        starts_word = service.tokenizer.convert_ids_to_tokens([token])[0].endswith("</w>")
    return [*row, FREE] if due or len(token_ids) % every == 0 else row
