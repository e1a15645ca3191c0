"""What rare classes count for: their weights in the loss, and how often their images are drawn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior.evaluation.labels import Task

Weighting = Literal["balanced", "effective"]

BETA = 0.999
"""Of the effective number of images; a class of very many counts as 1,000."""
LIGHTEST, HEAVIEST = 0.05, 20.0


def balance_weights(
    targets: NDArray[np.float64], kind: Task, classes: int, weighting: Weighting = "balanced"
) -> Tensor:
    """Return loss weights (classes,): of each class, or of the positives of each finding.

    ``balanced`` is one over the number of images: of classes with mean 1 over the images (scikit-learn's
    "balanced"), of findings negatives / positives. ``effective`` takes in place of a number of images n the
    effective number (1 - beta^n) / (1 - beta) with beta = 0.999, which stays below a thousand (Cui et al. 2019,
    arXiv 1901.05555, section 4): of classes with mean 1 over the classes that have images.
    A finding without a positive or a negative gets weight 1; weights are kept within 1/20 to 20.

    Args:
        targets: (N,) class numbers, or (N, findings) in [0, 1] with NaN where missing; more than 0.5 is positive.
        kind: which of them.
        classes: how many classes or findings.
        weighting: which of the two.
    """

    def size(count: NDArray[np.int64]) -> NDArray[np.float64]:
        """The number of images, at least 1, or their effective number."""
        atleast = np.maximum(count, 1).astype(np.float64)
        return atleast if weighting == "balanced" else (1 - BETA**atleast) / (1 - BETA)

    if kind == "multiclass":
        counts = np.bincount(targets.astype(np.int64), minlength=classes)
        there = counts > 0
        if weighting == "balanced":
            weights = len(targets) / (np.count_nonzero(there) * size(counts))
        else:
            weights = np.count_nonzero(there) / size(counts) / (1 / size(counts))[there].sum()
    else:
        positive, negative = (targets > 0.5).sum(0), (targets <= 0.5).sum(0)
        both = (positive > 0) & (negative > 0)
        weights = np.where(both, size(negative) / size(positive), 1.0)
    return torch.from_numpy(np.clip(weights, LIGHTEST, HEAVIEST)).float()


def sampling_weights(targets: NDArray[np.float64], kind: Task, classes: int) -> NDArray[np.float64]:
    """Return (N,) weights that draw every class equally often (multi-label: by the rarest finding)."""
    if kind == "multiclass":
        numbers = targets.astype(np.int64)
        shares: NDArray[np.float64] = 1.0 / np.bincount(numbers, minlength=classes)[numbers]
        return shares
    rarity = 1.0 / np.maximum((targets > 0.5).sum(0), 1)
    negative = 1.0 / max(1, int((~(targets > 0.5).any(1)).sum()))
    chosen: NDArray[np.float64] = np.where(targets > 0.5, rarity, 0.0).max(1).clip(min=negative)
    return chosen
