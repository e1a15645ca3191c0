"""How good prediction sets are: how often they hold the true class, and how large they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.intervals import Interval, binomial_interval, bootstrap_interval

Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def coverage(
    sets: Bools,
    labels: Numbers,
    patients: NDArray[Any] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure prediction sets on test images.

    The interval says how sure the coverage of these very sets is. It is exact (Clopper-Pearson) with one image a
    patient, else by bootstrap over patients, as that of accuracy. That sets of one calibration cover a little less
    than their level is no fault: the level is kept on average over calibrations.

    Args:
        sets: (N, C) of ``prediction_sets``.
        labels: (N,) true classes.
        patients: (N,) whose images they are; None = every image is a patient's only one.
        level: of the intervals.
        resamples, seed: of the bootstrap.

    Returns:
        JSON values: ``coverage`` with ``low``, ``high``, ``interval`` (how it was made), ``n`` and ``reason`` (why
        there is no value or no interval), ``mean_size`` (classes in a set), ``singletons`` and ``empty`` (shares of
        the sets), and ``classes``: the same of the images of each class, with ``class``. All is None without images.

    Raises:
        DataError: shapes, or labels that are no classes.
    """
    sets, labels = np.asarray(sets), np.asarray(labels)
    if sets.ndim != 2 or sets.dtype != np.bool_ or labels.shape != sets.shape[:1]:
        raise DataError(
            f"sets are {sets.dtype} of shape {sets.shape}, labels of {labels.shape}; give (N, C) and (N,)"
        )
    if not np.isin(labels, np.arange(sets.shape[1])).all():
        raise DataError(f"labels hold what is no class; there are {sets.shape[1]} classes from 0")
    who = np.arange(len(labels)) if patients is None else np.asarray(patients)
    if who.shape != labels.shape:
        raise DataError(
            f"patients have the shape {who.shape}, labels {labels.shape}; give one patient an image"
        )
    labels = labels.astype(np.int64)

    def measured(rows: Bools) -> dict[str, Any]:
        return _measured(sets[rows], labels[rows], who[rows], patients is not None, level, resamples, seed)

    classes = [{"class": number, **measured(labels == number)} for number in range(sets.shape[1])]
    return {**measured(np.ones(len(labels), dtype=np.bool_)), "level": level, "classes": classes}


def finding_coverage(
    sets: Bools,
    truth: NDArray[np.float64],
    patients: NDArray[Any] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure the sets of each finding on the images where it is known; the classes are absent and present.

    Args:
        sets: (N, F, 2) of ``finding_sets``.
        truth: (N, F) 0, 1, or NaN where unknown.
        patients, level, resamples, seed: as for ``coverage``.
    """
    sets, truth = np.asarray(sets), np.asarray(truth, dtype=np.float64)
    if sets.ndim != 3 or sets.shape != (*truth.shape, 2):
        raise DataError(f"sets have the shape {sets.shape}, truth {truth.shape}; give (N, F, 2) and (N, F)")
    made = []
    for number in range(truth.shape[1]):
        known = ~np.isnan(truth[:, number])
        who = None if patients is None else np.asarray(patients)[known]
        one = coverage(
            sets[known, number], truth[known, number], who, level=level, resamples=resamples, seed=seed
        )
        made.append({"finding": number, **one})
    return made


def _measured(
    sets: Bools,
    labels: Numbers,
    patients: NDArray[Any],
    known_patients: bool,
    level: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return coverage, its interval, and the sizes of the sets."""
    n = len(labels)
    if not n:
        empty = dict.fromkeys(("coverage", "low", "high", "interval", "mean_size", "singletons", "empty"))
        return {**empty, "n": 0, "reason": "n/a because there is no such image"}
    held, sizes = sets[np.arange(n), labels], sets.sum(axis=1)
    interval = _interval(held, patients, known_patients, level, resamples, seed)
    return {
        "coverage": float(held.mean()),
        "low": interval.low,
        "high": interval.high,
        "interval": interval.how,
        "mean_size": float(sizes.mean()),
        "singletons": float((sizes == 1).mean()),
        "empty": float((sizes == 0).mean()),
        "n": n,
        "reason": interval.reason,
    }


def _interval(
    held: Bools, patients: NDArray[Any], known_patients: bool, level: float, resamples: int, seed: int
) -> Interval:
    groups = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    count = int(groups.max()) + 1
    if count == len(held):
        low, high = binomial_interval(int(held.sum()), count, level)
        unit = "patient" if known_patients else "image"
        return Interval(low, high, f"exact (Clopper-Pearson), {count} {unit}{'s' if count > 1 else ''}")
    share = held.astype(np.float64)
    spread = np.concatenate(
        [weights @ share / weights.sum(axis=1) for weights in resample_weights(groups, resamples, seed)]
    )
    return bootstrap_interval("coverage", float(share.mean()), spread, count, "patient", level)
