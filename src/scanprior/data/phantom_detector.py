"""From path lengths to grey levels: absorption, scatter, detector, window, borders and inversion.

I = exp(-sum of mu x path), plus scattered light; the detector answers to log I with quantum noise
that grows as I falls, and a window turns it into a grey level, bright where much was absorbed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scanprior.data.phantom_fields import Draws, Field, Flags, blur, edge, picture_axes

SOFT_TISSUE = 3.4  # absorption of soft tissue for half an image width
BONE = 7.5  # what the same length of bone absorbs beyond soft tissue


@dataclass(frozen=True)
class Site:
    """How one hospital takes and stores its films.

    Attributes:
        scatter: scattered over direct light.
        noise: standard deviation of the noise in log I at full exposure, at 128 pixels a side.
        blur: width of the detector's point spread, in half image widths.
        window: lowest and highest absorption shown, as shares of the trunk's own.
        gamma: exponent of the grey scale.
        border: share of images with visible collimation, and its largest width.
        border_level: grey level of the collimated border, 0 to 1.
        inverted: whether some images are stored inverted.
        framed_marker: marker letters in a ring.
    """

    scatter: float
    noise: float
    blur: float
    window: tuple[float, float]
    gamma: float
    border: tuple[float, float]
    border_level: float
    inverted: bool
    framed_marker: bool


SITES = {
    "a": Site(0.05, 0.012, 0.006, (0.18, 1.13), 1.0, (0.35, 0.05), 0.0, False, False),
    "b": Site(0.1, 0.018, 0.012, (0.02, 1.14), 0.85, (0.75, 0.1), 0.93, True, True),
}


def expose(absorbed: Field, trunk: Field, sites: list[Site], image: Draws, inverted: Flags) -> Field:
    """Return grey levels (B, S, S) in [0, 1].

    Args:
        absorbed: sum of mu x path, (B, S, S).
        trunk: absorption of the trunk without lungs, (B, 1, 1): automatic exposure aims at it.
        sites: one a row.
        image: draws keyed by image.
        inverted: (B,), rows stored dark on bright.
    """
    size = absorbed.shape[-1]

    def of_site(values: list[float]) -> Field:
        return np.asarray(values, dtype=np.float32)[:, None, None]

    direct = np.exp(-absorbed)
    scatter = of_site([site.scatter for site in sites]) * image.between("scatter", 0.7, 1.3)
    light = direct + scatter * _glare(direct)
    signal = -np.log(light)
    noise = of_site([site.noise for site in sites]) * image.between("dose", 0.7, 1.4) * (size / 128)
    sigmas = [site.blur / (2 / size) for site in sites]
    for sigma in sorted(set(sigmas)):
        rows = np.asarray([each == sigma for each in sigmas])
        signal[rows] = blur(signal[rows], sigma)
    signal += noise * image.normal("grain", (size, size)) / np.sqrt(light + 0.01)
    low = trunk * (of_site([site.window[0] for site in sites]) + image.between("window low", -0.05, 0.05))
    high = trunk * (of_site([site.window[1] for site in sites]) + image.between("window high", -0.09, 0.09))
    gamma = of_site([site.gamma for site in sites]) * image.between("gamma", 0.88, 1.14)
    level: Field = np.clip((signal - low) / (high - low), 0, 1) ** gamma
    level = _collimate(level, sites, image)
    return np.where(inverted[:, None, None], 1 - level, level)


def _glare(light: Field) -> Field:
    """Scattered light: the direct light spread widely, computed on every fourth pixel row and column."""
    batch, size = light.shape[0], light.shape[-1]
    cells = size // 4
    coarse = light[:, : cells * 4, : cells * 4].reshape(batch, cells, 4, cells, 4).mean(axis=(2, 4))
    spread = blur(coarse, 0.12 * cells)
    place = np.clip((np.arange(size, dtype=np.float32) + 0.5) / 4 - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), cells - 2)
    share = (place - low).astype(np.float32)
    lines = spread[:, low] * (1 - share)[:, None] + spread[:, low + 1] * share[:, None]
    glare: Field = lines[:, :, low] * (1 - share) + lines[:, :, low + 1] * share
    return glare


def _collimate(level: Field, sites: list[Site], image: Draws) -> Field:
    """Put the collimator's border around some images: a slightly turned rectangle of one grey level."""
    share = np.asarray([site.border[0] for site in sites])
    widest = np.asarray([site.border[1] for site in sites], dtype=np.float32)
    width = (2 * image.uniform("border width", 4).astype(np.float32) - 0.4) * widest[:, None]
    width = np.where(image.chance("border", share)[:, None], width, -1).astype(np.float32)[:, :, None, None]
    across, down = picture_axes(level.shape[-1])
    turn = image.between("border turn", -0.015, 0.015)
    x, y = across + turn * down, down - turn * across
    nearest = np.minimum(
        np.minimum(x + 1 - width[:, 0], 1 - x - width[:, 1]),
        np.minimum(y + 1 - width[:, 2], 1 - y - width[:, 3]),
    )
    open_field = edge(nearest, 3 * 2 / level.shape[-1])
    shade = np.asarray([site.border_level for site in sites], dtype=np.float32)[:, None, None]
    return open_field * level + (1 - open_field) * shade
