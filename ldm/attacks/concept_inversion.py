"""Concept inversion (CCE, arXiv 2308.01508): an uploaded embedding of the person (L3), from photos or from the name alone."""

import torch

from ldm.attacks.case import Case, Found, denoising_loss
from ldm.attacks.service import UPLOAD, Service, Submission
from ldm.finetuning.samples import rng_of


def concept_inversion(case: Case, generator: torch.Generator, *, from_photos: bool, vectors: int, templates: list[str], start: str,
                      iterations: int, batch_size: int, lr: float, weight_decay: float) -> Found:
    """k vectors S* that lower MSE(n, eps_AP(z_t, template with S*)), or without photos MSE(eps(z_t, template with the name), the same).

    Without photos, z_t is of images that the base model generates for the name. `case.service` has the prefix if S* is learned behind it;
    the result is used behind the prefix in both cases.

    Args:
        vectors: k.
        templates: prompts with {name} in place of the name, in turn by chance.
        start: class word, whose token embeddings are the first vectors.
    """
    service, base = case.service, Service(case.service.model)
    first = service.row(start)
    learned = service.table[[first[number % len(first)] for number in range(vectors)]].clone().requires_grad_()
    optimizer = torch.optim.AdamW([learned], lr=lr, weight_decay=weight_decay)
    with torch.no_grad():
        named = torch.cat([base.context_of(template.replace("{name}", case.name)) for template in templates])
    for step in range(iterations):
        numbers = range(step * batch_size, (step + 1) * batch_size)
        chosen = [rng_of(1, number).randrange(len(templates)) for number in numbers]
        rows = [service.row(templates[one].replace("{name}", UPLOAD), learned) for one in chosen]
        loss = denoising_loss(case, service.context(rows, learned), numbers, reference=None if from_photos else named[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prompt = case.filled(UPLOAD)
    control = service.table[service.random_words(vectors, generator)]
    return Found([Submission(prompt, vectors=learned.detach())], Submission(prompt, vectors=control))
