"""What is measured on the validation images while a classifier is trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scanprior.evaluation import auroc, average_precision, cohen_kappa
from scanprior.tasks.heads import Kind


def measure(found: NDArray[np.float64], targets: NDArray[np.float64], kind: Kind) -> dict[str, float]:
    """Return loss, its negative, macro AUROC and average precision, accuracy; NaN where undefined.

    Of classes also those of the most probable class: balanced accuracy and macro F1 (means over the classes that
    have images), Cohen's kappa, and quadratic kappa, which means something where the classes are in an order.

    Args:
        found: (N, classes) probabilities.
        targets: (N,) class numbers, or (N, findings) in [0, 1] with NaN where missing.
        kind: which of them.
    """
    if kind == "multiclass":
        truth = np.eye(found.shape[1])[targets.astype(np.int64)]
        loss = float(-np.log(np.clip((found * truth).sum(1), 1e-7, 1)).mean())
        accuracy = float((found.argmax(1) == targets).mean())
    else:
        truth, known = targets, ~np.isnan(targets)
        right = np.where(targets > 0.5, found, 1 - found)[known]
        loss, accuracy = float(-np.log(np.clip(right, 1e-7, 1)).mean()), float((right > 0.5).mean())
    areas, precisions = [], []
    for column in range(found.shape[1]):
        known_rows = ~np.isnan(truth[:, column])
        binary = truth[known_rows, column] > 0.5
        if 0 < binary.sum() < len(binary):
            areas.append(auroc(binary, found[known_rows, column]))
            precisions.append(average_precision(binary, found[known_rows, column]))
    of_calls = _of_calls(found, targets) if kind == "multiclass" else {}
    return {
        "loss": round(loss, 6),
        "negative_loss": -round(loss, 6),
        "auroc": round(float(np.mean(areas)), 6) if areas else float("nan"),
        "average_precision": round(float(np.mean(precisions)), 6) if precisions else float("nan"),
        "accuracy": round(accuracy, 6),
        **{name: round(value, 6) for name, value in of_calls.items()},
    }


def _of_calls(found: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, float]:
    """Return the metrics of the most probable class."""
    count = found.shape[1]
    pairs = np.bincount(targets.astype(np.int64) * count + found.argmax(axis=1), minlength=count**2)
    cells = pairs.reshape(count, count).astype(np.float64)
    there = cells.sum(axis=1) > 0
    hits, true, called = (part[there] for part in (np.diag(cells), cells.sum(axis=1), cells.sum(axis=0)))
    return {
        "balanced_accuracy": float((hits / true).mean()),
        "macro_f1": float((2 * hits / (true + called)).mean()),
        "kappa": cohen_kappa(cells),
        "quadratic_kappa": cohen_kappa(cells, quadratic=True),
    }
