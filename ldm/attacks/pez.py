"""PEZ (arXiv 2302.03668): a prompt for given photos, searched with CLIP alone (L1: neither the model nor the prefix is used)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.attacks.case import Case, Found, nearest_rows
from ldm.attacks.service import FREE


def pez(case: Case, generator: torch.Generator, *, tokens: int, iterations: int, lr: float, weight_decay: float) -> Found:
    """The words with the largest mean cosine between their CLIP text features and the image features of the photos."""
    tokenizer = case.service.tokenizer
    encode = ClipText(case.clip.model, tokenizer.bos_token_id, tokenizer.eos_token_id)
    with torch.no_grad():
        pixels = torch.stack([case.clip.preprocess(Image.fromarray(photo)) for photo in case.photos])
        photos = F.normalize(case.clip.model.encode_image(pixels.to(encode.table.device)).float(), dim=1)  # (N, D)
    row, words = [FREE] * tokens, case.service.words
    table = encode.table[words.to(encode.table.device)]
    control = case.service.random_words(tokens, generator)
    best, least = control, float("inf")
    for chosen, loss in projected_search(lambda vectors: 1.0 - (encode(vectors) @ photos.T).mean(), table,
                                         table[torch.randint(len(table), (tokens,), generator=generator)],
                                         iterations=iterations, lr=lr, weight_decay=weight_decay):
        if loss < least:
            best, least = words[chosen.cpu()], loss
    return Found([case.worded(row, best)], case.worded(row, control))


def projected_search(loss_of: Callable[[Tensor], Tensor], table: Tensor, start: Tensor, *, iterations: int, lr: float,
                     weight_decay: float) -> Iterator[tuple[Tensor, float]]:
    """PEZ's search: the gradient is taken at the nearest rows of the table, and applied to continuous vectors.

    Args:
        loss_of: loss of vectors (k, d).
        table: (V, d), the rows that may be chosen.
        start: (k, d) first vectors.

    Yields:
        After each step, the rows (k,) that it was taken at, and their loss.
    """
    vectors = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=lr, weight_decay=weight_decay)
    for _ in range(iterations):
        chosen = nearest_rows(vectors.detach(), table)
        hard = table[chosen].clone().requires_grad_()
        loss = loss_of(hard)
        vectors.grad, = torch.autograd.grad(loss, [hard])
        optimizer.step()
        yield chosen, loss.item()


class ClipText:
    """Text features of an open_clip model from token embeddings; `start` and `end` are the tokens around a text."""

    def __init__(self, model: Any, start: int, end: int):
        self.model, self.start, self.end = model, start, end
        self.lookup: nn.Embedding = next(part for name, part in model.named_modules() if name.endswith("token_embedding"))
        self.table = self.lookup.weight.detach().float()  # (V, d)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Unit features (1, D) of a text of k tokens with these embeddings (k, d)."""
        count = len(vectors)
        token_ids = torch.zeros(1, self.model.context_length, dtype=torch.int64, device=vectors.device)
        token_ids[0, 0], token_ids[0, 1 + count] = self.start, self.end
        handle = self.lookup.register_forward_hook(lambda _table, _inputs, found: torch.cat(
            [found[:, :1], vectors[None].to(found), found[:, 1 + count:]], dim=1))
        try:
            return F.normalize(self.model.encode_text(token_ids).float(), dim=1)
        finally:
            handle.remove()
