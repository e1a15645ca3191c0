"""One prediction out of several: how the probabilities of the members of an ensemble become one.

Shapes: probabilities (K, N, C) of K members, N images and C classes or findings; truth (N, C) in {0, 1}, NaN
where unknown, one-hot where an image has one class. What is fitted is fitted on validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, log_softmax, logit, softmax

from scanprior.evaluation.labels import Task

Floats = NDArray[np.float64]

Method = Literal["mean", "geometric", "calibrated", "weighted"]
METHODS: tuple[Method, ...] = get_args(Method)
FITTED: tuple[Method, ...] = ("calibrated", "weighted")
"""Methods that learn something from validation images."""

LEAST: dict[Task, float] = {"multiclass": 1e-12, "multilabel": 2.0**-24}
"""Probabilities are kept this far from 0 and 1 where their logarithm is taken.

Networks give single precision, in which a finding that is more probable than 1 - 2^-25 is 1: its log-odds are
known up to 16.6, so no more is believed of those that are as improbable.
"""
TEMPERATURES = (0.05, 20.0)
"""Range of a temperature: validation images that are all right would ask for 0."""


@dataclass(frozen=True)
class Combination:
    """How an ensemble combines its members.

    Attributes:
        method: ``mean`` of the probabilities (arXiv 2605.21970); ``geometric`` mean, renormalised (of findings:
            the mean of the log-odds); ``calibrated``: the mean after a temperature for each member; ``weighted``
            mean.
        temperatures: (K,) of ``calibrated``, else None.
        weights: (K,) of ``weighted``, not negative and 1 together, else None.
    """

    method: Method = "mean"
    temperatures: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None

    @classmethod
    def fit(cls, method: Method, members: Floats, truth: Floats, task: Task) -> Combination:
        """Learn what a method needs from validation images; ``mean`` and ``geometric`` need nothing.

        Args:
            method: one of ``METHODS``.
            members: (K, N, C) probabilities.
            truth: (N, C).
            task: whether an image has one class, or every finding by itself.
        """
        if method == "calibrated":
            found = tuple(fit_temperature(member, truth, task) for member in members)
            return cls(method, temperatures=found)
        if method == "weighted":
            return cls(method, weights=tuple(fit_weights(members, truth, task).tolist()))
        return cls(method)

    def __call__(self, members: Floats, task: Task) -> Floats:
        """Return the probabilities (N, C) of the ensemble from those (K, N, C) of its members."""
        if self.method == "geometric":
            return geometric_mean(members, task)
        if self.weights is not None:
            return np.asarray(np.einsum("k,knc->nc", np.asarray(self.weights), members))
        return np.asarray(self.tempered(members, task).mean(axis=0))

    def tempered(self, members: Floats, task: Task) -> Floats:
        """Return the probabilities (K, N, C) as they are averaged: after the temperatures, where there are any."""
        if self.temperatures is None:
            return members
        each = zip(members, self.temperatures, strict=True)
        return np.stack([apply_temperature(member, temperature, task) for member, temperature in each])

    def card(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "method": self.method,
            "temperatures": None if self.temperatures is None else list(self.temperatures),
            "weights": None if self.weights is None else list(self.weights),
        }

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> Combination:
        """Read what ``card`` returned."""

        def numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
            return None if values is None else tuple(map(float, values))

        return cls(card["method"], numbers(card["temperatures"]), numbers(card["weights"]))


def geometric_mean(members: Floats, task: Task) -> Floats:
    """Return the softmax of the mean log-probabilities, of findings the sigmoid of the mean log-odds: (N, C)."""
    mean = _logits(members, task).mean(axis=0)
    return np.asarray(softmax(mean, axis=-1) if task == "multiclass" else expit(mean))


def apply_temperature(probabilities: Floats, temperature: float, task: Task) -> Floats:
    """Return probabilities (N, C) with their logits divided by a temperature (Guo et al. 2017, arXiv 1706.04599).

    Args:
        probabilities: (N, C) of one network, or of an ensemble.
        temperature: above 0; more than 1 draws them together, less than 1 apart.
        task: as in ``Combination.fit``.
    """
    logits = _logits(probabilities, task) / temperature
    return np.asarray(softmax(logits, axis=-1) if task == "multiclass" else expit(logits))


def likelihoods(members: Floats, truth: Floats, task: Task) -> Floats:
    """Return (K, M): the probability each member gave to what was the case, for all M known labels."""
    if task == "multiclass":
        known = ~np.isnan(truth).any(axis=1)
        right = truth[known].argmax(axis=1)
        return np.asarray(_kept(members, task)[:, known][:, np.arange(len(right)), right])
    known = ~np.isnan(truth)
    members = _kept(members, task)
    return np.asarray(np.where(truth == 1, members, 1 - members)[:, known])


def log_loss(probabilities: Floats, truth: Floats, task: Task) -> float:
    """Return the mean negative log-likelihood of probabilities (N, C) over the known labels."""
    return _mean_nll(likelihoods(probabilities[None], truth, task)[0])


def fit_temperature(probabilities: Floats, truth: Floats, task: Task) -> float:
    """Return the temperature of the least negative log-likelihood, within ``TEMPERATURES``.

    The loss is convex in 1 / temperature, so its derivative rises and has one root, which Brent's method finds.
    A temperature that does not lower the loss is 1.

    Args:
        probabilities: (N, C) of one network, or of an ensemble.
        truth: (N, C).
        task: as in ``Combination.fit``.
    """
    logits = _logits(probabilities, task)
    if task == "multiclass":
        known = ~np.isnan(truth).any(axis=1)
        logits, right = logits[known], truth[known].argmax(axis=1)
        of_right = logits[np.arange(len(right)), right]

        def slope(inverse: float) -> float:
            return float((softmax(inverse * logits, axis=1) * logits).sum(axis=1).mean() - of_right.mean())

    else:
        known = ~np.isnan(truth)
        towards = np.where(truth[known] == 1, logits[known], -logits[known])

        def slope(inverse: float) -> float:
            return float(-(towards * expit(-inverse * towards)).mean())

    lowest, highest = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(lowest) >= 0:
        inverse = lowest
    elif slope(highest) <= 0:
        inverse = highest
    else:
        inverse = float(optimize.brentq(slope, lowest, highest, xtol=1e-10))
    after = log_loss(apply_temperature(probabilities, 1 / inverse, task), truth, task)
    return 1 / inverse if after < log_loss(probabilities, truth, task) else 1.0


def fit_weights(members: Floats, truth: Floats, task: Task) -> Floats:
    """Return the weights (K,), not negative and 1 together, of the least negative log-likelihood of the mean.

    The loss is convex in the weights. Solver: SciPy's SLSQP (sequential least squares) with the exact gradient,
    from equal weights; the result is put on the simplex and taken where it is better than equal weights.

    Args:
        members: (K, N, C) probabilities.
        truth: (N, C).
        task: as in ``Combination.fit``.
    """
    given = likelihoods(members, truth, task)
    equal = np.full(len(members), 1 / len(members))

    def mixed(weights: Floats) -> Floats:  # the solver may step a little below a weight of 0
        return np.asarray(weights @ given).clip(LEAST["multiclass"])

    def slope(weights: Floats) -> Floats:
        return np.asarray(-(given / mixed(weights)).mean(axis=1))

    found = optimize.minimize(
        lambda weights: _mean_nll(mixed(weights)),
        equal,
        jac=slope,
        method="SLSQP",
        bounds=[(0, 1)] * len(members),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 1000},
    ).x.clip(0)
    weights: Floats = found / found.sum()
    return weights if _mean_nll(weights @ given) < _mean_nll(equal @ given) else equal


def _logits(probabilities: Floats, task: Task) -> Floats:
    """Return log-probabilities (up to a constant an image the logits), of findings log-odds."""
    kept = _kept(probabilities, task)
    return np.asarray(log_softmax(np.log(kept), axis=-1) if task == "multiclass" else logit(kept))


def _kept(probabilities: Floats, task: Task) -> Floats:
    return np.asarray(probabilities, dtype=np.float64).clip(LEAST[task], 1 - LEAST[task])


def _mean_nll(given: Floats) -> float:
    return float(-np.log(given).mean())
