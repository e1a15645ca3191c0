"""The metrics of groups of images: by site, sex, age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bands import groups_by
from scanprior.evaluation.evaluate import metric_rows
from scanprior.evaluation.evaluate_masks import MaskScorer
from scanprior.evaluation.labels import Task, groups_of
from scanprior.evaluation.metrics import Scorer
from scanprior.evaluation.scoring import ImageScorer, MeanScorer, bootstrap_rows, readable

Thresholds = Mapping[str, Mapping[str, Any]]
GroupTask = Task | Literal["segmentation"]

_FIRST = ["group", "metric", "class", "value", "low", "high", "interval", "n", "patients"]


@dataclass(frozen=True)
class Group:
    """The images of one group and their scorer.

    Attributes:
        name: value or band of the side column.
        rows: (m,) their places among the images of all groups.
        table: of them.
        scorer: of them.
    """

    name: Any
    rows: NDArray[np.intp]
    table: pd.DataFrame
    scorer: ImageScorer


def subgroups(
    predictions: pd.DataFrame | Sequence[pd.DataFrame],
    column: str,
    *,
    classes: Sequence[str],
    task: GroupTask,
    bands: Sequence[float] | None = None,
    thresholds: Thresholds | Sequence[Thresholds | None] | None = None,
    positive_class: str | None = None,
    ordered: bool | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the metrics of every group of images: its rows of ``evaluate`` or ``evaluate_masks``.

    Args:
        predictions: as for ``evaluate``, or as for ``evaluate_masks`` where the task is ``segmentation``. Several
            tables of the same images in the same order, such as of five seeds, give the mean over them; the
            interval is then over patients for the mean of these trainings.
        column: the side column that makes the groups. Numbers with more than 10 distinct values are cut at
            the quartiles of the known ones; images without a value are the group ``unknown``.
        bands: rising edges of a numeric column, such as [0, 18, 40, 65]: groups ``0–17``, ``18–39``,
            ``40–64`` and ``65+``; images below the first edge are a group too.
        classes, task, thresholds, positive_class, ordered, resamples, seed, level: as for ``evaluate``; of several
            tables a list of thresholds, one for each, or the same for all.

    Returns:
        Rows with ``group`` first, and ``patients``: how many patients the ``n`` images are of, None where
        unknown.

    Raises:
        DataError: as for ``evaluate`` and ``groups_by``.
    """
    tables = tables_of(predictions, column)
    groups = groups_by(tables[0], column, bands)
    parts = []
    for group in split_by(tables, groups, classes, task, thresholds, positive_class, ordered):
        numbers, unit = groups_of(group.table)
        scorer, how = group.scorer, (resamples, seed, level)
        if isinstance(scorer, Scorer):  # with DeLong's rows
            rows = metric_rows(scorer, numbers, unit, *how)
        else:
            rows = bootstrap_rows(scorer, numbers, unit, *how)
        for row in rows:
            known = scorer.known(row["metric"], row["class"])
            patients = len(np.unique(numbers[known])) if unit == "patient" else None
            parts.append({"group": group.name, **row, "patients": patients})
    together = pd.DataFrame(parts)
    return together[[*_FIRST, *(name for name in together.columns if name not in _FIRST)]]


def tables_of(predictions: pd.DataFrame | Sequence[pd.DataFrame], name: str) -> list[pd.DataFrame]:
    """Return the readable rows of one or several tables of the same images.

    Raises:
        DataError: a table has other images than the first, or none.
    """
    given = [predictions] if isinstance(predictions, pd.DataFrame) else list(predictions)
    tables = [readable(table, name) for table in given]
    for table in tables[1:]:
        if not table["image"].equals(tables[0]["image"]):
            raise DataError(
                f"{name}: the tables of predictions do not hold the same images in the same order"
            )
    return tables


def _each(
    thresholds: Thresholds | Sequence[Thresholds | None] | None, count: int
) -> Sequence[Thresholds | None]:
    """Return the thresholds of every table."""
    return [thresholds] * count if thresholds is None or isinstance(thresholds, Mapping) else thresholds


def split_by(
    tables: Sequence[pd.DataFrame],
    groups: pd.Series,
    classes: Sequence[str],
    task: GroupTask,
    thresholds: Thresholds | Sequence[Thresholds | None] | None = None,
    positive_class: str | None = None,
    ordered: bool | None = None,
) -> list[Group]:
    """Return the groups that ``groups_by`` found, in its order, each with a scorer of its images in all tables.

    Raises:
        DataError: a column is missing, or holds what it cannot.
    """
    made = []
    for code, name in enumerate(groups.cat.categories.tolist()):
        rows = np.flatnonzero(groups.cat.codes.to_numpy() == code)
        parts = [table.iloc[rows].reset_index(drop=True) for table in tables]
        if task == "segmentation":
            scorers: list[ImageScorer] = [MaskScorer(part, classes) for part in parts]
        else:
            cuts = _each(thresholds, len(parts))
            scorers = [
                Scorer(part, classes, task, cut, positive_class, ordered)
                for part, cut in zip(parts, cuts, strict=True)
            ]
        scorer = scorers[0] if len(scorers) == 1 else MeanScorer(scorers)
        made.append(Group(name, rows, parts[0], scorer))
    return made
