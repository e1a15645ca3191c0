"""From a table of mask metrics, one row an image, to an evaluation: means with their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.compare import difference_rows, paired_tables
from scanprior.evaluation.labels import groups_of
from scanprior.evaluation.scoring import Floats, Key, bootstrap_rows, readable, size_of
from scanprior.evaluation.segmentation import METRICS, OVERLAPS

Unit = Literal["pixels", "mm"]


class MaskScorer:
    """Computes the mean of every metric over images, for many weightings of them at once.

    Several classes: also ``macro``, the mean over the classes where the metric of the image is defined, and
    then over images.

    Args:
        table: rows with metric columns, no errors.
        classes: of the metric columns.

    Raises:
        DataError: a column is missing, or holds an overlap outside [0, 1] or a distance below 0 or infinite.
    """

    def __init__(self, table: pd.DataFrame, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self._values: dict[Key, Floats] = {}
        self._reasons = {name: _reasons_of(table, name) for name in classes}
        for metric in METRICS:
            each = [_metric_of(table, metric, name) for name in classes]
            self._values |= {(metric, name): value for name, value in zip(classes, each, strict=True)}
            if len(each) > 1:
                self._values[metric, "macro"] = _mean_of_classes(np.stack(each))
        values = np.stack(list(self._values.values()), axis=1)
        self._columns = np.concatenate([np.nan_to_num(values), ~np.isnan(values)], axis=1)

    def score(self, weights: Floats) -> dict[Key, Floats]:
        """Return every mean for weightings (R, n): metric and class to (R,), NaN where no image has a value."""
        sums, counts = np.hsplit(weights @ self._columns, 2)
        means = np.full(sums.shape, np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return dict(zip(self._values, means.T, strict=True))

    def known(self, metric: str, name: str) -> NDArray[np.bool_]:
        """Return (n,) which images have a value."""
        return ~np.isnan(self._values[metric, name])

    def counted(self, metric: str, name: str) -> dict[str, Any]:
        """Return over how many images a mean runs, and what it leaves out.

        Returns:
            ``n``: images with a value; ``undefined``: reason to how many images have none for it; ``partial``:
            images whose macro mean leaves out at least one class.
        """
        missing = ~self.known(metric, name)
        if name == "macro":
            parts = np.stack([~self.known(metric, each) for each in self.classes])
            reasons = {"n/a because no class has a value": int(missing.sum())} if missing.any() else {}
            partial = int((parts.any(axis=0) & ~missing).sum())
        else:
            reasons, partial = dict(Counter(self._reasons[name][missing].tolist())), 0
        return {"n": int((~missing).sum()), "undefined": reasons, "partial": partial}

    def patients(self, groups: NDArray[np.int64]) -> dict[Key, int]:
        """Return how many patients have an image with a value."""
        return {key: len(np.unique(groups[self.known(*key)])) for key in self._values}

    def why_undefined(self, metric: str, name: str) -> str:
        """Return the reason why a mean has no value: that of its images where they have one in common."""
        reasons = self.counted(metric, name)["undefined"]
        return str(*reasons) if len(reasons) == 1 else "n/a because no image has a value"


def evaluate_masks(
    table: pd.DataFrame,
    *,
    classes: Sequence[str],
    name: str = "test",
    split_fingerprint: str | None = None,
    distances_in: Unit = "pixels",
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Evaluate segmentation: the mean of every metric over images, with its interval.

    Overlaps get the interval on the logit scale, distances on the log scale, both with the standard error of
    the bootstrap over patients (``intervals.bootstrap_interval``). A mean distance leaves out the images
    where it is undefined, which flatters a model that finds nothing: read it with ``undefined``, and with
    Dice, where such an image counts as 0.

    Args:
        table: one row an image: ``image``, per class the columns of ``mask_row`` (floats, NaN = undefined;
            ``reason:NAME`` may be missing), and where known ``patient``, ``split``, ``error``; rows with an
            error take no part and are counted.
        classes: of the metric columns.
        name: of the evaluation.
        split_fingerprint: of the split that the images come from.
        distances_in: what the distances were measured in.
        resamples: bootstrap resamples, of patients where known, else of images.
        seed: key of the resamples.
        level: of the intervals.

    Returns:
        A dict that is valid JSON, in the form of ``evaluate`` with task ``segmentation``. ``metrics``: rows
        with metric, class, value, low, high, interval (how it was made), n (images with a value), undefined
        (reason to images without one), partial (images whose macro mean leaves out a class), reason (why
        there is no value or no interval).

    Raises:
        DataError: no row without an error, a column is missing, or it holds what is no such metric.
    """
    good = readable(table, name)
    scorer = MaskScorer(good, classes)
    groups, unit = groups_of(good)
    return {
        "name": name,
        "task": "segmentation",
        "classes": list(classes),
        "distances_in": distances_in,
        **size_of(good, groups, unit),
        "errors": len(table) - len(good),
        "split_fingerprint": split_fingerprint,
        "seed": seed,
        "level": level,
        "metrics": bootstrap_rows(scorer, groups, unit, resamples, seed, level),
    }


def compare_masks(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    classes: Sequence[str],
    names: tuple[str, str] = ("first", "second"),
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Compare the masks of two runs on the same images, every metric on the same resamples.

    A metric is compared on the images where both have a value, so that the difference is one of pairs; a
    distance may therefore differ from that of ``evaluate_masks``. The others are counted in ``undefined``.

    Args:
        first, second: as for ``evaluate_masks``, of the same images and in the same unit of distance. An
            image that either could not read is left out of both and counted.
        names: of the two, in this order.
        classes, resamples, seed, level: as for ``evaluate_masks``.

    Returns:
        As ``compare``; rows of ``differences`` also have n, undefined and partial, as for ``evaluate_masks``.

    Raises:
        DataError: the images differ, or as for ``evaluate_masks``.
    """
    tables, left_out = paired_tables(first, second, names)
    groups, unit = groups_of(tables[0])
    scorers = [MaskScorer(table, classes) for table in defined_in_all(tables, classes, names)]
    rows = difference_rows(scorers, groups, unit, resamples, seed, level)
    size = size_of(tables[0], groups, unit)
    return {
        "names": list(names),
        "n": size["n"],
        "left_out": left_out,
        "patients": size["patients"],
        "unit": unit,
        "seed": seed,
        "level": level,
        "differences": [{**row, **scorers[0].counted(row["metric"], row["class"])} for row in rows],
    }


def defined_in_all(
    tables: Sequence[pd.DataFrame], classes: Sequence[str], names: Sequence[str]
) -> list[pd.DataFrame]:
    """Return the tables with a value that is undefined in one made undefined in all, so that means compare.

    Args:
        tables: mask metrics of the same images in the same order.
        classes: of the metric columns.
        names: of the tables; the reason says whose value was undefined.
    """
    made = [table.copy() for table in tables]
    for name in classes:
        undefined = []
        for table in tables:
            each = [np.isnan(_metric_of(table, metric, name)) for metric in METRICS]
            undefined.append(np.stack(each))
        either = np.logical_or.reduce(undefined)
        for metric, rows in zip(METRICS, either, strict=True):
            for table in made:
                table.loc[rows, f"{metric}:{name}"] = np.nan
        said = [f"{who}: " + _reasons_of(table, name) for who, table in zip(names, tables, strict=True)]
        reasons = np.select([each.any(axis=0) for each in undefined[:-1]], said[:-1], said[-1])
        for table in made:
            table[f"reason:{name}"] = reasons
    return made


def _metric_of(table: pd.DataFrame, metric: str, name: str) -> Floats:
    """A column (n,) of the table, checked."""
    column = f"{metric}:{name}"
    if column not in table:
        raise DataError(f"the masks have no column {column!r}; they have {', '.join(table.columns)}")
    values = table[column].to_numpy(np.float64, na_value=np.nan)
    top = 1 + 1e-6 if metric in OVERLAPS else np.finfo(np.float64).max
    wrong = ~np.isnan(values) & ~((values >= 0) & (values <= top))
    if wrong.any():
        row = int(wrong.argmax())
        image = table["image"].iloc[row] if "image" in table else f"row {row}"
        wanted = "lies between 0 and 1" if metric in OVERLAPS else "is 0 or more, and missing where undefined"
        raise DataError(f"{column} of {image} is {values[row]:g}; it {wanted}")
    return values.clip(0, 1) if metric in OVERLAPS else values


def _reasons_of(table: pd.DataFrame, name: str) -> NDArray[np.object_]:
    """Why a class has no value, (n,), where it has none."""
    column = f"reason:{name}"
    unknown = "n/a without a reason given"
    if column not in table:
        return np.full(len(table), unknown, dtype=object)
    given = table[column]
    return given.astype(object).where(given.notna(), unknown).to_numpy(object)


def _mean_of_classes(values: Floats) -> Floats:
    """Mean (n,) over the classes (k, n) that have a value; NaN where none has."""
    known = ~np.isnan(values)
    made = np.full(values.shape[1], np.nan)
    count = known.sum(axis=0)
    np.divide(np.nan_to_num(values).sum(axis=0), count, out=made, where=count > 0)
    return made
