"""What an encoder's maps look like on the whole: for telling whether an image is like those it was trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scanprior.encoders.base import Features


def descriptor(features: Features) -> Tensor:
    """Return the means and deviations of the channels of every level of the pyramid, each level of length 1.

    Means of all levels as in Lee et al. 2018 (arXiv 1807.03888); deviations and the scaling are ours: the early levels
    see what kind of picture it is (grain, edges, contrast) and are changed least by a training on a task.

    Args:
        features: of B images, with a pyramid of L levels of C_i channels.

    Returns:
        (B, 2 * sum of C_i) float32.
    """
    parts = []
    for level in features.pyramid:
        level = level.float()
        mean = level.mean((2, 3), keepdim=True)
        deviation = (level - mean).square_().mean((2, 3)).sqrt()  # torch.std_mean takes ten times as long
        parts += [F.normalize(mean[:, :, 0, 0], dim=1), F.normalize(deviation, dim=1)]
    return torch.cat(parts, dim=1)
