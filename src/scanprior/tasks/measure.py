"""What is measured on the validation images while a classifier is trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scanprior.evaluation import auroc, average_precision
from scanprior.tasks.classify import Kind


def measure(found: NDArray[np.float64], targets: NDArray[np.float64], kind: Kind) -> dict[str, float]:
    """Return loss, its negative, macro AUROC and average precision, accuracy; NaN where undefined."""
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
    return {
        "loss": round(loss, 6),
        "negative_loss": -round(loss, 6),
        "auroc": round(float(np.mean(areas)), 6) if areas else float("nan"),
        "average_precision": round(float(np.mean(precisions)), 6) if precisions else float("nan"),
        "accuracy": round(accuracy, 6),
    }
