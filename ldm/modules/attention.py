"""Transformer blocks of the U-Net: self-attention over pixels, cross-attention to the text, gated feed-forward."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.diffusionmodules.util import Groups, normalization, zero_module


class CrossAttention(nn.Module):
    """Multi-head attention from x (B, n, query_dim) to context (B, k, context_dim), or to x itself without context."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64):
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (projection.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n or k, dim_head)
                   for projection in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v: (B, heads, n, d), (B, heads, k, d) twice -> (B, heads, n, d)."""
        return F.scaled_dot_product_attention(q, k, v)


class GEGLU(nn.Module):
    """Linear layer in which one half of the outputs gates the other: (..., dim_in) -> (..., dim_out)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm and with a residual connection."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int):
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=heads, dim_head=dim_head)
        # The identity replaces a dropout of the public model, so that the last layer is named `ff.net.2`.
        self.ff = nn.Sequential(OrderedDict(net=nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))))
        self.attn2 = CrossAttention(dim, context_dim, heads=heads, dim_head=dim_head)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of a feature map x (B, C, h, w) that reads the text context (B, 77, context_dim).

    Args:
        depth: number of transformer blocks.
        linear: store proj_in and proj_out as linear layers (SDXL) instead of 1 x 1 convolutions (v1).
    """

    def __init__(self, channels: int, heads: int, context_dim: int, depth: int, linear: bool, num_groups: Groups):
        super().__init__()
        projection: Callable[[int, int], nn.Conv2d | nn.Linear] = nn.Linear if linear else partial(nn.Conv2d, kernel_size=1)
        self.norm = normalization(channels, num_groups, eps=1e-6)
        self.proj_in = projection(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, channels // heads, context_dim) for _ in range(depth))
        self.proj_out = projection(channels, channels)
        zero_module(self.proj_out)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = over_pixels(self.proj_in, self.norm(x).flatten(2).transpose(1, 2))  # (B, h * w, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        h = over_pixels(self.proj_out, h)
        return x + h.transpose(1, 2).unflatten(-1, x.shape[-2:])  # (B, C, h, w)


def over_pixels(projection: nn.Conv2d | nn.Linear, pixels: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution as a linear layer over pixels (B, n, C), which is faster."""
    return F.linear(pixels, projection.weight.flatten(1), projection.bias)
