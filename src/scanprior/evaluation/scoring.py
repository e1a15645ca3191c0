"""From a scorer of images to rows of metrics: values, resamples, intervals. Whatever is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.intervals import Interval, bootstrap_interval, macro_patients
from scanprior.evaluation.labels import count_patients

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]
Key = tuple[str, str]
"""Name of the metric; class name, ``macro`` or ``all``."""


class ImageScorer(Protocol):
    """Every metric of a table of n images, for many weightings of them at once."""

    def score(self, weights: Floats) -> dict[Key, Floats]:
        """Return every metric for weightings (R, n): name and class to (R,), NaN = undefined."""

    def known(self, metric: str, name: str) -> NDArray[np.bool_]:
        """Return (n,) which images take part in a metric."""

    def counted(self, metric: str, name: str) -> dict[str, Any]:
        """Return how many images a metric rests on, ``n``, and what else its row says of them."""

    def patients(self, groups: Groups) -> Mapping[Key, int]:
        """Return how many patients the metrics rest on; macro means may be missing."""

    def why_undefined(self, metric: str, name: str) -> str:
        """Return the reason why a metric has no value."""


class MeanScorer:
    """The mean over several trainings on the same images, such as seeds, as one scorer.

    Args:
        scorers: of each training, of the same images in the same order.
    """

    def __init__(self, scorers: Sequence[ImageScorer]) -> None:
        self._scorers = list(scorers)

    def score(self, weights: Floats) -> dict[Key, Floats]:
        """Return the mean of every metric; NaN where one training has none."""
        found = [scorer.score(weights) for scorer in self._scorers]
        return {key: np.mean([each[key] for each in found], axis=0) for key in found[0]}

    def known(self, metric: str, name: str) -> NDArray[np.bool_]:
        """Return (n,) which images take part in a metric, of any training."""
        return np.asarray(np.any([scorer.known(metric, name) for scorer in self._scorers], axis=0))

    def counted(self, metric: str, name: str) -> dict[str, Any]:
        """Return what the row of the first training says of its images."""
        return self._scorers[0].counted(metric, name)

    def patients(self, groups: Groups) -> Mapping[Key, int]:
        """Return how many patients the metrics rest on, of the training where it is fewest."""
        found = [scorer.patients(groups) for scorer in self._scorers]
        return {key: min(each[key] for each in found) for key in found[0]}

    def why_undefined(self, metric: str, name: str) -> str:
        """Return the reason of the first training."""
        return self._scorers[0].why_undefined(metric, name)


def readable(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows without an error, numbered anew.

    Raises:
        DataError: there is none.
    """
    good = predictions[predictions["error"].isna()] if "error" in predictions else predictions
    if not len(good):
        raise DataError(f"{name}: there is no image to evaluate ({len(predictions)} could not be read)")
    return good.reset_index(drop=True)


def size_of(table: pd.DataFrame, groups: Groups, unit: str) -> dict[str, Any]:
    """Return a table's ``n``, ``patients`` (None where unknown), ``split``, and the bootstrap's ``unit``, ``units``."""
    splits = table["split"].dropna().astype(str).unique().tolist() if "split" in table else []
    return {
        "n": len(table),
        "patients": count_patients(table),
        "unit": unit,
        "units": int(groups.max()) + 1,
        "split": str(splits[0]) if len(splits) == 1 else None,
    }


def bootstrap_rows(
    scorer: ImageScorer, groups: Groups, unit: str, resamples: int, seed: int, level: float
) -> list[dict[str, Any]]:
    """Return one row a metric and class: its value, and its interval by bootstrap over patients."""
    values = scorer.score(np.ones((1, len(groups))))
    spread = resampled([scorer], groups, resamples, seed)[0]
    patients = patients_of(scorer, groups, spread)
    rows = []
    for key, found in values.items():
        value = float(found[0])
        if np.isnan(value):
            interval = Interval(reason=scorer.why_undefined(*key))
        else:
            interval = bootstrap_interval(key[0], value, spread[key], patients[key], unit, level)
        rows.append(metric_row(scorer, key, value, interval))
    return rows


def metric_row(scorer: ImageScorer, key: Key, value: float, interval: Interval) -> dict[str, Any]:
    """Return a row of an evaluation as JSON values."""
    return {
        "metric": key[0],
        "class": key[1],
        "value": None if np.isnan(value) else value,
        "low": interval.low,
        "high": interval.high,
        "interval": interval.how,
        **scorer.counted(*key),
        "reason": interval.reason,
    }


def resampled(
    scorers: Sequence[ImageScorer],
    groups: Groups,
    resamples: int,
    seed: int,
    parts: Sequence[NDArray[np.intp]] | None = None,
) -> list[dict[Key, Floats]]:
    """Return every metric in every resample, (R,) each, of several scorers on the same resamples.

    Args:
        scorers: of all images, or of parts of them.
        groups: (n,) patient numbers of all images.
        resamples, seed: of the bootstrap.
        parts: of each scorer, which of the n images it scores; None = all.
    """
    blocks = [
        [
            scorer.score(weights if parts is None else weights[:, parts[number]])
            for number, scorer in enumerate(scorers)
        ]
        for weights in resample_weights(groups, resamples, seed)
    ]
    return [
        {key: np.concatenate([block[number][key] for block in blocks]) for key in blocks[0][number]}
        for number in range(len(scorers))
    ]


def patients_of(scorer: ImageScorer, groups: Groups, spread: Mapping[Key, Floats]) -> dict[Key, float]:
    """Return how many patients each metric rests on, macro means included.

    Args:
        scorer: of the images.
        groups: (n,) patient numbers.
        spread: every metric in every resample: the variances say how much each class bears on a mean.
    """
    plain = scorer.patients(groups)
    made: dict[Key, float] = dict(plain)
    for metric, name in spread:
        if (metric, name) not in plain:
            # A class that has no value in the whole set is not part of the mean.
            parts = [key for key in plain if key[0] == metric and plain[key] > 0]
            made[metric, name] = macro_patients([spread[key] for key in parts], [plain[key] for key in parts])
    return made
