"""The prefix in front of a text without a placeholder: m vectors behind the begin-of-text token (paper section 3.3, Eq. 2).

EmbeddingManager puts the vectors where a word of the prompt says so; FrontHook puts them in front of every text, whatever it holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FrontHook:
    """An EmbeddingHook of FrozenCLIPEmbedder; the same bits as EmbeddingManager's with the placeholder as the first word."""

    vectors: Tensor  # (m, d)
    end_of_text: int  # token id
    untouched: Sequence[bool] = ()  # texts of the batch that keep their own embeddings; () for none

    def __call__(self, token_ids: Tensor, token_embeddings: Tensor) -> Tensor:
        """Token embeddings (B, L, d) with the vectors behind the first token, and the rest m positions to the right."""
        source = self.sources(token_ids)
        inserted = self.fill(token_embeddings.gather(1, source[..., None].expand_as(token_embeddings)))
        if not any(self.untouched):
            return inserted
        untouched = torch.tensor(self.untouched, device=token_embeddings.device)
        return torch.where(untouched[:, None, None], token_embeddings, inserted)

    def extra_length(self, token_ids: Tensor) -> Tensor:
        """Positions that the vectors take: of n tokens of one text, (n, 1), the first takes m; of whole texts (B, L) each does."""
        first = torch.arange(len(token_ids), device=token_ids.device) == 0
        return len(self.vectors) * (first | (token_ids.shape[1] > 1)).long()

    def sources(self, token_ids: Tensor) -> Tensor:
        """(B, L) int64: the token that each position shows, 0 (begin of text) where the vectors come.

        What is pushed past L is dropped; if the end of the text is, it takes the last position. Padding may be any token.
        """
        length, m = token_ids.shape[1], len(self.vectors)
        source = (torch.arange(length, device=token_ids.device) - m).clamp_min(0).repeat(len(token_ids), 1)
        ends = (token_ids[:, length - m:] == self.end_of_text).int()  # (B, m): among the dropped
        source[:, -1] = torch.where(ends.any(1), length - m + ends.argmax(1), source[:, -1])
        return source

    def fill(self, token_embeddings: Tensor) -> Tensor:
        """(B, L, d) with the vectors at the positions 1 to m, in place of what stands there."""
        vectors = self.vectors.to(token_embeddings).expand(len(token_embeddings), -1, -1)
        return torch.cat([token_embeddings[:, :1], vectors, token_embeddings[:, 1 + len(self.vectors):]], dim=1)
