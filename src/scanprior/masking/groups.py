"""Group corruption: rectangles of an image are replaced by something else.

It is that of GMML (Atito et al. 2022, arXiv 2205.14986) and SiT (2021, arXiv
2104.03602). Rectangles are drawn until their union covers a target area, and are filled with noise,
zeros, pixels of the same image, or ("alien") the same pixels of another image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scanprior import keyed
from scanprior.errors import ConfigError
from scanprior.keyed import Positions

CHUNK = 8
"""Blocks drawn and painted at a time: a row of the image knows its blocks of a chunk by one byte."""

AT_ONCE = 1 << 16
"""Pixels filled at a time."""

Kind = Literal["noise", "zeros", "replace"]


class Corruption(BaseModel):
    """How group corruption hides pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[Kind, ...] = Field(
        ("noise",),
        min_length=1,
        description="fills, one drawn per image: noise N(0,1), zeros (the mean), replace (own pixels)",
    )
    max_replace: float = Field(
        0.75, gt=0, lt=1, description="largest part hidden; drawn from min(0.5, max_replace) up"
    )
    alien_replace: float = Field(
        0.3, ge=0, lt=1, description="the same where another image's pixels fill the blocks; 0 = never"
    )
    align: int = Field(1, ge=1, description="grid of the blocks in pixels; the patch size aligns to tokens")
    max_block: float = Field(0.3, gt=0, le=1, description="largest block side, as a part of the image's")


class GroupMask(NamedTuple):
    """Masks of a batch and the blocks that made them.

    Attributes:
        mask: bool array (B, H, W), True = hidden.
        blocks: int64 array (B, K, 4) of (row, column, height, width) in the order of drawing; the
            candidates drawn after an image's last block have height and width 0.
    """

    mask: NDArray[np.bool_]
    blocks: NDArray[np.int64]


def group_mask(
    shape: tuple[int, int],
    *,
    max_replace: float | NDArray[np.float64],
    align: int = 1,
    max_block: float = 0.3,
    seed: int,
    positions: Positions,
    purpose: str = "group",
) -> GroupMask:
    """Draw blocks for every image until their union covers the image's target area.

    The target is r·H·W pixels with r ~ U(min(0.5, max_replace), max_replace). A block's corner is
    ⌊U{0..H-align-1}/align⌋·align; its height is min(U{align..⌊max_block·H⌋-1}, H-row), rounded to the
    nearest multiple of ``align`` (halves to even; 0 is an empty block) and clipped to the image; the
    same for columns. Where ⌊max_block·H⌋-1 < align the height is ``align`` (our definition).

    Args:
        shape: (H, W) in pixels.
        max_replace: largest wanted part of hidden pixels, in (0, 1), one for all or (B,); the last
            block overshoots.
        align: grid of block corners and sizes, in pixels.
        max_block: largest block side as a part of the image's side.
        seed: seed of the run.
        positions: int64 stream positions of the samples, (B,).
        purpose: names the stream of draws; two purposes never share draws.

    Raises:
        ConfigError: ``align`` and ``max_block`` do not let blocks cover ``max_replace`` of the image.

    Source: the public GMML and SiT code, as described in their papers' data pipelines.
    """
    places = np.asarray(positions, dtype=np.int64)
    high = np.broadcast_to(np.asarray(max_replace, dtype=np.float64), places.shape)
    low = np.minimum(0.5, high)
    _check_reach(shape, float(high.max(initial=0.0)), align, max_block)
    draw = keyed.uniform(keyed.key(seed, f"{purpose}/ratio"), places, 1)[:, 0]
    target = (low + (high - low) * draw) * (shape[0] * shape[1])

    canvas = _Canvas(shape)
    union = np.zeros((len(places), shape[0], -(-shape[1] // 64)), dtype=np.uint64)
    chunks: list[NDArray[np.int64]] = []
    pending = np.arange(len(places))
    while len(pending):
        chunk_key = keyed.key(seed, f"{purpose}/blocks", len(chunks))
        draws = keyed.uniform(chunk_key, places[pending], 4 * CHUNK).reshape(-1, CHUNK, 4)
        drawn = _blocks_from_draws(draws, shape, align, max_block)
        used, covered = canvas.paint(union[pending], drawn, target[pending])
        union[pending] = covered
        drawn[np.arange(CHUNK) >= used[:, None]] = 0
        chunks.append(np.zeros((len(places), CHUNK, 4), dtype=np.int64))
        chunks[-1][pending] = drawn
        pending = pending[_area(covered) < target[pending]]
    blocks = np.concatenate(chunks, axis=1) if chunks else np.zeros((0, 0, 4), dtype=np.int64)
    return GroupMask(_unpack(union, shape[1]), blocks)


def corrupt(
    images: Tensor,
    donors: Tensor | None,
    config: Corruption,
    *,
    seed: int,
    positions: Positions,
    purpose: str = "corrupt",
) -> tuple[Tensor, Tensor]:
    """Hide groups of pixels of a batch of normalised images.

    Each image gets one kind of fill. With probability 1/(number of kinds + 1) that corruption is
    discarded and blocks of area ``alien_replace`` are filled with the donor's pixels instead (either,
    never both). ``replace`` copies a block of the same size from a uniformly drawn place of the same,
    already partly corrupted image.

    Args:
        images: float tensor (B, C, H, W), zero mean and unit variance over the data set.
        donors: the same shape, another image for each; None = no alien fill.
        config: what to hide and how.
        seed: seed of the run.
        positions: int64 stream positions, (B,).
        purpose: names the stream of draws.

    Returns:
        The corrupted images, a new tensor, and the bool mask (B, H, W), True = hidden, on the images'
        device. Pixels that are not hidden are bit-identical to the input.

    Raises:
        ConfigError: the blocks cannot cover the wanted area at this size.
    """
    places = np.asarray(positions, dtype=np.int64)
    height, width = images.shape[-2:]
    draws = keyed.uniform(keyed.key(seed, f"{purpose}/kind"), places, 2)
    fills = np.asarray(config.kinds, dtype="U7")[(draws[:, 0] * len(config.kinds)).astype(np.int64)]
    alien = draws[:, 1] < 1 / (len(config.kinds) + 1) * (donors is not None and config.alien_replace > 0)
    hidden, blocks = group_mask(
        (height, width),
        # The fresh blocks of an alien image may come from the stream of the corruption it discards.
        max_replace=np.where(alien, config.alien_replace, config.max_replace),
        align=config.align,
        max_block=config.max_block,
        seed=seed,
        positions=places,
        purpose=purpose,
    )
    mask = torch.from_numpy(hidden).to(images.device)
    out = images.clone(memory_format=torch.contiguous_format)
    fills[alien] = "alien"

    def fill(name: str, rows: NDArray[np.int64] | slice) -> Tensor:
        if name == "alien":
            assert donors is not None
            return donors[rows]
        if name == "noise":
            noise = keyed.key(seed, f"{purpose}/noise")
            return torch.from_numpy(keyed.normal_quantiles(noise, places[rows], images.shape[1:])).to(images)
        if name == "zeros":
            return images.new_zeros(())
        numbers = np.arange(len(images))[rows, None]
        return torch.stack(
            [_own_pixels(images[i[0]], blocks[i[0]], seed, purpose, places[i]) for i in numbers]
        )

    # A few pixels at a time, so that they stay in the processor's cache from draw to result.
    step = max(1, AT_ONCE // max(1, images[:1].numel()))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        names = np.unique(fills[part])
        if len(names) == 1:
            values = fill(names[0], part)
        else:
            values = torch.empty_like(out[part])
            for name in names:
                chosen = np.flatnonzero(fills[part] == name)
                values[chosen] = fill(name, start + chosen)
        _put(out[part], values, mask[part, None])
    return out, mask


def _largest(extent: int, align: int, max_block: float) -> int:
    return max(align, int(max_block * extent) - 1)


def _check_reach(shape: tuple[int, int], max_replace: float, align: int, max_block: float) -> None:
    """Refuse settings whose blocks can never cover the target (the loop would not end)."""
    reach = 1.0
    for extent in shape:
        if align >= extent:
            raise ConfigError(
                f"align {align} leaves no room for blocks in a side of {extent} px; use less than {extent}"
            )
        start = (extent - align - 1) // align * align
        size = np.rint(_largest(extent, align, max_block) / align) * align
        reach *= min(extent, start + size) / extent
    if reach < max_replace:
        raise ConfigError(
            f"blocks aligned to {align} px cannot hide {max_replace:g} of a {shape[0]}x{shape[1]} px image"
            f" (at most {reach:.2f}); lower align or raise max_block above {max_block:g}"
        )


def _blocks_from_draws(
    draws: NDArray[np.float64], shape: tuple[int, int], align: int, max_block: float
) -> NDArray[np.int64]:
    """Turn uniform draws (B, K, 4) into blocks (B, K, 4) of row, column, height, width."""
    blocks = np.empty(draws.shape, dtype=np.int64)
    for axis, extent in enumerate(shape):
        start = (draws[..., axis] * (extent - align)).astype(np.int64) // align * align
        choices = _largest(extent, align, max_block) - align + 1
        size = np.minimum(align + (draws[..., 2 + axis] * choices).astype(np.int64), extent - start)
        if align > 1:
            size = np.minimum(np.rint(size / align).astype(np.int64) * align, extent - start)
        blocks[..., axis] = start
        blocks[..., 2 + axis] = size
    return blocks


class _Canvas:
    """Paints blocks on bit-packed masks, many images at a time.

    A row of an image lies in some of the CHUNK blocks: one byte. The union of the columns of every such
    set of blocks is tabulated, so painting a chunk is one look-up for each row of the image.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        words = -(-width // 64)
        # below[n] has the first n places set; the places from a to b are below[a] ^ below[b].
        self.rows_below = np.tri(height + 1, height, -1, dtype=np.uint8) * np.uint8(255)
        bits = np.packbits(np.tri(width + 1, words * 64, -1, dtype=np.uint8), axis=1, bitorder="little")
        self.columns_below = bits.view("<u8").astype(np.uint64, copy=False)

    def paint(
        self, union: NDArray[np.uint64], blocks: NDArray[np.int64], target: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Add blocks (B, CHUNK, 4) in order to packed masks (B, H, words) until areas reach (B,) targets.

        Returns the number of blocks each image used, (B,), and the new packed masks.
        """
        start, end = blocks[..., :2], blocks[..., :2] + blocks[..., 2:]
        rows = self.rows_below.take(start[..., 0], axis=0) ^ self.rows_below.take(end[..., 0], axis=0)
        rows &= (1 << np.arange(CHUNK)).astype(np.uint8)[:, None]
        sets = np.bitwise_or.reduce(rows, axis=1)
        columns = self.columns_below.take(start[..., 1], axis=0) ^ self.columns_below.take(
            end[..., 1], axis=0
        )
        by_set = np.zeros((1 << CHUNK, len(blocks), columns.shape[-1]), dtype=np.uint64)
        for k in range(CHUNK):
            np.bitwise_or(by_set[: 1 << k], columns[:, k], out=by_set[1 << k : 2 << k])
        table = by_set.reshape(-1, columns.shape[-1])

        def after(images: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.uint64]:
            """The packed masks of some images after their first ``count`` blocks."""
            first = sets[images] & ((1 << count) - 1).astype(np.uint8)[:, None]
            place = first * np.int64(len(blocks)) + images[:, None]
            painted: NDArray[np.uint64] = table.take(place, axis=0)
            return np.bitwise_or(painted, union[images], out=painted)

        used = np.full(len(blocks), CHUNK)
        painted = after(np.arange(len(blocks)), used)
        done = np.flatnonzero(_area(painted) >= target)
        if len(done):
            low, high = np.zeros(len(done), dtype=np.int64), used[done]
            for _ in range(CHUNK.bit_length() - 1):  # bisection, for areas grow with the number of blocks
                middle = (low + high) // 2
                enough = _area(after(done, middle)) >= target[done]
                high = np.where(enough, middle, high)
                low = np.where(enough, low, middle)
            used[done] = high
            painted[done] = after(done, high)
        return used, painted


def _area(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    area: NDArray[np.int64] = np.bitwise_count(packed).sum(axis=(1, 2), dtype=np.int64)
    return area


def _unpack(packed: NDArray[np.uint64], width: int) -> NDArray[np.bool_]:
    octets = packed.astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=width, bitorder="little").view(np.bool_)


def _put(images: Tensor, values: Tensor, mask: Tensor) -> None:
    """Write ``values`` into ``images`` (B, C, H, W) where ``mask`` (B, 1, H, W), in place.

    The same as ``torch.where``, which is not vectorised for a boolean condition on a CPU.
    """
    if images.device.type == "cpu" and images.dtype != torch.bfloat16:  # numpy has no such type
        np.copyto(images.numpy(), values.numpy(), where=mask.numpy())
    else:
        torch.where(mask, values, images, out=images)


def _own_pixels(
    image: Tensor, blocks: NDArray[np.int64], seed: int, purpose: str, place: NDArray[np.int64]
) -> Tensor:
    """Return an image (C, H, W) whose blocks (K, 4) were filled, in order, from places of itself.

    The copies follow one another, so they are made on a map of indices, once for all channels.
    """
    height, width = image.shape[-2:]
    source = np.arange(height * width).reshape(height, width)
    for number in range(len(blocks) // CHUNK):
        chunk = blocks[number * CHUNK : (number + 1) * CHUNK]
        key = keyed.key(seed, f"{purpose}/source", number)
        draws = keyed.uniform(key, place, 2 * CHUNK)[0].reshape(CHUNK, 2)
        origin = (draws * (np.asarray((height, width)) - chunk[:, 2:] + 1)).astype(np.int64)
        for (row, column, tall, wide), (top, left) in zip(chunk.tolist(), origin.tolist(), strict=True):
            source[row : row + tall, column : column + wide] = source[top : top + tall, left : left + wide]
    flat = torch.from_numpy(source.ravel()).to(image.device)
    return image.flatten(1).index_select(1, flat).view_as(image)
