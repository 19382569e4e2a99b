"""U-Net that predicts the noise in a latent, eps(z_t, t, context) (paper section 3.1), with the public v1 key names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import normalization, timestep_embedding, zero_module
from ldm.util import refuse_other_architectures


class ResBlock(nn.Module):
    """Two convolutions with the timestep added between them: (B, channels, h, w) -> (B, out_channels, h, w)."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.in_layers = nn.Sequential(normalization(channels), nn.SiLU(),
                                       nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(normalization(out_channels), nn.SiLU(), nn.Dropout(dropout),
                                        zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row; each gets what it needs beside the feature map: the timestep embedding or the text context."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Noise prediction with cross-attention to a text context.

    Args:
        model_channels: width of the finest level; level i has model_channels * channel_mult[i] channels.
        num_res_blocks: residual blocks a level on the way down; the way up has one more.
        attention_resolutions: downsampling factors (1, 2, 4, ...) of the levels with transformer blocks.
        num_heads: attention heads at every level.
        context_dim: width of the text context.
    """

    def __init__(self, *, in_channels: int, out_channels: int, model_channels: int, channel_mult: Sequence[int],
                 num_res_blocks: int, attention_resolutions: Sequence[int], num_heads: int, context_dim: int,
                 dropout: float = 0.0, **other):
        super().__init__()
        refuse_other_architectures("UNetModel", other)
        self.model_channels = model_channels
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_channels), nn.SiLU(),
                                        nn.Linear(emb_channels, emb_channels))

        def stage(in_width: int, out_width: int, factor: int) -> list[nn.Module]:
            block = [ResBlock(in_width, emb_channels, out_width, dropout)]
            return block + [SpatialTransformer(out_width, num_heads, context_dim)] * (factor in attention_resolutions)

        channels = model_channels
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skip_channels = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = stage(channels, model_channels * mult, 2**level)
                channels = model_channels * mult
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skip_channels.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(channels)))
                skip_channels.append(channels)

        self.middle_block = TimestepEmbedSequential(ResBlock(channels, emb_channels, channels, dropout),
                                                    SpatialTransformer(channels, num_heads, context_dim),
                                                    ResBlock(channels, emb_channels, channels, dropout))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = stage(channels + skip_channels.pop(), model_channels * mult, 2**level)
                channels = model_channels * mult
                if level > 0 and i == num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(normalization(channels), nn.SiLU(),
                                 zero_module(nn.Conv2d(channels, out_channels, 3, padding=1)))

    @property
    def dtype(self) -> torch.dtype:
        return self.time_embed[0].weight.dtype

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """eps(z_t, tau(c), t).

        Args:
            x: noisy latent z_t, (B, in_channels, h, w); h and w divisible by 2 ** (levels - 1).
            timesteps: t, (B,).
            context: tau(c), (B, 77, context_dim).

        Returns:
            (B, out_channels, h, w), in the dtype of x.
        """
        sinusoids = timestep_embedding(timesteps, self.model_channels)  # (B, model_channels)
        emb = self.time_embed(sinusoids.to(self.dtype))  # (B, 4 model_channels)
        h, context = x.to(self.dtype), context.to(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h).to(x.dtype)
