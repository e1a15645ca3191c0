"""Grad-CAM: the last feature map, its channels weighted by what they do for a class."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from scanprior.encoders import PyramidEncoder
from scanprior.errors import ConfigError
from scanprior.saliency.base import classes_of, from_tokens, normalised, scores, undisturbed
from scanprior.tasks.classify import Classifier

FEW_CELLS = 5
"""Cells along a side of a map below which it is too coarse to point at small things."""


def gradcam(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return Grad-CAM maps (Selvaraju et al. 2017, arXiv 1610.02391, section 3) at the encoder's last map.

    The weight of a channel is the mean of the score's gradient over the map; the map is the weighted sum of the
    channels, where that is above 0. As heads normalise what they are given, a factor common to all cells plays no
    part: the map says where in the image there is more for the class than elsewhere.

    Args:
        model: a classifier over an encoder of the conv family, Swin and Hiera among them.
        images: (B, C, S, S), normalised.
        classes: (B,) int64; None = the predicted ones.

    Returns:
        (B, S, S) float32 in [0, 1].

    Raises:
        ConfigError: the encoder has no last map.
    """
    encoder = model.encoder
    reason = why_no_map(model)
    if reason is not None or not isinstance(encoder, PyramidEncoder):
        raise ConfigError(f"gradcam: {reason}")
    with undisturbed(model):
        chosen = classes_of(model, images, classes)
        with torch.no_grad():
            final, maps = encoder.final_map(images)
        final = final.detach().requires_grad_()
        score = scores(model.logits_of(encoder.features_of(final, maps)), chosen).sum()
        (slope,) = torch.autograd.grad(score, final)
        activations, gradients = encoder.tokens_of(final.detach()), encoder.tokens_of(slope)
    cells = (activations * gradients.mean(dim=1, keepdim=True)).sum(dim=2).relu()
    return normalised(from_tokens(cells, images.shape[-1]))


def why_no_map(model: Classifier) -> str | None:
    """Return why a classifier's encoder has no last map from which it is classified; None where it has one."""
    encoder = model.encoder
    if not isinstance(encoder, PyramidEncoder):
        return f"{encoder.name} has no pyramid of feature maps"
    if cells_along(encoder) is None:
        return f"{encoder.name} classifies a class token, which is no cell of its last map"
    return None


def cells_along(encoder: PyramidEncoder) -> int | None:
    """Return how many cells a side of the last map has; None where it is a row with a class token.

    An image of zeros is looked at: it is only known then.
    """
    image = next(encoder.parameters()).new_zeros(1, encoder.channels, encoder.size, encoder.size)
    with undisturbed(encoder), torch.no_grad():
        final, _ = encoder.final_map(image)
        cells = final.shape[1] if final.ndim == 3 else encoder.tokens_of(final).shape[1]
    side = isqrt(cells)
    return side if side**2 == cells else None
