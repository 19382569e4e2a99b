"""The prefix in front of a text without a placeholder: m vectors after the begin-of-text token (paper section 3.3, Eq. 2).

EmbeddingManager replaces a word of the prompt by the vectors; FrontHook inserts them at the front of every text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FrontHook:
    """EmbeddingHook of FrozenCLIPEmbedder; gives the same bits as EmbeddingManager with the placeholder as the first word."""

    vectors: Tensor  # (m, d)
    end_of_text: int  # token id
    untouched: Sequence[bool] = ()  # True for texts of the batch that keep their own embeddings; () for none

    def __call__(self, token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        """Token embeddings (B, L, d) with the vectors after the first token, and the rest m positions to the right."""
        source = self.sources(token_ids)
        inserted = self.fill(token_embeddings.gather(1, source[..., None].expand_as(token_embeddings)))
        if not any(self.untouched):
            return inserted
        untouched = torch.tensor(self.untouched, device=token_embeddings.device)
        return torch.where(untouched[:, None, None], token_embeddings, inserted)

    def extra_length(self, token_ids: Tensor) -> Tensor:
        """Positions that the vectors take: m for the first of n tokens (n, 1) of one text, m for each whole text in (B, L)."""
        first = torch.arange(len(token_ids), device=token_ids.device) == 0
        return len(self.vectors) * (first | (token_ids.shape[1] > 1)).long()

    def sources(self, token_ids: Tensor) -> Tensor:
        """(B, L) int64: index of the token at each position, 0 (begin of text) at the positions of the vectors.

        Tokens pushed past L are dropped, except that the end of the text then takes the last position. Padding may be any token.
        """
        length, m = token_ids.shape[1], len(self.vectors)
        source = (torch.arange(length, device=token_ids.device) - m).clamp_min(0).repeat(len(token_ids), 1)
        ends = (token_ids[:, length - m:] == self.end_of_text).int()  # (B, m): among the dropped
        source[:, -1] = torch.where(ends.any(1), length - m + ends.argmax(1), source[:, -1])
        return source

    def fill(self, token_embeddings: Tensor) -> Tensor:
        """(B, L, d) with the vectors in place of positions 1 to m."""
        vectors = self.vectors.to(token_embeddings).expand(len(token_embeddings), -1, -1)
        return torch.cat([token_embeddings[:, :1], vectors, token_embeddings[:, 1 + len(self.vectors):]], dim=1)
