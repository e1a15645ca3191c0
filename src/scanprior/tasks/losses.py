"""Focal losses: what is classified well already counts for little."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, gamma: float
) -> Tensor:
    """Return the focal loss (B,) of each image.

    The cross-entropy, times (1 - p)^gamma, where p is the probability of the image's class (Lin et al. 2017,
    arXiv 1708.02002, section 3.2); the weights of the classes are their alpha. Of a smoothed label, 1 - p is
    half the sum of the distances of the probabilities from the label's shares, which is the same where a class
    has them all, and 0 where the probabilities are the shares [our definition].

    Args:
        logits: (B, classes).
        target: (B,) class numbers.
        weights: (classes,).
        smoothing: share of a label that is spread over all classes, in [0, 1).
        gamma: at least 0, which gives the cross-entropy.
    """
    each = F.cross_entropy(logits, target, weights, label_smoothing=smoothing, reduction="none")
    classes = logits.shape[1]
    wanted = F.one_hot(target, classes) * (1 - smoothing) + smoothing / classes
    return each * _focus((wanted - logits.softmax(dim=1)).abs().sum(dim=1) / 2, gamma)


def focal_binary_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Return the focal loss (B, findings) of every label by itself.

    The binary cross-entropy, times |target - p|^gamma, p being the probability of the finding. Of labels of 0 and
    1 that is Lin et al. 2017 (arXiv 1708.02002, section 3.2); of those between, such as smoothed ones, it is the
    quality focal loss, which is 0 at the label (Li et al. 2020, arXiv 2006.04388).

    Args:
        logits: (B, findings).
        target: (B, findings) in [0, 1].
        weights: (findings,) of the positives.
        gamma: at least 0, which gives the binary cross-entropy.
    """
    each = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
    return each * _focus((target - logits.sigmoid()).abs(), gamma)


def _focus(distance: Tensor, gamma: float) -> Tensor:
    # The root of exactly 0 would have an infinite gradient.
    return distance.clamp(min=torch.finfo(distance.dtype).eps) ** gamma
