"""Two runs on the same images: paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import percentile_interval, resample_weights, two_sided_p
from scanprior.evaluation.delong import delong
from scanprior.evaluation.labels import Task, groups_of
from scanprior.evaluation.metrics import Scorer, why_undefined

Thresholds = Mapping[str, Mapping[str, Any]] | None


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    classes: Sequence[str],
    task: Task,
    names: tuple[str, str] = ("first", "second"),
    thresholds: tuple[Thresholds, Thresholds] = (None, None),
    positive_class: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Compare two tables of predictions of the same images, every metric on the same resamples.

    Args:
        first, second: as for ``evaluate``; both must hold the same images with the same labels.
        names: of the two, in this order.
        thresholds: of the two, in this order.
        classes, task, positive_class, resamples, seed, level: as for ``evaluate``.

    Returns:
        ``differences``: rows with metric, class, first, second, difference (first - second), low, high,
        p (two-sided), method, reason.

    Raises:
        DataError: the images or their labels differ.
    """
    tables = _paired(first, second, names)
    groups, unit = groups_of(tables[0])
    scorers = [
        Scorer(table, classes, task, cuts, positive_class)
        for table, cuts in zip(tables, thresholds, strict=True)
    ]
    whole = np.ones((1, len(groups)))
    values = [scorer.score(whole) for scorer in scorers]
    blocks = []
    for weights in resample_weights(groups, resamples, seed):
        ours, theirs = (scorer.score(weights) for scorer in scorers)
        blocks.append({key: ours[key] - theirs[key] for key in ours})
    rows = []
    for key in values[0]:
        pair = (float(values[0][key][0]), float(values[1][key][0]))
        spread = np.concatenate([block[key] for block in blocks])
        low, high = percentile_interval(spread, int(groups.max()) + 1, level)
        method = f"paired bootstrap over {unit}s, {resamples} resamples"
        rows.append(_row(scorers, key, pair, low, high, two_sided_p(spread), method))
        if key[0] == "auroc" and key[1] != "macro":
            rows.append(_delong_row(scorers, key[1], groups, level))
    return {
        "names": list(names),
        "n": len(groups),
        "patients": int(groups.max()) + 1 if unit == "patient" else None,
        "unit": unit,
        "seed": seed,
        "level": level,
        "differences": rows,
    }


def _paired(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> list[pd.DataFrame]:
    tables = []
    for table, name in zip((first, second), names, strict=True):
        good = table[table["error"].isna()] if "error" in table else table
        if good["image"].duplicated().any():
            twice = good.loc[good["image"].duplicated(), "image"].iloc[0]
            raise DataError(f"{name}: holds {twice} twice; images must be named once to be paired")
        tables.append(good.set_index("image").sort_index())
    shared = tables[0].index.intersection(tables[1].index)
    if len(shared) < max(len(table) for table in tables):
        raise DataError(
            f"{names[0]} has {len(tables[0])} images and {names[1]} has {len(tables[1])}, of which {len(shared)} are "
            "the same; evaluate both on the same images first"
        )
    for column in [c for c in tables[0].columns if c == "label" or c.startswith("label:")]:
        ours, theirs = tables[0][column], tables[1][column]
        differ = (ours != theirs) & ~(ours.isna() & theirs.isna())
        if differ.any():
            raise DataError(f"{names[0]} and {names[1]} label {differ.idxmax()} differently ({column})")
    return [table.reset_index() for table in tables]


def _row(
    scorers: list[Scorer],
    key: tuple[str, str],
    pair: tuple[float, float],
    low: float,
    high: float,
    p: float,
    method: str,
) -> dict[str, Any]:
    difference = pair[0] - pair[1]
    known, bounded = not np.isnan(difference), not np.isnan(low)
    return {
        "metric": key[0],
        "class": key[1],
        "first": pair[0] if not np.isnan(pair[0]) else None,
        "second": pair[1] if not np.isnan(pair[1]) else None,
        "difference": difference if known else None,
        "low": low if known and bounded else None,
        "high": high if known and bounded else None,
        "p": p if known and not np.isnan(p) else None,
        "method": method,
        "reason": None if known else why_undefined(scorers[0], *key),
    }


def _delong_row(scorers: list[Scorer], name: str, groups: NDArray[np.int64], level: float) -> dict[str, Any]:
    truth = scorers[0].truth[name]
    known = ~np.isnan(truth)
    pair, low, high, p = (float("nan"), float("nan")), float("nan"), float("nan"), float("nan")
    if 0 < truth[known].sum() < known.sum():
        scores = np.stack([scorer.probability[name][known] for scorer in scorers])
        found = delong(truth[known] == 1, scores, np.unique(groups[known], return_inverse=True)[1])
        pair = (float(found.auroc[0]), float(found.auroc[1]))
        _, low, high, p = found.difference(level)
    return _row(scorers, ("auroc", name), pair, low, high, p, "DeLong")
