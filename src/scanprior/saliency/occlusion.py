"""Occlusion: how much of a class's score is lost when a window of the image is covered."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scanprior.errors import ConfigError
from scanprior.saliency.base import classes_of, normalised, scores, undisturbed
from scanprior.tasks.classify import Classifier

Cover = Literal["image", "zero"]
"""What a window is covered with: the mean of the image, or 0, which is the mean of the training images."""

WINDOWS = 8
"""Windows along a side, side by side; by default they move by half of one."""

_ROUNDING = 1e-5
"""Changes of a score by less than this part of it, or of 1, are rounding: batches of other sizes differ by as much."""


def occlusion(
    model: Classifier,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    cover: Cover = "image",
    batch_size: int = 64,
) -> Tensor:
    """Return occlusion maps (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2), by captum.

    Of every window the fall of the class's score when it is covered; a pixel has the mean over the windows that cover
    it, and 0 where covering raises the score. Any classifier can be looked at; it costs (2 * 8 - 1)² predictions of
    an image.

    Args:
        model: any classifier.
        images: (B, C, S, S), normalised.
        classes: (B,) int64; None = the predicted ones.
        window: side of the window in pixels; None = S / 8.
        stride: by how many pixels it moves; None = half a window.
        cover: what the window is covered with.
        batch_size: images per forward pass.

    Returns:
        (B, S, S) float32 in [0, 1].

    Raises:
        ConfigError: captum is not installed, or the window or stride does not fit.
    """
    try:
        from captum.attr import Occlusion
    except ImportError as error:
        raise ConfigError("occlusion needs captum; pip install 'scanprior[explain]'") from error
    size = images.shape[-1]
    window = max(1, size // WINDOWS) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window <= size:
        raise ConfigError(
            f"occlusion: a window of {window} px that moves by {stride} px does not cover images of {size} px; take a "
            "stride from 1 to the side of the window, and a window no larger than the image"
        )
    with undisturbed(model), torch.no_grad():
        chosen = classes_of(model, images, classes)
        before = scores(model.logits(images), chosen)
        lost: Tensor = Occlusion(model.logits).attribute(
            images,
            sliding_window_shapes=(images.shape[1], window, window),
            strides=(images.shape[1], stride, stride),
            baselines=_covered(images, cover),
            target=chosen,
            perturbations_per_eval=max(1, batch_size // max(1, len(images))),
        )
    lost = lost.mean(dim=1)  # all channels are covered together and have the same
    least = _ROUNDING * before.abs().clamp(min=1)[:, None, None]
    return normalised(torch.where(lost > least, lost, 0.0))


def _covered(images: Tensor, cover: Cover) -> Tensor:
    if cover == "zero":
        return torch.zeros_like(images)
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
