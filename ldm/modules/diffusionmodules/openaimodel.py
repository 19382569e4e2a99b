"""U-Net that predicts the noise in a latent, eps(z_t, t, context) (paper section 3.2), with the key names of public v1 and SDXL files."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import NUM_GROUPS, Groups, normalization, timestep_embedding, upsample, zero_module
from ldm.public_names import absent_names
from ldm.util import UserError, refuse_other_architectures

__getattr__ = absent_names(__name__)


class ResBlock(nn.Module):
    """Two convolutions with the timestep added between them: (B, channels, h, w) -> (B, out_channels, h, w)."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, dropout: float, norm_num_groups: Groups):
        super().__init__()
        self.in_layers = nn.Sequential(normalization(channels, norm_num_groups), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(normalization(out_channels, norm_num_groups), nn.SiLU(), nn.Dropout(dropout),
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


class TimestepEmbedSequential(nn.Sequential):
    """Layers in sequence; a ResBlock also receives the timestep embedding, a SpatialTransformer the text context."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            further = (emb,) if isinstance(layer, ResBlock) else (context,) if isinstance(layer, SpatialTransformer) else ()
            x = layer(x, *further)
        return x


class UNetModel(nn.Module):
    """Noise prediction with cross-attention to a text context; the defaults of the last six arguments are Stable Diffusion v1's.

    Args:
        model_channels: width of the finest level; level i has model_channels * channel_mult[i] channels.
        num_res_blocks: residual blocks per level on the way down; the way up has one more.
        attention_resolutions: downsampling factors (1, 2, 4, ...) of the levels with transformer blocks.
        num_heads: attention heads at every level; -1 if num_head_channels determines them.
        context_dim: width of the text context.
        num_head_channels: channels of one attention head, so that wide levels have more heads; -1 if num_heads determines them.
        transformer_depth: number of transformer blocks, for all levels or one number per level; the middle has that of the last.
        use_linear_in_transformer: linear layers before and after the transformer blocks, instead of v1's 1 x 1 convolutions.
        num_classes: "sequential" for a vector y in addition to the text, as SDXL has it; None for no vector.
        adm_in_channels: width of y; SDXL's is the pooled text (1280) and sinusoids of six sizes in pixels (256 each).
        norm_num_groups: groups of the group normalizations; one number, as in public models, or a number per width.
    """

    def __init__(self, *, in_channels: int, out_channels: int, model_channels: int, channel_mult: Sequence[int], num_res_blocks: int,
                 attention_resolutions: Sequence[int], context_dim: int, num_heads: int = -1, dropout: float = 0.0,
                 num_head_channels: int = -1, transformer_depth: int | Sequence[int] = 1, use_linear_in_transformer: bool = False,
                 num_classes: str | None = None, adm_in_channels: int | None = None, norm_num_groups: Groups = NUM_GROUPS, **other):
        super().__init__()
        refuse_other_architectures("UNetModel", other)
        if (num_heads == -1) == (num_head_channels == -1) or any(model_channels * mult % num_head_channels for mult in channel_mult):
            raise UserError(f"UNetModel is given num_heads={num_heads} and num_head_channels={num_head_channels}; give one of them, and "
                            f"num_head_channels as a divisor of every level's width, {model_channels} times {list(channel_mult)}")
        if (num_classes, adm_in_channels is None) not in ((None, True), ("sequential", False)):
            raise UserError(f"UNetModel is asked for num_classes={num_classes!r} with adm_in_channels={adm_in_channels!r}; give neither, "
                            "as Stable Diffusion v1 has it, or 'sequential' and the width of y, as SDXL has it")
        depths = [transformer_depth] * len(channel_mult) if isinstance(transformer_depth, int) else list(transformer_depth)
        if len(depths) != len(channel_mult):
            raise UserError(f"UNetModel is asked for transformer_depth={depths} with channel_mult={list(channel_mult)}; "
                            "give one number, or one for each level")
        self.model_channels = model_channels
        self.checkpointing = False  # True: a gradient takes the time of another forward pass, and a fraction of the memory
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        self.label_emb = None if adm_in_channels is None else nn.Sequential(nn.Sequential(  # twice, for the name `label_emb.0.0`
            nn.Linear(adm_in_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)))

        def transformer(width: int, depth: int) -> SpatialTransformer:
            heads = num_heads if num_head_channels == -1 else width // num_head_channels
            return SpatialTransformer(width, heads, context_dim, depth, use_linear_in_transformer, norm_num_groups)

        def block(in_width: int, out_width: int) -> ResBlock:
            return ResBlock(in_width, emb_channels, out_width, dropout, norm_num_groups)

        def stage(in_width: int, out_width: int, level: int) -> list[nn.Module]:
            return [block(in_width, out_width), *[transformer(out_width, depths[level])] * (2**level in attention_resolutions)]

        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        skip_channels = [model_channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(TimestepEmbedSequential(*stage(skip_channels[-1], model_channels * mult, level)))
                skip_channels.append(model_channels * mult)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(skip_channels[-1])))
                skip_channels.append(skip_channels[-1])

        channels = skip_channels[-1]
        self.middle_block = TimestepEmbedSequential(block(channels, channels), transformer(channels, depths[-1]), block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = stage(channels + skip_channels.pop(), model_channels * mult, level)
                channels = model_channels * mult
                if level > 0 and i == num_res_blocks:
                    layers.append(upsample(channels))
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(normalization(channels, norm_num_groups), nn.SiLU(),
                                 zero_module(nn.Conv2d(channels, out_channels, 3, padding=1)))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.time_embed.parameters()).dtype

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        """eps(z_t, tau(c), t), (B, out_channels, h, w), in the dtype of x.

        Args:
            x: noisy latent z_t, (B, in_channels, h, w); h and w divisible by 2 ** (levels - 1).
            timesteps: t, (B,).
            context: tau(c), (B, 77, context_dim).
            y: (B, adm_in_channels), for SDXL only.

        Raises:
            UserError: y is missing where the model reads one, or given where it does not.
        """
        sinusoids = timestep_embedding(timesteps, self.model_channels)  # (B, model_channels)
        emb = self.time_embed(sinusoids.to(self.dtype))  # (B, 4 model_channels)
        if (y is None) != (self.label_emb is None):
            raise UserError("this U-Net reads a vector y (B, adm_in_channels) in addition to the text, as SDXL's does; pass it" if y is None
                            else "this U-Net reads no vector y with the text; leave y out, or build it with num_classes: sequential")
        if y is not None and self.label_emb is not None:
            emb = emb + self.label_emb(y.to(self.dtype))
        h, context = x.to(self.dtype), context.to(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = self._through(block, h, emb, context)
            skips.append(h)
        h = self._through(self.middle_block, h, emb, context)
        for block in self.output_blocks:
            h = self._through(block, torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h).to(x.dtype)

    def _through(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # frozen: nothing in it is random
        return block(*inputs)
