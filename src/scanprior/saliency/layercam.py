"""LayerCAM: a feature map before the last, its cells weighted one by one; finer than Grad-CAM on small images."""

from __future__ import annotations

import torch
from torch import Tensor

from scanprior.encoders import PyramidEncoder
from scanprior.errors import ConfigError
from scanprior.saliency.base import classes_of, from_tokens, normalised, scores, undisturbed
from scanprior.saliency.gradcam import FEW_CELLS, why_no_map
from scanprior.tasks.classify import Classifier


def layercam(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return LayerCAM maps (Jiang et al. 2021, IEEE Transactions on Image Processing 30:5875).

    Every cell of every channel is weighted by its own gradient of the score, where that is above 0, and the channels
    are summed. So the weights hold in earlier maps too, where a channel's mean gradient says little. The map taken is
    the deepest of the pyramid with at least 5 x 5 cells [our choice], the finest where none has.

    Args:
        model: a classifier over an encoder with a pyramid.
        images: (B, C, S, S), normalised.
        classes: (B,) int64; None = the predicted ones.

    Returns:
        (B, S, S) float32 in [0, 1].

    Raises:
        ConfigError: the encoder has no such map.
    """
    reason = why_no_level(model)
    if reason is not None:
        raise ConfigError(f"layercam: {reason}")
    with undisturbed(model):
        activations, gradients = _level(model, images, classes_of(model, images, classes))
    cells = (activations * gradients.relu()).sum(dim=1).relu()
    return normalised(from_tokens(cells.flatten(1), images.shape[-1]))


def why_no_level(model: Classifier) -> str | None:
    """Return why a classifier's encoder has no map that its class is made of; None where it has one."""
    encoder = model.encoder
    reason = why_no_map(model)
    if reason is not None or not isinstance(encoder, PyramidEncoder):
        return reason
    image = next(encoder.parameters()).new_zeros(1, encoder.channels, encoder.size, encoder.size)
    with undisturbed(model):
        if not _levels(model, image, torch.zeros(1, dtype=torch.int64, device=image.device)):
            return f"{encoder.name} gives copies of its maps, not those that its class is made of"
    return None


def _level(model: Classifier, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map taken, and the gradient of the score there, both (B, C, H, W)."""
    found = _levels(model, images, classes)
    return next((pair for pair in reversed(found) if min(pair[0].shape[2:]) >= FEW_CELLS), found[0])


def _levels(model: Classifier, images: Tensor, classes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the maps that the score is made of with its gradients there, fine to coarse."""
    encoder = model.encoder
    assert isinstance(encoder, PyramidEncoder)
    final, maps = encoder.final_map(images.detach().clone().requires_grad_())
    score = scores(model.logits_of(encoder.features_of(final, maps)), classes).sum()
    slopes = torch.autograd.grad(score, maps, allow_unused=True)
    return [(each.detach(), slope) for each, slope in zip(maps, slopes, strict=True) if slope is not None]
