"""Rebuilding hidden pixels: the head, the targets and the loss that objectives share."""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scanprior import keyed
from scanprior.encoders import Encoder, VitEncoder, sample_positions
from scanprior.errors import ConfigError
from scanprior.masking import Corruption, Kind, corrupt
from scanprior.objectives.base import Batch, Objective, ObjectiveConfig, view_positions


class ReconstructionConfig(ObjectiveConfig):
    """Group corruption and the loss on the rebuilt pixels."""

    kinds: tuple[Kind, ...] = Field(
        ("noise",), min_length=1, description="fills, one drawn per image: noise, zeros, replace"
    )
    max_replace: float = Field(
        0.75, gt=0, lt=1, description="largest part corrupted; drawn from min(0.5, max_replace) up"
    )
    alien_replace: float = Field(
        0.3, ge=0, lt=1, description="part filled from another image instead, in 1 of (kinds + 1); 0 = never"
    )
    align: Literal["pixel", "patch"] | Annotated[int, Field(ge=1)] = Field(
        "pixel", description="grid of the blocks: pixel (published), patch, or a number of pixels"
    )
    max_block: float = Field(0.3, gt=0, le=1, description="largest block side, as a part of the image's")
    hidden_only: bool = Field(True, description="loss on corrupted pixels only; false = on all pixels")
    target_norm: Literal["none", "patch"] = Field(
        "none", description="none (published), or patch: each patch to mean 0 and variance 1 (ours)"
    )


class PixelHead(nn.Module):
    """Patch tokens to pixels: 3 x (Linear, GELU), then one transposed convolution of a patch's size.

    The reconstruction head of GMML and SiT (arXiv 2205.14986, 2104.03602).

    Args:
        dim: width D of the tokens.
        channels: C of the images.
        patch: side of a token in pixels.
    """

    def __init__(self, dim: int, channels: int, patch: int) -> None:
        super().__init__()
        layers = [module for _ in range(3) for module in (nn.Linear(dim, dim), nn.GELU())]
        self.mlp = nn.Sequential(*layers)
        self.to_pixels = nn.ConvTranspose2d(dim, channels, kernel_size=patch, stride=patch)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn patch tokens (B, N, D), row by row, into images (B, C, H, W) of ``size``.

        Where tokens do not divide the image (convolutional networks round), the result is stretched.
        """
        rows = max(1, round((tokens.shape[1] * size[0] / size[1]) ** 0.5))
        grid = self.mlp(tokens).transpose(1, 2).reshape(len(tokens), tokens.shape[2], rows, -1)
        pixels: Tensor = self.to_pixels(grid)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear")
        return pixels


def head_blocks(spec: str, depth: int) -> list[int]:
    """Return the 0-based blocks whose mean output the head reads.

    Args:
        spec: 1-based numbers joined by "-", as "6-8-10-12"; "auto" = that for 12 blocks, scaled to other
            depths (our definition: the second half of the network in four even steps, the last block
            among them).
        depth: number of blocks.

    Raises:
        ConfigError: a number is not one of 1..depth.
    """
    if spec == "auto":
        return sorted({max(1, round(number * depth / 12)) - 1 for number in (6, 8, 10, 12)})
    try:
        blocks = sorted({int(number) - 1 for number in spec.split("-")})
    except ValueError:
        blocks = [-1]
    if blocks[0] < 0 or blocks[-1] >= depth:
        raise ConfigError(
            f"objective.head_blocks: {spec!r} must be block numbers from 1 to {depth} joined by '-', or auto"
        )
    return blocks


def encode(
    encoder: Encoder, images: Tensor, blocks: list[int], *, train_pooled: bool
) -> tuple[Tensor, Tensor]:
    """Return the head's input (B, N, D) and the pooled vector (B, dim) of images (B, C, H, W).

    A ViT's input is the mean of the blocks' outputs after the shared final norm. Networks with a pyramid
    have one final map, and give that (our definition). Without ``train_pooled`` no gradient flows through
    the pooled vector, which is then only good for logging.
    """
    if not isinstance(encoder, VitEncoder):
        features = encoder(images)
        return features.tokens, features.pooled if train_pooled else features.pooled.detach()
    wanted = sorted({*blocks, encoder.depth - 1})
    outputs = dict(zip(wanted, encoder.block_outputs(images, wanted), strict=True))
    mean = functools.reduce(torch.add, [outputs[i] for i in blocks]) / len(blocks)
    with torch.set_grad_enabled(train_pooled and torch.is_grad_enabled()):
        pooled = encoder.pool(outputs[encoder.depth - 1])
    return encoder.normalize(mean)[:, encoder.num_prefix_tokens :], pooled


def patch_statistics(images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the pixel's own patch, over all channels: (B, 1, H, W) each.

    Raises:
        ConfigError: the patch does not divide the image.
    """
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise ConfigError(
            f"objective.target_norm: a {height}x{width} px image is not divisible by patches of {patch}; use none"
        )
    cells = images.reshape(*images.shape[:2], height // patch, patch, width // patch, patch)
    deviation, mean = torch.std_mean(cells, dim=(1, 3, 5), correction=0, keepdim=True)
    deviation = (deviation.square() + 1e-6).sqrt()
    spread = [part.expand(-1, -1, -1, patch, -1, patch) for part in (mean, deviation)]
    return spread[0].reshape(-1, 1, height, width), spread[1].reshape(-1, 1, height, width)


def l1_sum(output: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the summed absolute error over hidden pixels and their number, as float32 scalars.

    Args:
        output: (B, C, H, W).
        target: the same shape.
        mask: bool (B, H, W), True = hidden; None = all pixels count.

    The error of a pixel is the mean over its channels.
    """
    error = (output.float() - target).abs().mean(1)
    if mask is None:
        return error.sum(), torch.tensor(float(error.numel()), device=error.device)
    return (error * mask).sum(), mask.sum(dtype=torch.float32)


class GroupReconstruction(Objective):
    """Corrupt groups of pixels of every view, encode, and rebuild them: what GMML and SiT share.

    Attributes:
        trains_pooled: whether the loss reads the pooled vector, or the log alone.
    """

    trains_pooled: ClassVar[bool] = False
    config: ReconstructionConfig

    def __init__(
        self, encoder: Encoder, config: ReconstructionConfig, *, seed: int, blocks: list[int]
    ) -> None:
        super().__init__(encoder, config, seed=seed)
        self.blocks = blocks
        grid = {"pixel": 1, "patch": encoder.stride}
        self.corruption = Corruption(
            kinds=config.kinds,
            max_replace=config.max_replace,
            alien_replace=config.alien_replace,
            align=grid[config.align] if isinstance(config.align, str) else config.align,
            max_block=config.max_block,
        )
        with keyed.seeded(keyed.key(seed, "reconstruction_head")):
            self.head = PixelHead(encoder.token_dim, encoder.channels, encoder.stride)

    @property
    def needs_donors(self) -> bool:
        """Whether the alien fill is on."""
        return self.config.alien_replace > 0

    def corrupt_views(self, batch: Batch, views: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return clean and corrupted images (V·B, C, H, W), masks (V·B, H, W) and positions (V·B,).

        Raises:
            ValueError: the batch lacks views or donors.
        """
        if len(batch["views"]) < self.views or (self.needs_donors and "donors" not in batch):
            raise ValueError(
                f"{self.name} needs {self.views} views and, for the alien fill, donors in a batch"
            )
        clean = batch["views"][:views].flatten(0, 1)
        donors = batch["donors"][:views].flatten(0, 1) if self.needs_donors else None
        # Positions count all views of the objective, so that a preview of one view shows its true corruption.
        positions = view_positions(batch["position"], self.views)[: len(clean)]
        corrupted, mask = corrupt(clean, donors, self.corruption, seed=self.seed, positions=positions)
        return clean, corrupted, mask, positions

    def encode(self, images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's input (B, N, D) and the pooled vector (B, dim)."""
        with sample_positions(positions):
            return encode(self.encoder, images, self.blocks, train_pooled=self.trains_pooled)

    def reconstruction(self, tokens: Tensor, clean: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed absolute error and the number of pixels it is summed over."""
        output = self.head(tokens, (clean.shape[-2], clean.shape[-1]))
        target = clean
        if self.config.target_norm == "patch":
            mean, deviation = patch_statistics(clean, self.encoder.stride)
            target = (clean - mean) / deviation
        return l1_sum(output, target, mask if self.config.hidden_only else None)

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Return input, corrupted, rebuilt and raw pictures of the first view, (B, C, H, W)."""
        training = self.training
        self.eval()
        clean, corrupted, mask, positions = self.corrupt_views(batch, 1)
        tokens, _ = self.encode(corrupted, positions)
        raw = self.head(tokens, (clean.shape[-2], clean.shape[-1])).float()
        self.train(training)
        if self.config.target_norm == "patch":
            mean, deviation = patch_statistics(clean, self.encoder.stride)
            raw = raw * deviation + mean
        rebuilt = torch.where(mask[:, None], raw, clean)
        return {"input": clean, "corrupted": corrupted, "rebuilt": rebuilt, "raw": raw}
