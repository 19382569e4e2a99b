"""Encoder and decoder of the autoencoder: image (B, 3, H, W) in [-1, 1] <-> feature map with 1/8 of the side."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.diffusionmodules.util import NUM_GROUPS, Groups, normalization, upsample
from ldm.util import refuse_other_architectures


class ResnetBlock(nn.Module):
    """Two convolutions with a residual connection: (B, in_channels, h, w) -> (B, out_channels, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: Groups):
        super().__init__()
        self.norm1 = normalization(in_channels, num_groups, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels, num_groups, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of (B, C, h, w)."""

    def __init__(self, channels: int, num_groups: Groups):
        super().__init__()
        self.norm = normalization(channels, num_groups, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))  # (B, 1, h * w, C)
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)  # (B, C, h * w)
        return x + self.proj_out(out.unflatten(-1, x.shape[-2:]))


def downsample(channels: int) -> nn.Sequential:
    """Halve the side; pads right and bottom only, as the public weights were trained."""
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(channels, channels, 3, stride=2)))


def middle(channels: int, num_groups: Groups) -> nn.Sequential:
    """The lowest resolution of both halves: block, attention over all pixels, block."""
    return nn.Sequential(OrderedDict(block_1=ResnetBlock(channels, channels, num_groups), attn_1=AttnBlock(channels, num_groups),
                                     block_2=ResnetBlock(channels, channels, num_groups)))


def stage(in_channels: int, out_channels: int, num_blocks: int, num_groups: Groups) -> nn.Sequential:
    """Residual blocks of one resolution; `downsample` or `upsample` is added after them, except in one stage of each half."""
    widths = [in_channels, *[out_channels] * num_blocks]
    return nn.Sequential(OrderedDict(block=nn.Sequential(*(ResnetBlock(*pair, num_groups) for pair in pairwise(widths)))))


class Encoder(nn.Module):
    """Image -> moments, (B, in_channels, H, W) -> (B, 2 z_channels, H/f, W/f) with f = 2 ** (levels - 1)."""

    def __init__(self, *, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, in_channels: int = 3,
                 out_ch: int = 3, norm_num_groups: Groups = NUM_GROUPS, **other):
        super().__init__()
        refuse_other_architectures("Encoder", other)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.Sequential()
        channels = ch
        for level, mult in enumerate(ch_mult):
            self.down.append(stage(channels, ch * mult, num_res_blocks, norm_num_groups))
            channels = ch * mult
            if level < len(ch_mult) - 1:
                self.down[level].downsample = downsample(channels)
        self.mid = middle(channels, norm_num_groups)
        self.norm_out = normalization(channels, norm_num_groups, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 2 * z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(self.mid(self.down(self.conv_in(image))))))


class Decoder(nn.Module):
    """Latent -> image, (B, z_channels, h, w) -> (B, out_ch, f h, f w). `up[0]` is the finest level, applied last."""

    def __init__(self, *, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, in_channels: int = 3,
                 out_ch: int = 3, norm_num_groups: Groups = NUM_GROUPS, **other):
        super().__init__()
        refuse_other_architectures("Decoder", other)
        channels = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = middle(channels, norm_num_groups)
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(ch_mult))):
            self.up.insert(0, stage(channels, ch * mult, num_res_blocks + 1, norm_num_groups))
            channels = ch * mult
            if level > 0:
                self.up[0].upsample = upsample(channels)
        self.norm_out = normalization(channels, norm_num_groups, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
