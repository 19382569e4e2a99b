"""SDXL's two text encoders (arXiv 2307.01952, section 2.1), CLIP-L and OpenCLIP bigG: prompts -> context and pooled text.

Their names in the public checkpoint are `conditioner.embedders.0` and `.1`. The size conditioning has no weights and is in
ldm/models/diffusion/sdxl.py. Each encoder has its own hook for a learned prefix.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.encoders.modules import EmbeddingHook, FrozenCLIPEmbedder, TextEncoder, clip_tokenizer
from ldm.util import instantiate_from_config, refuse_other_architectures


class FrozenOpenCLIPEmbedder2(nn.Module):
    """OpenCLIP's text transformer, penultimate layer and pooled output; the default sizes are those of ViT-bigG-14."""

    def __init__(self, *, width: int = 1280, layers: int = 32, heads: int = 20, embed_dim: int = 1280, max_length: int = 77, **other):
        super().__init__()
        refuse_other_architectures("FrozenOpenCLIPEmbedder2", other)
        from open_clip.transformer import TextTransformer

        self.max_length, self.pooled_width = max_length, embed_dim
        self.tokenizer = clip_tokenizer(max_length)
        self.model = TextTransformer(max_length, len(self.tokenizer), width, heads, layers, output_dim=embed_dim)
        with torch.device("cpu"):  # not on the meta device: checkpoints do not contain it
            self.model.register_buffer("attn_mask", self.model.build_causal_mask(), persistent=False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.token_embedding

    def context(self, token_ids: Tensor, embedding_hook: EmbeddingHook | None = None) -> tuple[Tensor, Tensor]:
        """Penultimate hidden states (B, 77, width), and the projected state at the first end-of-text token (B, embed_dim).

        Args:
            token_ids: (B, 77); the tokens after the first end-of-text token are read as 0, OpenCLIP's padding.
            embedding_hook: see FrozenCLIPEmbedder; it may move the end of the text.
        """
        model, table = self.model, self.get_input_embeddings()
        token_ids = token_ids.masked_fill((token_ids == self.tokenizer.eos_token_id).cumsum(1) > 1, 0)
        tokens = table(token_ids)                                                          # (B, 77, width)
        if embedding_hook is not None:
            tokens = embedding_hook(token_ids, tokens)
        end = (tokens == table.weight[self.tokenizer.eos_token_id]).all(-1).int().argmax(1)  # (B,) its position after the hook
        hidden = tokens + model.positional_embedding
        for block in model.transformer.resblocks[:-1]:
            hidden = block(hidden, attn_mask=model.attn_mask)
        last = model.ln_final(model.transformer.resblocks[-1](hidden, attn_mask=model.attn_mask))
        return hidden, last[torch.arange(len(end), device=end.device), end] @ model.text_projection


class GeneralConditioner(TextEncoder):
    """Both text encoders of SDXL, from the configs of a FrozenCLIPEmbedder and a FrozenOpenCLIPEmbedder2, with the former's interface.

    A context has one row more than there are tokens: 77 rows of both encoders' states, and the pooled text, padded with zeros, so that
    samplers and caches handle SDXL's contexts like any others.
    """

    def __init__(self, *, emb_models: Sequence[Mapping[str, Any]]):
        super().__init__()
        self.embedders = nn.ModuleList(instantiate_from_config(config) for config in emb_models)
        self.tokenizer, self.max_length = self.first.tokenizer, self.first.max_length  # both encoders share the vocabulary

    @property
    def first(self) -> FrozenCLIPEmbedder:
        return cast(FrozenCLIPEmbedder, self.embedders[0])

    @property
    def second(self) -> FrozenOpenCLIPEmbedder2:
        return cast(FrozenOpenCLIPEmbedder2, self.embedders[1])

    @property
    def context_shape(self) -> tuple[int, int]:
        """Rows and width of a context, (78, 2048) for SDXL."""
        return self.max_length + 1, sum(encoder.get_input_embeddings().embedding_dim for encoder in (self.first, self.second))

    def context(self, token_ids: Tensor, embedding_hook: Any = None) -> Tensor:
        """Context, (B, 78, 2048), of token ids (B, 77) padded with the end-of-text token; `embedding_hook` has a pair `hooks`."""
        first_hook, second_hook = (None, None) if embedding_hook is None else embedding_hook.hooks
        states, pooled = self.second.context(token_ids, second_hook)
        states = torch.cat([self.first.context(token_ids, first_hook), states], dim=2)     # (B, 77, 2048)
        return torch.cat([states, F.pad(pooled, (0, states.shape[2] - pooled.shape[1]))[:, None]], dim=1)
