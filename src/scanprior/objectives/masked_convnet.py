"""Masked autoencoders of ConvNets, guided by entropy where that is wanted.

The encoder is that of FCMAE (Woo et al. 2023, arXiv 2301.00808) and SparK (Tian et al. 2023, arXiv
2301.03580): a ConvNeXt that sees visible units alone. Which units are hidden follows the idea of the
entropy-guided masked autoencoder (Florindo and Moura 2026, arXiv 2605.21970) by our own definition
(`scanprior.masking.entropy`).
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.layers.norm import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn import functional as F

from scanprior import keyed
from scanprior.encoders import Encoder, MaskedConvNext, sample_positions
from scanprior.masking import Guidance, hidden_count, patches_to_pixels
from scanprior.objectives.base import Batch, ObjectiveConfig, embedding_std, register
from scanprior.objectives.guided import GuidedConfig, GuidedObjective, hidden_ids, standardised


class EntropyGuidance(Guidance):
    """Guidance that is on by default."""

    beta: float = Field(
        1.0, description="strength: above 0 hides complex units more often, below 0 flat ones; 0 = at random"
    )


class MaskedConvnetConfig(GuidedConfig):
    """Settings of masked autoencoders of ConvNets."""

    mask_ratio: float = Field(0.6, gt=0, lt=1, description="part of the units hidden from the encoder")
    unit: int | Literal["auto"] = Field(
        "auto", description="side of a mask unit in pixels; auto = 32 from 160 px on, 16 below"
    )
    guidance: EntropyGuidance = Field(
        default_factory=lambda: EntropyGuidance(), description="which units are hidden more often"
    )
    decoder: Literal["light", "unet"] = Field(
        "light",
        description="light: one block at the last stride (FCMAE); unet: all stages, up to full size (SparK)",
    )
    decoder_dim: int = Field(
        512, ge=16, multiple_of=16, description="width of the decoder where it is coarsest"
    )
    target_norm: Literal["unit", "none"] = Field(
        "unit", description="unit: each target unit to mean 0 and variance 1; none: pixels as they are"
    )
    path: Literal["auto", "dense", "gathered"] = Field(
        "auto",
        description="work on all cells, or on visible ones alone; equal, auto = the faster one, measured",
    )


class LightDecoder(nn.Module):
    """Fill hidden cells of the last map with a token, one ConvNeXt block, cells to pixels (FCMAE).

    Args:
        dims: channels of the stages.
        strides: pixels of a cell of each stage.
        channels: of the images.
        width: of the decoder.
    """

    def __init__(self, dims: list[int], strides: list[int], channels: int, width: int) -> None:
        super().__init__()
        self.stride = strides[-1]
        self.embed = nn.Conv2d(dims[-1], width, 1)
        self.token = nn.Parameter(torch.empty(1, width, 1, 1))
        self.block = ConvNeXtBlock(width, use_grn=True, ls_init_value=None)
        self.predict = nn.Conv2d(width, channels * self.stride**2, 1)
        nn.init.normal_(self.token, std=0.02)

    def forward(self, maps: list[Tensor], shown: list[Tensor]) -> Tensor:
        """Rebuild images (B, C, H, W) from the maps of the stages and their visible cells (B, 1, h, w)."""
        x = self.embed(maps[-1])
        x = torch.where(shown[-1] > 0, x, self.token.to(x.dtype))
        return F.pixel_shuffle(self.predict(self.block(x)), self.stride)


class _Up(nn.Module):
    """Twice the size, then two convolutions."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim, 4, 2, 1)
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), LayerNorm2d(dim), nn.GELU(),
            nn.Conv2d(dim, out, 3, padding=1, bias=False), LayerNorm2d(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(self.up(x))
        return made


class UnetDecoder(nn.Module):
    """Fill hidden cells of every map with a token of its own, then a U-Net up to full size (SparK).

    Widths halve with every doubling of the size. Norms are LayerNorm where SparK has BatchNorm (our choice):
    what is rebuilt of an image does not depend on the others of its batch.

    Args:
        dims, strides, channels, width: as for ``LightDecoder``.
    """

    def __init__(self, dims: list[int], strides: list[int], channels: int, width: int) -> None:
        super().__init__()
        steps = strides[-1].bit_length() - 1
        self.strides = strides
        widths = [max(16, width // 2**n) for n in range(steps + 1)]
        at = {2 ** (steps - n): widths[n] for n in range(steps + 1)}
        self.norms = nn.ModuleList(LayerNorm2d(dim) for dim in dims)
        self.tokens = nn.ParameterList(torch.empty(1, dim, 1, 1) for dim in dims)
        self.joins = nn.ModuleList(
            nn.Conv2d(
                dim, at[stride], 1 if stride == strides[-1] else 3, padding=0 if stride == strides[-1] else 1
            )
            for dim, stride in zip(dims, strides, strict=True)
        )
        self.ups = nn.ModuleList(_Up(widths[n], widths[n + 1]) for n in range(steps))
        self.predict = nn.Conv2d(widths[-1], channels, 1)
        for token in self.tokens:
            nn.init.normal_(token, std=0.02)

    def forward(self, maps: list[Tensor], shown: list[Tensor]) -> Tensor:
        """Rebuild images (B, C, H, W) from the maps of the stages and their visible cells (B, 1, h, w)."""
        joined = {}
        parts = zip(maps, shown, self.norms, self.tokens, self.joins, self.strides, strict=True)
        for x, seen, norm, token, join, stride in parts:
            joined[stride] = join(torch.where(seen > 0, norm(x), token.to(x.dtype)))
        stride = self.strides[-1]
        x = joined[stride]
        for up in self.ups:
            stride //= 2
            x = up(x)
            x = x + joined[stride] if stride in joined else x
        pixels: Tensor = self.predict(x)
        return pixels


@register("masked_convnet")
class MaskedConvnet(GuidedObjective):
    """Hide units of the image, encode the rest with a ConvNeXt, rebuild the hidden ones; squared error on those."""

    Config: ClassVar[type[ObjectiveConfig]] = MaskedConvnetConfig
    summary: ClassVar[str] = (
        "rebuild hidden units, ConvNeXt and ConvNeXt-V2, complex units hidden more often (entropy-guided MAE)"
    )
    # Published: FCMAE's rate, decay and betas; the length is that of a small set (ours).
    defaults: ClassVar[dict[str, object]] = {
        "encoder.name": "convnext_tiny",
        "engine.epochs": 400,
        "engine.lr_per_256": 1.5e-4,
        "engine.warmup_fraction": 0.05,
        "engine.weight_decay": 0.05,
        "engine.betas": (0.9, 0.95),
        "augment.preset": "mae",
    }
    config: MaskedConvnetConfig
    gathered: Tensor

    def __init__(self, encoder: Encoder, config: MaskedConvnetConfig, *, seed: int) -> None:
        super().__init__(encoder, config, seed=seed)
        self.unit = config.unit if config.unit != "auto" else 32 if encoder.size >= 160 else 16
        self.masked = MaskedConvNext(encoder, self.unit)
        hidden_count((encoder.size // self.unit) ** 2, config.mask_ratio)
        # A buffer, so that a training that is resumed goes on the same way, bit for bit.
        self.register_buffer("gathered", torch.tensor(config.path != "dense"))
        net: Any = encoder.net
        net.head.requires_grad_(False)  # no loss reaches it
        dims = [int(info["num_chs"]) for info in net.feature_info]
        decoder = LightDecoder if config.decoder == "light" else UnetDecoder
        with keyed.seeded(keyed.key(seed, "masked_convnet_decoder")):
            self.decoder = decoder(dims, self.masked.strides, encoder.channels, config.decoder_dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss`` over hidden units, ``embedding_std`` and ``channel_diversity``.

        Where complex units count more, also ``weight``, the sum of what the units count.
        """
        images = batch["views"][0]
        hidden, scores = self.mask(images, batch["position"])
        with sample_positions(batch["position"]):
            maps = self.encode(images, hidden)
        rebuilt = self.decoder(maps, self._shown(hidden))
        ids = hidden_ids(hidden.flatten(1))
        error = self._error(rebuilt, images).gather(1, ids)
        return {**self.loss_of(error, ids, scores), **self._health(maps[-1].detach(), hidden)}

    def mask(self, images: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return which units of images (B, C, H, W) are hidden, bool (B, h, w), and the units' scores (B, N)."""
        found = self.hide(images, self.unit, position)
        return found.mask.mask.view(len(images), -1, images.shape[-1] // self.unit), found.scores

    def encode(self, images: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the maps of the stages; hidden cells are zero."""
        maps: list[Tensor] = self.masked(images, hidden, gathered=bool(self.gathered))
        return maps

    def prepare(self, batch: Batch) -> str | None:
        """Choose the faster way through the encoder, where it is left open, and say which."""
        if self.config.path != "auto":
            return None
        taken = {gathered: self._seconds(batch, gathered) for gathered in (True, False)}
        self.gathered.fill_(taken[True] <= taken[False])
        chosen = "visible cells alone" if self.gathered else "all cells"
        ratio = taken[not self.gathered] / taken[bool(self.gathered)]
        return f"the encoder works on {chosen}, which is {ratio:.2f} times as fast here"

    def _seconds(self, batch: Batch, gathered: bool, repeats: int = 3) -> float:
        """Return the least time of an encoder's forward and backward pass; weights and gradients stay."""
        images = batch["views"][0]
        hidden, _ = self.mask(images, batch["position"])
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            with sample_positions(batch["position"]):
                maps = self.masked(images, hidden, gathered=gathered)
            torch.autograd.grad(maps[-1].float().sum(), parameters, allow_unused=True)
            if images.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begun)
        return min(taken)

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Return input, corrupted (hidden units at 0, the mean), rebuilt and raw pictures, (B, C, H, W)."""
        training = self.training
        self.eval()
        images = batch["views"][0]
        hidden, _ = self.mask(images, batch["position"])
        raw = self.decoder(self.encode(images, hidden), self._shown(hidden)).float()
        self.train(training)
        if self.config.target_norm == "unit":
            _, mean, deviation = standardised(self._units(images))
            raw = self._images(self._units(raw) * deviation + mean, hidden.shape[1])
        pixels = patches_to_pixels(hidden.flatten(1), (hidden.shape[1], hidden.shape[2]), self.unit)[:, None]
        return {
            "input": images,
            "corrupted": images.masked_fill(pixels, 0),
            "rebuilt": torch.where(pixels, raw, images),
            "raw": raw,
        }

    def _shown(self, hidden: Tensor) -> list[Tensor]:
        return [self.masked.shown(hidden, stride) for stride in self.masked.strides]

    def _error(self, rebuilt: Tensor, images: Tensor) -> Tensor:
        """Return the mean squared error of every unit: (B, N)."""
        target = self._units(images)
        if self.config.target_norm == "unit":
            target = standardised(target)[0]
        return (self._units(rebuilt.float()) - target).square().mean(2)

    def _units(self, images: Tensor) -> Tensor:
        """Cut images (B, C, H, W) into units (B, N, C·unit·unit), row by row."""
        batch, channels, height, width = images.shape
        u = self.unit
        cut = images.reshape(batch, channels, height // u, u, width // u, u)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * u * u)

    def _images(self, units: Tensor, rows: int) -> Tensor:
        """Undo ``_units``."""
        u = self.unit
        cut = units.reshape(len(units), rows, -1, self.encoder.channels, u, u)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(units), self.encoder.channels, rows * u, -1)

    @torch.no_grad()
    def _health(self, final: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        shown = self.masked.shown(hidden, self.masked.strides[-1])
        pooled = final.float().sum((2, 3)) / shown.sum((2, 3)).clamp(min=1)
        return {"embedding_std": embedding_std(pooled), "channel_diversity": channel_diversity(final)}


@torch.no_grad()
def channel_diversity(maps: Tensor) -> Tensor:
    """Return how different the channels of maps (B, C, h, w) are, as a scalar: the mean cosine distance of pairs.

    (1 - cosine) / 2 over all pairs of channels of an image, over images: 0 when all channels are the same
    (collapse), 0.5 when they are unrelated. The measure of Woo et al. 2023 (arXiv 2301.00808, section 3.2),
    who saw blocks without response norm collapse.
    """
    unit = F.normalize(maps.float().flatten(2), dim=2)
    channels = unit.shape[1]
    together = unit.sum(1).square().sum(1)  # the sum of all cosines, each channel with itself too
    own = unit.square().sum((1, 2))
    return ((1 - (together - own) / (channels * (channels - 1))) / 2).mean()
