"""Classifiers on frozen features, written into the heads of an ordinary ``Classifier``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior.tasks.balance import balance_weights
from scanprior.tasks.classify import Classifier, ClassifyConfig, probabilities
from scanprior.tasks.heads import Kind, LinearHead, NeighbourHead

Measure = Callable[[NDArray[np.float64], NDArray[np.float64], Kind], dict[str, float]]

STRENGTHS = tuple(10.0**power for power in range(-4, 4))
"""The grid of C, the inverse strength of the L2 penalty, chosen from on the validation images."""


def fit_neighbours(model: Classifier, features: Tensor, targets: NDArray[np.float64]) -> dict[str, Any]:
    """Fill the bank of a nearest-neighbour head with (N, D) features and their targets."""
    assert isinstance(model.head, NeighbourHead)
    values = np.eye(len(model.classes))[targets.astype(np.int64)] if model.kind == "multiclass" else targets
    model.head.fill(features, torch.from_numpy(values).float())
    return {"steps": 0, "images": len(features), "selected_by": None}


def fit_linear_probe(
    model: Classifier,
    features: Tensor,
    targets: NDArray[np.float64],
    val_features: Tensor,
    val_targets: NDArray[np.float64],
    measure: Measure,
) -> dict[str, Any]:
    """Fit L2-penalised logistic regression, its strength chosen by validation AUROC.

    The features pass the head's own normalisation and are standardised on the training images;
    the standardisation is folded into the linear layer, so the result is an ordinary classifier.

    Args:
        model: a classifier with a linear head; changed in place.
        features: (N, D) of the training images.
        targets: (N,) class numbers or (N, findings) values in [0, 1], NaN where missing.
        val_features, val_targets: of the validation images; may be empty, then C = 1.
        measure: turns probabilities, targets and kind into metrics.
    """
    assert isinstance(model.head, LinearHead)
    with torch.no_grad():
        train, val = (model.head.norm(x).double().numpy() for x in (features, val_features))
    mean, deviation = train.mean(0), np.maximum(train.std(0), 1e-6)
    scaled = (train - mean) / deviation
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    for strength in STRENGTHS if len(val) else (1.0,):
        weight, bias = _logistic(scaled, targets, model, strength)
        weight = weight / deviation
        bias = bias - weight @ mean
        value = 0.0
        if len(val):
            logits = torch.from_numpy(val @ weight.T + bias)
            found = probabilities(logits, model.kind).double().numpy()
            value = measure(found, val_targets, model.kind)["auroc"]
        if best is None or value > best[0]:
            best = (value, strength, weight, bias)
    assert best is not None
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.from_numpy(best[2]))
        model.head.linear.bias.copy_(torch.from_numpy(best[3]))
    return {
        "steps": 0,
        "images": len(train),
        "selected_by": "auroc",
        "selected_value": best[0],
        "strength": best[1],
    }


def _logistic(
    scaled: NDArray[np.float64], targets: NDArray[np.float64], model: Classifier, strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (classes, D) and bias (classes,) of logistic regression on standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fit(inputs: NDArray[np.float64], wanted: NDArray[np.int64]) -> Any:
        balance = _class_weight(model.config, wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, class_weight=balance, max_iter=2000).fit(inputs, wanted)

    classes, width = len(model.classes), scaled.shape[1]
    weight, bias = np.zeros((classes, width)), np.full(classes, -10.0)
    if model.kind == "multiclass":
        fitted = fit(scaled, targets.astype(np.int64))
        if (
            len(fitted.classes_) == 2
        ):  # scikit-learn gives one row for two classes: the log-odds of the second
            weight[fitted.classes_[1]], bias[fitted.classes_] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
        else:
            weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
        return weight, bias
    for column in range(classes):
        known = ~np.isnan(targets[:, column])
        wanted = (targets[known, column] > 0.5).astype(np.int64)
        if 0 < wanted.sum() < len(wanted):
            fitted = fit(scaled[known], wanted)
            weight[column], bias[column] = fitted.coef_[0], fitted.intercept_[0]
        else:
            bias[column] = 10.0 if len(wanted) and wanted[0] else -10.0
    return weight, bias


def _class_weight(config: ClassifyConfig, wanted: NDArray[np.int64]) -> Any:
    """Return the ``class_weight`` of logistic regression on images of these classes, or with a finding or without."""
    if config.weighting == "effective":
        weights = balance_weights(wanted.astype(np.float64), "multiclass", int(wanted.max()) + 1, "effective")
        return {number: float(weights[number]) for number in np.unique(wanted)}
    return None if config.balance == "none" or config.class_weights == "none" else "balanced"
