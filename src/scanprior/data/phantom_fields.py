"""Fields on a batch of image planes: keyed draws, antialiased edges, textures and thin curves.

Coordinates are half image widths from the centre: x to the right and y down, both in [-1, 1] on the
picture. Every field is float32 of shape (B, S, S), every drawn number float32 of shape (B, 1, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch.nn.functional import interpolate

from scanprior import keyed

Field = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Draws:
    """Named draws for a batch of positions (patients or images); a name always gives the same number.

    Args:
        seed: seed of the whole collection.
        stream: what the positions count ("patient", "image").
        positions: int64, (B,).
    """

    seed: int
    stream: str
    positions: NDArray[np.int64]

    def _key(self, name: str) -> int:
        return keyed.key(self.seed, f"phantom/{self.stream}/{name}")

    def uniform(self, name: str, count: int = 1) -> NDArray[np.float64]:
        """Return (B, count) numbers in [0, 1)."""
        return keyed.uniform(self._key(name), self.positions, count)

    def between(self, name: str, low: float, high: float) -> Field:
        """Return (B, 1, 1) numbers, uniform in [low, high)."""
        return (low + (high - low) * self.uniform(name)).astype(np.float32)[:, :, None]

    def chance(self, name: str, probability: float | NDArray[np.float64]) -> Flags:
        """Return (B,) booleans, True with the probability given (one number, or one a position)."""
        return self.uniform(name)[:, 0] < probability

    def normal(self, name: str, shape: Sequence[int]) -> Field:
        """Return (B, *shape) standard normal numbers."""
        return keyed.normal(self._key(name), self.positions, shape).numpy()

    def texture(self, name: str, cells: int, size: int) -> Field:
        """Return (B, size, size) smooth noise of about unit variance with ``cells`` grains a side."""
        coarse = torch.from_numpy(self.normal(name, (cells, cells)))[:, None]
        fine = interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        return fine[:, 0].numpy()

    def rows(self, chosen: Flags) -> Draws:
        """Return the draws of the chosen rows only."""
        return Draws(self.seed, self.stream, self.positions[chosen])


@dataclass(frozen=True)
class Plane:
    """The picture plane of a batch: where each pixel lies in the patient's frame.

    Picture = scale x rotation(patient) + shift, all of shape (B, 1, 1); the rotation is in radians.
    """

    size: int
    scale: Field
    rotation: Field
    shift: tuple[Field, Field]

    @property
    def pixel(self) -> float:
        """Width of a pixel."""
        return 2 / self.size

    @cached_property
    def patient(self) -> tuple[Field, Field]:
        """x and y of every pixel in the patient's frame, each (B, S, S)."""
        across, down = picture_axes(self.size)
        across, down = (across - self.shift[0]) / self.scale, (down - self.shift[1]) / self.scale
        cosine, sine = np.cos(self.rotation), np.sin(self.rotation)
        return across * cosine + down * sine, down * cosine - across * sine

    @property
    def x(self) -> Field:
        """Patient's x of every pixel, (B, S, S)."""
        return self.patient[0]

    @property
    def y(self) -> Field:
        """Patient's y of every pixel, (B, S, S)."""
        return self.patient[1]

    def pixels(self, x: Field, y: Field) -> tuple[Field, Field]:
        """Return the columns and rows, in pixels, of points (B, P) given in the patient's frame."""
        cosine, sine = np.cos(self.rotation[:, 0]), np.sin(self.rotation[:, 0])
        scale, shift = self.scale[:, 0], (self.shift[0][:, 0], self.shift[1][:, 0])
        across = (x * cosine - y * sine) * scale + shift[0]
        down = (x * sine + y * cosine) * scale + shift[1]
        return (across + 1) / self.pixel - 0.5, (down + 1) / self.pixel - 0.5

    def rows(self, chosen: Flags) -> Plane:
        """Return the planes of the chosen rows only."""
        shift = (self.shift[0][chosen], self.shift[1][chosen])
        return Plane(self.size, self.scale[chosen], self.rotation[chosen], shift)


def picture_axes(size: int) -> tuple[Field, Field]:
    """Return x and y of the pixel centres of an upright picture, shapes (1, 1, S) and (1, S, 1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return axis[None, None, :], axis[None, :, None]


def edge(distance: Field, width: float | Field) -> Field:
    """Smooth step from 0 (distance <= -width/2) to 1 (distance >= width/2)."""
    step: Field = np.clip(distance / width + 0.5, 0, 1)
    return step * step * (3 - 2 * step)


def chord(radius_squared: Field) -> Field:
    """Half the path through a round body: sqrt(1 - r^2) inside, 0 outside."""
    return np.sqrt(np.maximum(1 - radius_squared, 0), dtype=np.float32)


def ellipse(
    plane: Plane,
    centre: tuple[Field, Field],
    axes: tuple[float | Field, float | Field],
    tilt: float | Field = 0.0,
) -> Field:
    """Squared radius in an ellipse whose first axis is turned by ``tilt`` radians towards +y; 1 on it."""
    across, down = plane.x - centre[0], plane.y - centre[1]
    cosine, sine = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    along = (across * cosine + down * sine) / axes[0]
    aside = (down * cosine - across * sine) / axes[1]
    return along * along + aside * aside


def blur(field: Field, sigma_pixels: float) -> Field:
    """Gaussian blur of each image of the batch; below a fifth of a pixel nothing is done."""
    if sigma_pixels < 0.2:
        return field
    for axis in (1, 2):
        field = gaussian_filter1d(field, sigma_pixels, axis=axis, mode="nearest", truncate=3.0)
    return field


def splat(column: Field, row: Field, mass: Field, size: int) -> Field:
    """Lay points on the pixel grid, each shared between its four neighbours.

    Args:
        column: (B, P) places in pixels, pixel centres at whole numbers.
        row: (B, P) likewise.
        mass: (B, P) what each point adds.
        size: pixels a side; points outside are left out.
    """
    batch = len(column)
    left, top = np.floor(column), np.floor(row)
    right_share, low_share = column - left, row - top
    start = np.arange(batch, dtype=np.int64)[:, None] * (size * size)
    total = np.zeros(batch * size * size)
    for down, row_share in ((0, 1 - low_share), (1, low_share)):
        for across, column_share in ((0, 1 - right_share), (1, right_share)):
            c, r = left.astype(np.int64) + across, top.astype(np.int64) + down
            inside = (c >= 0) & (c < size) & (r >= 0) & (r < size)
            share = (mass * row_share * column_share)[inside]
            total += np.bincount((start + r * size + c)[inside], share, minlength=len(total))
    return total.reshape(batch, size, size).astype(np.float32)


def bezier(control: Field, points: int) -> Field:
    """Sample cubic Bezier curves: control points (..., 4, 2) to (..., points, 2)."""
    t = np.linspace(0, 1, points, dtype=np.float32)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return weights.astype(np.float32) @ control
