"""The random numbers of one augmented view, a fixed place for every decision.

Because a decision always has the same place, switching one off does not change the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scanprior import keyed

CROP_TRIES = 10
_NAMES = (
    "crop_x", "crop_y", "rotate", "translate_x", "translate_y", "zoom", "hflip", "vflip",
    "jitter", "brightness", "contrast", "saturation", "hue", "gamma",
    "grey", "blur", "blur_sigma", "solarize", "noise",
)  # fmt: skip
_PLACE = {name: place for place, name in enumerate(_NAMES)}


class Draws:
    """Uniform numbers for B samples; row b depends on the key and ``positions[b]`` only.

    Args:
        key: of seed, purpose and view.
        positions: (B,) places of the samples in the training stream.
    """

    def __init__(self, key: int, positions: keyed.Positions) -> None:
        self.key, self.positions = key, positions
        self._uniform = keyed.uniform(key, positions, len(_NAMES) + 2 * CROP_TRIES)

    def unit(self, name: str) -> NDArray[np.float64]:
        """Return (B,) numbers in [0, 1) for a decision."""
        return self._uniform[:, _PLACE[name]]

    def between(self, name: str, low: float, high: float) -> NDArray[np.float64]:
        """Return (B,) numbers in [low, high)."""
        return low + (high - low) * self.unit(name)

    def log_between(self, name: str, low: float, high: float) -> NDArray[np.float64]:
        """Return (B,) numbers in [low, high) whose logarithm is uniform."""
        return np.exp(self.between(name, np.log(low), np.log(high)))

    def happens(self, name: str, probability: float) -> NDArray[np.bool_]:
        """Return (B,) whether a decision of this probability falls to yes."""
        return self.unit(name) < probability

    def crop_tries(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (B, tries) numbers in [0, 1) for the area and for the ratio of a crop."""
        tries = self._uniform[:, len(_NAMES) :]
        return tries[:, :CROP_TRIES], tries[:, CROP_TRIES:]
