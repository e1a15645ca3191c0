"""Pictures of what a masked objective hides and rebuilds, saved beside the run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from scanprior.masking import patches_to_pixels

_GAP = 3  # pixels between the images of one row
_GROUP_GAP = 14  # pixels between two triplets side by side
_HEADER = 18  # pixels for the header line
_PAPER, _INK = 250, 60  # grey levels of background and text
_HEADINGS = ("input", "corrupted", "rebuilt")
_HIDDEN = 0.5  # grey of hidden units in [0, 1]
_MINIMUM = 96  # smaller images are enlarged by whole factors until they reach this side


def _display(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Undo the normalisation of (B, C, H, W): (B, H, W, C) uint8, C in {1, 3}, clipped to the display range."""
    if images.ndim != 4 or images.shape[1] != len(mean) or len(mean) != len(std):
        raise ValueError(
            f"images of shape {tuple(images.shape)} need mean and std of their {images.shape[1]} channels, "
            f"not {len(mean)} and {len(std)}"
        )
    shape = (1, -1, 1, 1)
    centre = torch.as_tensor(mean, dtype=torch.float32).view(shape)
    spread = torch.as_tensor(std, dtype=torch.float32).view(shape)
    pixels = images.detach().to("cpu", torch.float32) * spread + centre
    if pixels.shape[1] not in (1, 3):  # no display for other channel counts: show the first
        pixels = pixels[:, :1]
    levels = pixels.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    shown: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).numpy()
    return shown


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    factor = -(-_MINIMUM // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def reconstruction_grid(
    input: Tensor, corrupted: Tensor, rebuilt: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Image.Image:
    """Return rows of triplets: the input, what the network saw, and what it rebuilt.

    Four images or fewer stand in one column of triplets, more in two.

    Args:
        input: (B, C, H, W) float, normalised by ``mean`` and ``std``; B at least 1.
        corrupted: the same shape.
        rebuilt: the same shape.
        mean: per channel, of pixels in [0, 1].
        std: per channel.

    Raises:
        ValueError: if the shapes differ, the batch is empty, or mean and std do not fit the channels.
    """
    if not input.shape == corrupted.shape == rebuilt.shape or input.shape[0] == 0:
        raise ValueError(
            f"input, corrupted and rebuilt must be of one shape with at least one image, not "
            f"{tuple(input.shape)}, {tuple(corrupted.shape)}, {tuple(rebuilt.shape)}"
        )
    columns = [[_picture(p) for p in _display(part, mean, std)] for part in (input, corrupted, rebuilt)]
    rows = list(zip(*columns, strict=True))
    return _sheet(rows, _HEADINGS, across=1 if len(rows) <= 4 else 2)


def mask_grid(images: Tensor, scores: Tensor, masks: Sequence[tuple[str, Tensor]], unit: int) -> Image.Image:
    """Return a row an image: itself, the complexity of its units, and what is hidden in each of some ways.

    Args:
        images: (B, C, H, W) float in [0, 1].
        scores: (B, N), complexity of the units, row by row; drawn from dark (least) to bright (most).
        masks: a heading and a bool mask (B, N), True = hidden, each; hidden units are drawn grey.
        unit: side of a unit in pixels.
    """
    channels = images.shape[1]
    side = images.shape[-1] // unit

    def pixels(values: Tensor) -> Tensor:
        return patches_to_pixels(values, (values.shape[1] // side, side), unit)[:, None]

    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    heat = pixels((scores - low) / (high - low).clamp(min=1e-6)).expand_as(images)
    hidden = [images.masked_fill(pixels(mask), _HIDDEN) for _, mask in masks]
    columns = [
        [_picture(p) for p in _display(part, [0.0] * channels, [1.0] * channels)]
        for part in (images, heat, *hidden)
    ]
    return _sheet(list(zip(*columns, strict=True)), ("input", "complexity", *(text for text, _ in masks)))


def _sheet(rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], across: int = 1) -> Image.Image:
    """Paste rows of pictures of one size under their headings, ``across`` rows side by side."""
    width, height = rows[0][0].size
    group = len(headings) * (width + _GAP) - _GAP
    deep = -(-len(rows) // across)
    mode = rows[0][0].mode
    sheet = Image.new(
        mode,
        (across * group + (across - 1) * _GROUP_GAP + 2 * _GAP, _HEADER + deep * (height + _GAP)),
        _grey(mode, _PAPER),
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for g in range(across):
        for c, heading in enumerate(headings):
            centre = _GAP + g * (group + _GROUP_GAP) + c * (width + _GAP) + width / 2
            draw.text((centre, _HEADER / 2), heading, fill=_grey(mode, _INK), font=font, anchor="mm")
    for i, pictures in enumerate(rows):
        row, g = divmod(i, across)
        for c, picture in enumerate(pictures):
            left = _GAP + g * (group + _GROUP_GAP) + c * (width + _GAP)
            sheet.paste(picture, (left, _HEADER + row * (height + _GAP)))
    return sheet


def _grey(mode: str, level: int) -> int | tuple[int, int, int]:
    return level if mode == "L" else (level, level, level)


def montage(images: Sequence[NDArray[Any]], columns: int) -> Image.Image:
    """Return images side by side, ``columns`` to a row, each in a cell of the largest one's size.

    Args:
        images: (H, W) or (H, W, 3) uint8 arrays, sizes may differ; at least one.
        columns: how many stand in a row, at least 1.

    Raises:
        ValueError: for no image, no column, or pixels that are not uint8.
    """
    if not images or columns < 1:
        raise ValueError(f"a montage needs images and columns, not {len(images)} images in {columns} columns")
    if wrong := {str(a.dtype) for a in images} - {"uint8"}:
        raise ValueError(f"a montage needs uint8 pixels, not {', '.join(sorted(wrong))}")
    pictures = [Image.fromarray(np.ascontiguousarray(a)) for a in images]
    mode = "L" if all(p.mode == "L" for p in pictures) else "RGB"
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    sheet = Image.new(mode, size, _grey(mode, _PAPER))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left = _GAP + column * (width + _GAP) + (width - picture.width) // 2
        top = _GAP + row * (height + _GAP) + (height - picture.height) // 2
        sheet.paste(picture.convert(mode), (left, top))
    return sheet


def save_png(image: Image.Image, path: Path, limit: int = 300_000) -> Path:
    """Save ``image`` as a PNG of at most ``limit`` bytes and return the path.

    It is shrunk by a tenth at a time until it fits: a picture for the eye, not data.

    Raises:
        OSError: if the file cannot be written.
    """
    while True:
        stream = io.BytesIO()
        image.save(stream, "PNG", optimize=True)
        if stream.tell() <= limit or min(image.size) <= 16:
            break
        smaller = (int(image.width * 0.9), int(image.height * 0.9))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(stream.getvalue())
    part.replace(path)
    return path
