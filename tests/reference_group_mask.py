"""Group corruption as a plain loop over images and blocks: what masking.py must equal, bit for bit.

It makes the same keyed draws, one image at a time, and follows the published order: corrupt every
image first, then discard that for the images that become alien.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior import keyed
from scanprior.masking import CHUNK, Corruption

Block = tuple[int, int, int, int]


def _blocks(
    shape: tuple[int, ...], config: Corruption, seed: int, purpose: str, position: int
) -> Iterator[Block]:
    """Yield (row, column, height, width) for ever."""
    height, width = shape
    align = config.align
    round_number = 0
    while True:
        draws = keyed.uniform(keyed.key(seed, f"{purpose}/blocks", round_number), [position], 4 * CHUNK)[0]
        for top, left, tall, wide in draws.reshape(CHUNK, 4).tolist():
            row = int(top * (height - align)) // align * align
            column = int(left * (width - align)) // align * align
            sizes = []
            for draw, extent, start in ((tall, height, row), (wide, width, column)):
                largest = max(align, int(config.max_block * extent) - 1)
                size = min(align + int(draw * (largest - align + 1)), extent - start)
                sizes.append(min(round(size / align) * align, extent - start))
            yield row, column, sizes[0], sizes[1]
        round_number += 1


def _paint(
    mask: Tensor, max_replace: float, config: Corruption, seed: int, purpose: str, position: int
) -> Iterator[Block]:
    """Set blocks of ``mask`` (H, W), yielding each, until the target area is covered."""
    low = min(0.5, max_replace)
    draw = keyed.uniform(keyed.key(seed, f"{purpose}/ratio"), [position], 1)[0, 0]
    target = (low + (max_replace - low) * draw) * mask.numel()
    for row, column, tall, wide in _blocks(tuple(mask.shape), config, seed, purpose, position):
        mask[row : row + tall, column : column + wide] = True
        yield row, column, tall, wide
        if int(mask.sum()) >= target:
            return


def reference_mask(
    shape: tuple[int, int], max_replace: float, config: Corruption, seed: int, purpose: str, position: int
) -> tuple[Tensor, list[Block]]:
    """Return one image's mask (H, W) and its blocks in order."""
    mask = torch.zeros(shape, dtype=torch.bool)
    return mask, list(_paint(mask, max_replace, config, seed, purpose, position))


def reference_corrupt(
    images: Tensor, donors: Tensor | None, config: Corruption, seed: int, positions: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Return corrupted images (B, C, H, W) and masks (B, H, W), made one image and block at a time."""
    purpose = "corrupt"
    all_corrupted, masks = [], []
    for b, position in enumerate(positions.tolist()):
        kind_draw, alien_draw = keyed.uniform(keyed.key(seed, f"{purpose}/kind"), [position], 2)[0]
        kind = config.kinds[int(kind_draw * len(config.kinds))]
        image = images[b].clone()
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        noise_key = keyed.key(seed, f"{purpose}/noise")
        noise = torch.from_numpy(keyed.normal_quantiles(noise_key, [position], image.shape)[0])
        blocks = _paint(mask, config.max_replace, config, seed, purpose, position)
        for number, (row, column, tall, wide) in enumerate(blocks):
            here = (slice(None), slice(row, row + tall), slice(column, column + wide))
            if kind == "noise":
                image[here] = noise[here]
            elif kind == "zeros":
                image[here] = 0
            else:
                key = keyed.key(seed, f"{purpose}/source", number // CHUNK)
                draws = keyed.uniform(key, [position], 2 * CHUNK)[0].reshape(CHUNK, 2)[number % CHUNK]
                top = int(draws[0] * (image.shape[1] - tall + 1))
                left = int(draws[1] * (image.shape[2] - wide + 1))
                image[here] = image[:, top : top + tall, left : left + wide].clone()
        if donors is not None and config.alien_replace > 0 and alien_draw < 1 / (len(config.kinds) + 1):
            image = images[b].clone()
            mask = torch.zeros(image.shape[1:], dtype=torch.bool)
            for row, column, tall, wide in _paint(
                mask, config.alien_replace, config, seed, purpose, position
            ):
                here = (slice(None), slice(row, row + tall), slice(column, column + wide))
                image[here] = donors[b][here]
        all_corrupted.append(image)
        masks.append(mask)
    return torch.stack(all_corrupted), torch.stack(masks)
