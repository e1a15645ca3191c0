"""From stored pixels to the network's input, with and without augmentation.

Every random decision of a view is a function of the run's seed, its purpose, the number of the
view and the sample's position in the training stream: not of the batch it is in.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from scanprior import keyed
from scanprior.data.augmentation import Augmentation, preset_names, presets
from scanprior.data.draws import Draws
from scanprior.data.geometry import placements, warp, warp_masks
from scanprior.data.inputs import normalise, to_input, to_unit
from scanprior.data.intensity import vary
from scanprior.data.preprocessing import Form, Preprocessing, prepare_image

__all__ = [
    "Augmentation",
    "Form",
    "Preprocessing",
    "augment",
    "augment_with_masks",
    "prepare_image",
    "preset_names",
    "presets",
    "to_input",
]


def augment(
    images: Tensor | NDArray[Any],
    config: Augmentation,
    pre: Preprocessing,
    *,
    seed: int,
    purpose: str,
    positions: keyed.Positions,
    view: int = 0,
) -> Tensor:
    """Return one augmented view of every image.

    Args:
        images: (B, C, S, S) uint8 or uint16, as the store gives them.
        config: what varies, and how much.
        pre: what the network expects.
        seed, purpose, view: with the position, the key of every decision.
        positions: (B,) int64 places of the samples in the training stream.

    Returns:
        (B, C, S, S) float32, normalised, S = ``pre.size``. Without any variation it is ``to_input``.
    """
    settings = config.for_view(view)
    draws = Draws(keyed.key(seed, purpose, view), positions)
    return _shown(images, settings, draws, placements(settings, draws), pre)


def augment_with_masks(
    images: Tensor | NDArray[Any],
    masks: Tensor,
    config: Augmentation,
    pre: Preprocessing,
    *,
    seed: int,
    purpose: str,
    positions: keyed.Positions,
) -> tuple[Tensor, Tensor]:
    """Return one augmented view of every image, and its masks in the same place.

    Args:
        images, config, pre, seed, purpose, positions: as for ``augment``, whose view 0 this is.
        masks: (B, K, S, S) uint8, as large as the images.

    Returns:
        (B, C, S, S) float32, normalised, and (B, K, S, S) uint8, S = ``pre.size``; 0 outside the image.
    """
    settings = config.for_view(0)
    draws = Draws(keyed.key(seed, purpose, 0), positions)
    place = placements(settings, draws)
    return _shown(images, settings, draws, place, pre), warp_masks(masks, place, pre.size)


def _shown(
    images: Tensor | NDArray[Any],
    settings: Augmentation,
    draws: Draws,
    place: NDArray[Any],
    pre: Preprocessing,
) -> Tensor:
    shown = warp(to_unit(images, pre.channels), place, pre.size, settings.interpolation)
    return normalise(vary(shown, settings, draws), pre)
