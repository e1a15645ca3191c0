"""How good prediction sets are: how often they hold the true class, and how large they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.shares import share_interval

Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def coverage(
    sets: Bools,
    labels: Numbers,
    patients: NDArray[Any] | None = None,
    *,
    unit: str = "patient",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure prediction sets on test images.

    The interval says how sure the coverage of these very sets is. It is exact (Clopper-Pearson) with one image a
    patient (or other unit), else by bootstrap over these, as that of accuracy. That sets of one calibration cover a
    little less than their level is no fault: the level is kept on average over calibrations.

    Args:
        sets: (N, C) of ``prediction_sets``.
        labels: (N,) true classes.
        patients: (N,) whose images they are; None = every image is a patient's only one.
        unit: what ``patients`` holds, where that is something else.
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
    named = "image" if patients is None else unit

    def measured(rows: Bools) -> dict[str, Any]:
        return _measured(
            sets[rows], labels[rows], who[rows], named, level=level, resamples=resamples, seed=seed
        )

    classes = [{"class": number, **measured(labels == number)} for number in range(sets.shape[1])]
    return {**measured(np.ones(len(labels), dtype=np.bool_)), "level": level, "classes": classes}


def finding_coverage(
    sets: Bools,
    truth: NDArray[np.float64],
    patients: NDArray[Any] | None = None,
    *,
    unit: str = "patient",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure the sets of each finding on the images where it is known; the classes are absent and present.

    Args:
        sets: (N, F, 2) of ``finding_sets``.
        truth: (N, F) 0, 1, or NaN where unknown.
        patients, unit, level, resamples, seed: as for ``coverage``.
    """
    sets, truth = np.asarray(sets), np.asarray(truth, dtype=np.float64)
    if sets.ndim != 3 or sets.shape != (*truth.shape, 2):
        raise DataError(f"sets have the shape {sets.shape}, truth {truth.shape}; give (N, F, 2) and (N, F)")
    made = []
    for number in range(truth.shape[1]):
        known = ~np.isnan(truth[:, number])
        who = None if patients is None else np.asarray(patients)[known]
        one = coverage(
            sets[known, number],
            truth[known, number],
            who,
            unit=unit,
            level=level,
            resamples=resamples,
            seed=seed,
        )
        made.append({"finding": number, **one})
    return made


def _measured(sets: Bools, labels: Numbers, patients: NDArray[Any], unit: str, **how: Any) -> dict[str, Any]:
    """Return coverage, its interval, and the sizes of the sets."""
    n = len(labels)
    if not n:
        empty = dict.fromkeys(("coverage", "low", "high", "interval", "mean_size", "singletons", "empty"))
        return {**empty, "n": 0, "reason": "n/a because there is no such image"}
    held, sizes = sets[np.arange(n), labels], sets.sum(axis=1)
    interval = share_interval(held, patients, unit, **how)
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
