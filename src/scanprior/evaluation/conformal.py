"""Prediction sets that hold the true class as often as asked for: split-conformal prediction.

Calibration images, which no training has seen, give a threshold; the set of a new image holds every class whose
score is not above it. Where calibration and new images are exchangeable, the sets hold the true class with at least
the probability asked for, whatever the network is worth: a poor one has large sets. This is so on average over
calibrations and images, not for every kind of image, and not at a hospital where images or patients are others.

Shapes: probabilities (N, C), labels (N,) class numbers; of findings probabilities (N, F) and truth (N, F) in {0, 1},
NaN where unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from scanprior.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]

SetMethod = Literal["lac", "aps"]
SET_METHODS: tuple[SetMethod, ...] = get_args(SetMethod)

_ROUNDING = 1e-9
"""What (n + 1) * level may lie above the whole number it is meant to be: 100 * 0.07 is 7.000000000000001."""
_DIGITS = 12
"""Decimals of the sums of ``aps``: sums that are equal but for rounding, such as those of all classes, are equal."""


@dataclass(frozen=True)
class Conformal:
    """Thresholds of prediction sets, as ``calibrate`` found them.

    Attributes:
        method: ``lac`` or ``aps``.
        level: share of true classes that the sets are to hold.
        thresholds: (1,), or (C,) where each class has its own; infinite where there were too few units, then every
            set holds all classes, or that class.
        units: as many: on how many images, or patients, each rests.
        randomised: whether the scores took uniform draws, which ``prediction_sets`` then needs too.
    """

    method: SetMethod
    level: float
    thresholds: tuple[float, ...]
    units: tuple[int, ...]
    randomised: bool = False

    @property
    def reason(self) -> str | None:
        """Why some sets hold more than the level needs; None where there is no such reason."""
        lacking = [number for number, value in enumerate(self.thresholds) if math.isinf(value)]
        if not lacking:
            return None
        needed = least_units(self.level)
        if len(self.thresholds) == 1:
            return (
                f"every set holds all classes because {self.units[0]} calibration units are too few for a level of "
                f"{self.level:g}, which needs {needed}"
            )
        named = ", ".join(f"{number} ({self.units[number]} units)" for number in lacking)
        return f"every set holds class {named}, because a level of {self.level:g} needs {needed} units of a class"

    def card(self) -> dict[str, Any]:
        """Return it as JSON values; an infinite threshold is None."""
        return {
            "method": self.method,
            "level": self.level,
            "thresholds": [None if math.isinf(value) else value for value in self.thresholds],
            "units": list(self.units),
            "randomised": self.randomised,
        }

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> Conformal:
        """Read what ``card`` returned."""
        values = (math.inf if value is None else float(value) for value in card["thresholds"])
        return cls(
            card["method"], float(card["level"]), tuple(values), tuple(card["units"]), card["randomised"]
        )


def least_units(level: float) -> int:
    """Return the least number of calibration units that gives a finite threshold: level / (1 - level), rounded up.

    >>> least_units(0.9), least_units(0.95)
    (9, 19)
    """
    return math.ceil(level / (1 - level) - _ROUNDING)


def calibrate(
    probabilities: Floats,
    labels: Numbers,
    level: float = 0.9,
    method: SetMethod = "lac",
    *,
    groups: NDArray[Any] | None = None,
    class_conditional: bool = False,
    draws: Floats | None = None,
) -> Conformal:
    """Find the thresholds of prediction sets on calibration images.

    ``lac``, least ambiguous: the score of a class is 1 minus its probability, which gives the smallest sets on
    average (Sadinle, Lei and Wasserman 2019, Journal of the American Statistical Association 114:223). ``aps``,
    adaptive: the probabilities of all more probable classes and its own (times the draw, where there is one),
    which makes sets of difficult images larger (Romano, Sesia and Candès 2020, arXiv 2006.02544).
    The threshold is the score at place ceil((n + 1) level) of n.

    Several images of a patient are not exchangeable with those of others. With ``groups`` each patient counts once,
    an image of m of its patient as 1 / m, and coverage is that of a random image of a new patient (Lee, Barber and
    Willett 2023, arXiv 2306.06342, section 3.1); without, and with one image a patient, it is the same.

    Args:
        probabilities: (N, C), of images that took part in no training, selection or temperature.
        labels: (N,) true classes, 0 to C - 1.
        level: in (0, 1): the share of true classes that the sets are to hold.
        method: ``lac`` or ``aps``.
        groups: (N,) patients; None = every image is a patient's only one.
        class_conditional: one threshold a class, from the images of that class alone, so that the level holds for
            every class (Mondrian: Vovk 2012, arXiv 1209.2673). Small classes make large sets.
        draws: of ``aps``: (N,) in [0, 1), such as ``keyed.uniform``; None = without chance.

    Raises:
        DataError: shapes, labels, probabilities, draws or level that will not do.
    """
    if not 0 < level < 1:
        raise DataError(f"level={level}: the share of true classes in the sets lies between 0 and 1")
    found = _scores(probabilities, method, draws)
    labels = _checked_labels(labels, found)
    own = found[np.arange(len(labels)), labels]
    patients = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if patients.shape != labels.shape:
        raise DataError(
            f"groups have the shape {patients.shape}, labels {labels.shape}; give one patient an image"
        )
    parts = [labels == number for number in range(found.shape[1])] if class_conditional else [slice(None)]
    pairs = [_quantile(own[part], patients[part], level) for part in parts]
    thresholds, units = zip(*pairs, strict=True)
    return Conformal(method, level, thresholds, units, draws is not None)


def prediction_sets(
    probabilities: Floats, conformal: Conformal, *, draws: Floats | None = None, allow_empty: bool = True
) -> Bools:
    """Return which classes are in the set of each image, (N, C).

    Args:
        probabilities: (N, C).
        conformal: of ``calibrate``.
        draws: (N,) as for ``calibrate``; there where and only where that had some.
        allow_empty: whether a set may be empty; else it holds the most probable class, which can only raise the
            coverage. An empty set of ``lac`` says that no class is probable enough. One of ``aps`` without draws says
            the contrary: the first class alone is more probable than the threshold.

    Raises:
        DataError: shapes, probabilities or draws that will not do.
    """
    if conformal.randomised != (draws is not None):
        had = "with" if conformal.randomised else "without"
        raise DataError(f"the thresholds were found {had} draws; make the sets {had} draws, too")
    found = _scores(probabilities, conformal.method, draws)
    if len(conformal.thresholds) not in (1, found.shape[1]):
        raise DataError(
            f"there are thresholds of {len(conformal.thresholds)} classes and probabilities of {found.shape[1]}"
        )
    sets: Bools = found <= np.asarray(conformal.thresholds)
    if not allow_empty:
        empty = np.flatnonzero(~sets.any(axis=1))
        sets[empty, np.asarray(probabilities)[empty].argmax(axis=1)] = True
    return sets


def calibrate_findings(
    probabilities: Floats,
    truth: Floats,
    level: float = 0.9,
    method: SetMethod = "lac",
    *,
    groups: NDArray[Any] | None = None,
    class_conditional: bool = False,
    draws: Floats | None = None,
) -> tuple[Conformal, ...]:
    """Find the thresholds of findings, each by itself as two classes: absent (0) and present (1).

    The level holds for each finding, not for all findings of an image together. Images where a finding is unknown
    take no part in its thresholds.

    Args:
        probabilities: (N, F) of presence.
        truth: (N, F) 0, 1, or NaN where unknown.
        level, method, groups: as for ``calibrate``.
        class_conditional: a threshold for absence and one for presence, which a rare finding needs: else its sets
            may hold what is absent nearly always, and what is present hardly ever.
        draws: (N, F) as for ``calibrate``.

    Raises:
        DataError: as ``calibrate``; or a truth that is no 0, 1 or NaN.
    """
    probabilities, truth = np.asarray(probabilities, np.float64), _checked_truth(truth, probabilities)
    made = []
    for number in range(truth.shape[1]):
        known = ~np.isnan(truth[:, number])
        made.append(
            calibrate(
                _absent_present(probabilities[known, number]), truth[known, number].astype(np.int64), level, method,
                groups=None if groups is None else np.asarray(groups)[known], class_conditional=class_conditional,
                draws=None if draws is None else draws[known, number],
            )
        )  # fmt: skip
    return tuple(made)


def finding_sets(
    probabilities: Floats,
    conformal: Sequence[Conformal],
    *,
    draws: Floats | None = None,
    allow_empty: bool = True,
) -> Bools:
    """Return the set of each finding, (N, F, 2): whether absent, and whether present, is in it.

    Both: it is not decided. Neither: the probability is like that of no calibration image. Arguments as for
    ``prediction_sets``, ``conformal`` of ``calibrate_findings`` and ``draws`` (N, F).
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(conformal):
        raise DataError(
            f"probabilities have the shape {probabilities.shape}; there are {len(conformal)} findings"
        )
    each = [
        prediction_sets(
            _absent_present(probabilities[:, number]), found,
            draws=None if draws is None else draws[:, number], allow_empty=allow_empty,
        )
        for number, found in enumerate(conformal)
    ]  # fmt: skip
    return np.stack(each, axis=1)


def _scores(probabilities: Floats, method: SetMethod, draws: Floats | None) -> Floats:
    """Return (N, C): how little each class conforms with the probabilities of the image."""
    found = np.asarray(probabilities, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] < 2:
        raise DataError(
            f"probabilities have the shape {found.shape}; give (images, classes), two classes or more"
        )
    sums = found.sum(axis=1)
    if not ((found >= 0) & (found <= 1 + 1e-6)).all() or (np.abs(sums - 1) > 1e-3).any():
        raise DataError(
            "probabilities lie between 0 and 1, and those of an image have the sum 1; these do not"
        )
    if method == "lac":
        if draws is not None:
            raise DataError("method lac takes no draws; leave them out, or take aps")
        return 1 - found
    if method != "aps":
        raise DataError(f"method {method}: choose one of {', '.join(SET_METHODS)}")
    order = np.argsort(
        -found, axis=1, kind="stable"
    )  # of equally probable classes the first is before the others
    ranked = np.take_along_axis(found / sums[:, None], order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(found)
    np.put_along_axis(scores, order, before + ranked * _checked_draws(draws, len(found)), axis=1)
    return scores.round(_DIGITS)


def _quantile(scores: Floats, groups: NDArray[Any], level: float) -> tuple[float, int]:
    """Return the threshold of scores (n,), each group of them weighing 1, and the number of groups.

    It is the least score at which the weights up to it reach (groups + 1) * level; infinite where none does.
    """
    if not len(scores):
        return math.inf, 0
    _, number, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum((1 / size)[number][order])
    place = int(np.searchsorted(reached, (len(size) + 1) * level - _ROUNDING))
    return (float(scores[order[place]]) if place < len(scores) else math.inf), len(size)


def _absent_present(probability: Floats) -> Floats:
    return np.stack([1 - probability, probability], axis=1)


def _checked_labels(labels: Numbers, scores: Floats) -> Numbers:
    labels = np.asarray(labels)
    if labels.shape != scores.shape[:1] or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}; give one class number for each of {len(scores)} images"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < scores.shape[1]):
        raise DataError(
            f"labels go from {labels.min()} to {labels.max()}; there are {scores.shape[1]} classes from 0"
        )
    return labels.astype(np.int64)


def _checked_truth(truth: Floats, probabilities: Floats) -> Floats:
    truth = np.asarray(truth, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != probabilities.shape:
        raise DataError(
            f"truth has the shape {truth.shape}, probabilities {probabilities.shape}; give (images, findings)"
        )
    if not (np.isnan(truth) | (truth == 0) | (truth == 1)).all():
        raise DataError("the truth of a finding is 0, 1 or NaN; resolve uncertain labels before")
    return truth


def _checked_draws(draws: Floats | None, images: int) -> Floats:
    """Return (N, 1) draws; 1 where there are none."""
    if draws is None:
        return np.ones((images, 1))
    draws = np.asarray(draws, dtype=np.float64)
    if draws.shape != (images,) or not ((draws >= 0) & (draws <= 1)).all():
        raise DataError(
            f"draws have the shape {draws.shape}; give one number in [0, 1) for each of {images} images"
        )
    return draws[:, None]
