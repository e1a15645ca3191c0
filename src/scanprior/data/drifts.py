"""Synthetic drifts: one dose-controlled change of images at a time, to see where a model breaks.

A drift has a kind (gamma, contrast, noise, blur, jpeg, resolution, border, inversion) and a severity
from 1, barely visible, to 5, clearly degraded; severity 0 is the image itself. Kinds, values and
severities are our definition. They change a whole set in one direction, as another scanner or
another export does; augmentation, which varies every image its own way, is in ``transforms``.

What is random in a drift (grain, the edge and width of a border, which images are inverted) is a
function of (seed, kind, position). It is not of the severity: an image keeps its grain and its border's
edge from one severity to the next, and so its changes grow.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior import keyed
from scanprior.data import drift_kernels as kernels
from scanprior.errors import ConfigError

SEVERITIES = range(6)
"""0 = the image itself, 5 = the strongest."""


@dataclass(frozen=True)
class Drift:
    """One kind of drift.

    Attributes:
        description: one line: what it does, and what it stands for.
        parameter: what ``values`` are, with their unit.
        values: of severities 1 to 5.
        change: images (B, C, H, W) uint8 or uint16, value, key and positions (B,) to images alike.
    """

    description: str
    parameter: str
    values: tuple[float, float, float, float, float]
    change: Callable[[Tensor, float, int, NDArray[np.int64]], Tensor]


# Our definition, all eight. The values were set by eye on radiographs of 224 px.
DRIFTS: dict[str, Drift] = {
    "gamma": Drift(
        "darker mid-tones, as of another display curve",
        "exponent of the pixels in [0, 1]",
        (1.15, 1.35, 1.65, 2.1, 2.8),
        kernels.gamma,
    ),
    "contrast": Drift(
        "flatter image around its mean grey, as of a wider window",
        "factor of the distance to the mean",
        (0.85, 0.7, 0.55, 0.42, 0.3),
        kernels.contrast,
    ),
    "noise": Drift(
        "white Gaussian grain, as of a lower dose",
        "standard deviation as a share of the full range",
        (0.015, 0.03, 0.055, 0.09, 0.14),
        kernels.noise,
    ),
    "blur": Drift(
        "Gaussian blur, as of motion or a softer kernel",
        "standard deviation in pixels of an image of 224",
        (0.6, 1.0, 1.6, 2.4, 3.6),
        kernels.blur,
    ),
    "jpeg": Drift(
        "JPEG compression and back, as of a lossy archive",
        "quality, 1 to 100",
        (50, 25, 15, 9, 6),
        kernels.jpeg,
    ),
    "resolution": Drift(
        "reduced and enlarged again, as of a coarser detector or a thumbnail",
        "share of the side that is left",
        (0.7, 0.5, 0.36, 0.26, 0.18),
        kernels.resolution,
    ),
    "border": Drift(
        "black strip over one edge, drawn by image, as of a collimator or a scanned margin",
        "mean width in pixels of an image of 224; by image 3/4 to 5/4 of it",
        (4, 10, 20, 35, 56),
        kernels.border,
    ),
    # A half-inverted image is a flat grey one, which no scanner makes; a set where some images are
    # stored in the other polarity (MONOCHROME1 read as MONOCHROME2) is what happens.
    "inversion": Drift(
        "a share of the images in the other polarity, as where MONOCHROME1 is misread",
        "share of the images that are inverted",
        (0.1, 0.25, 0.5, 0.75, 1.0),
        kernels.inversion,
    ),
}


def apply_drift(
    images: Tensor | NDArray[Any], kind: str, severity: int, *, seed: int, positions: keyed.Positions
) -> Tensor:
    """Return images under one drift; the given ones stay as they are.

    Args:
        images: (B, C, H, W) uint8 or uint16 over the full range, on the CPU; any C, H and W.
        kind: a key of ``DRIFTS``.
        severity: 0 to 5; 0 gives a copy, equal bit for bit.
        seed: with kind and position, the key of everything random.
        positions: (B,) int64, the image's place in its set.

    Returns:
        A new (B, C, H, W) tensor of the same dtype. Row b depends on ``images[b]``, ``positions[b]``
        and the other arguments, not on the rest of the batch. 16-bit pixels keep their depth, but for
        ``jpeg``, whose files hold 8 bits: they come back as 256 of the 65,536 levels.

    Raises:
        ConfigError: there is no such kind or severity.
        TypeError: pixels of another type, whose range nobody knows.
        ValueError: not (B, C, H, W), or not one position an image.
    """
    drift = find_drift(kind)
    check_severity(severity)
    images = torch.as_tensor(images)
    places = np.asarray(positions, dtype=np.int64)
    if images.dtype not in (torch.uint8, torch.uint16):
        raise TypeError(f"images must be uint8 or uint16, found {images.dtype}")
    if images.ndim != 4 or places.shape != (len(images),):
        raise ValueError(
            f"needs images (B, C, H, W) and B positions, found {tuple(images.shape)} and {places.shape}"
        )
    if severity == 0 or not images.numel():
        return images.clone()
    place = keyed.key(seed, f"drift {kind}")
    return drift.change(images.contiguous(), drift.values[severity - 1], place, places)


def find_drift(kind: str) -> Drift:
    """Return the drift of a name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if kind in DRIFTS:
        return DRIFTS[kind]
    near = difflib.get_close_matches(str(kind).lower(), DRIFTS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(DRIFTS)}"
    raise ConfigError(f"drift: there is no kind {kind!r}; {hint}")


def check_severity(severity: int) -> None:
    """Refuse what is no severity.

    Raises:
        ConfigError: not a whole number from 0 to 5; the message names the nearest that is.
    """
    whole = isinstance(severity, int | np.integer) and not isinstance(severity, bool)
    if whole and severity in SEVERITIES:
        return
    hint = "choose a whole number from 0 (the image itself) to 5"
    if isinstance(severity, int | float | np.number) and np.isfinite(severity):
        hint += f"; did you mean {min(SEVERITIES, key=lambda known: abs(known - severity))}?"
    raise ConfigError(f"drift: there is no severity {severity!r}; {hint}")
