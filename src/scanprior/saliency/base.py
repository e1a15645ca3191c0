"""What all saliency methods share: the score they explain, a model left as it was, maps in one form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanprior.tasks.classify import Classifier, probabilities


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode inside the block, with gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode  # each by itself: parts of an encoder may stay in evaluation mode


def scores(logits: Tensor, classes: Tensor) -> Tensor:
    """Return (B,) the logit of each image's class: what a map explains.

    Of a linear head that is the score before softmax or sigmoid, of an ordinal or nearest-neighbour head of classes
    the logarithm of the class's probability.
    """
    return logits.gather(1, classes[:, None])[:, 0]


@torch.no_grad()
def classes_of(model: Classifier, images: Tensor, classes: Tensor | None) -> Tensor:
    """Return (B,) int64 the class to explain for each image.

    Args:
        model: in evaluation mode.
        images: (B, C, S, S), normalised.
        classes: (B,) those wanted; None = the class, or finding, that is most probable.
    """
    if classes is None:
        return probabilities(model.logits(images), model.kind).argmax(dim=1)
    return classes.to(images.device, torch.int64)


def from_tokens(values: Tensor, size: int) -> Tensor:
    """Return values of tokens (B, N) on a square grid, row by row, as maps (B, size, size), bilinear."""
    side = isqrt(values.shape[1])
    grid = values.reshape(len(values), 1, side, side)
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def normalised(maps: Tensor) -> Tensor:
    """Return maps (B, S, S), where nothing is below 0, divided by their largest value; a map of zeros stays one."""
    maps = maps.detach().float()
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)
