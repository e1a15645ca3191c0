"""Decoders: from an encoder's features to a map of every pixel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanprior.encoders import Encoder, Features
from scanprior.errors import ConfigError

_GROUPS = 8
"""Groups of the normalisation. Not batch norm: a result must not depend on how a batch is divided."""


class ConvBlock(nn.Sequential):
    """Two times: 3x3 convolution, group norm, GELU."""

    def __init__(self, ins: int, outs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (ins, outs):
            layers += [
                nn.Conv2d(channels, outs, 3, padding=1, bias=False),
                nn.GroupNorm(math.gcd(_GROUPS, outs), outs),
                nn.GELU(),
            ]
        super().__init__(*layers)


class Upsampling(nn.Sequential):
    """``times`` transposed convolutions, each doubling the side."""

    def __init__(self, ins: int, outs: int, times: int) -> None:
        widths = [ins, *[outs] * times]
        super().__init__(
            *(nn.ConvTranspose2d(a, b, kernel_size=2, stride=2) for a, b in itertools.pairwise(widths))
        )


class UnetrDecoder(nn.Module):
    """UNETR in two dimensions: maps of one resolution, projected up to be the skips of a U-Net.

    With a patch of 2^n pixels the last map is doubled n times; at doubling i < n it is joined by the
    i-th map before it, itself doubled i times, and at the last by a convolution of the image. For 16
    px patches that is blocks 12, 9, 6, 3 and the image, after Hatamizadeh et al. 2022
    (arXiv 2103.10504); for smaller patches the shallow blocks are not used (our definition). A patch
    that is no power of two is doubled as often as fits, and the rest is interpolated.

    Args:
        encoder: gives a pyramid of four maps at one resolution.
        width: channels at full resolution; twice as many at each coarser one, up to 8 times.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        doublings = max(1, int(math.log2(encoder.stride)))
        widths = [width * min(8, 2 ** (doublings - i)) for i in range(1, doublings + 1)]
        self.up, self.skips, self.joins = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        below = encoder.token_dim
        for i, outs in enumerate(widths, 1):
            self.up.append(nn.ConvTranspose2d(below, outs, kernel_size=2, stride=2))
            last = i == doublings
            skip = i < 4 and not last
            if last:
                self.skips.append(ConvBlock(encoder.channels, outs))
            else:
                self.skips.append(Upsampling(encoder.token_dim, outs, i) if skip else nn.Identity())
            self.joins.append(ConvBlock(2 * outs if skip or last else outs, outs))
            below = outs
        self.out_channels = below

    def forward(self, images: Tensor, features: Features) -> Tensor:
        """Return (B, out_channels, H, W) of images (B, C, H, W)."""
        maps = features.pyramid[::-1]
        x, last = maps[0], len(self.up)
        for i, (up, skip, join) in enumerate(zip(self.up, self.skips, self.joins, strict=True), 1):
            x = up(x)
            if i == last:
                if x.shape[-2:] != images.shape[-2:]:
                    x = F.interpolate(x, images.shape[-2:], mode="bilinear")
                x = torch.cat([x, skip(images)], dim=1)
            elif i < len(maps):
                x = torch.cat([x, skip(maps[i])], dim=1)
            x = join(x)
        return x


class UnetDecoder(nn.Module):
    """The U-Net decoder of segmentation_models_pytorch on a pyramid of halving resolutions.

    Levels that the encoder does not give (half the image, for ConvNeXt) have no skip.

    Args:
        encoder: a network of the conv family.
        width: channels at full resolution, twice as many at each coarser one, up to 8 times.

    Raises:
        ConfigError: the resolutions of the network's maps do not halve from one to the next.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder as SmpDecoder
        except ImportError:
            raise ConfigError(
                "task.decoder: unet needs segmentation-models-pytorch; pip install 'scanprior[segmentation]'"
            ) from None
        with torch.no_grad():
            side = max(64, encoder.size)
            maps = encoder.eval()(torch.zeros(1, encoder.channels, side, side)).pyramid
        levels = [math.log2(side / level.shape[-1]) for level in maps]
        if any(abs(a + 1 - b) > 0.1 for a, b in itertools.pairwise(levels)):
            raise ConfigError(
                f"task.decoder: the maps of {encoder.name} do not halve from one to the next; use another encoder"
            )
        self.empty = list(range(1, round(levels[0])))
        channels = [encoder.channels, *[0] * len(self.empty), *(level.shape[1] for level in maps)]
        blocks = len(channels) - 1
        self.decoder: Any = SmpDecoder(
            channels,
            [width * min(8, 2 ** (blocks - i)) for i in range(1, blocks + 1)],
            n_blocks=blocks,
            use_norm={"type": "instancenorm", "affine": True},
        )
        self.out_channels = width

    def forward(self, images: Tensor, features: Features) -> Tensor:
        """Return (B, out_channels, H, W) of images (B, C, H, W)."""
        blank = [
            images.new_empty(images.shape[0], 0, *(side >> level for side in images.shape[-2:]))
            for level in self.empty
        ]
        made: Tensor = self.decoder([images, *blank, *features.pyramid])
        return made


def make_decoder(encoder: Encoder, name: str, width: int) -> UnetrDecoder | UnetDecoder:
    """Return the decoder for an encoder; "auto" is ``unetr`` for ViTs and ``unet`` for pyramids.

    Raises:
        ConfigError: the decoder does not fit the encoder.
    """
    wanted = {"vit": "unetr", "conv": "unet"}[encoder.family]
    if name not in ("auto", wanted):
        raise ConfigError(f"task.decoder: {name} does not fit {encoder.name}; use {wanted}, or auto")
    return UnetrDecoder(encoder, width) if wanted == "unetr" else UnetDecoder(encoder, width)
