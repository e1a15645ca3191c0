"""What synthetic drifts do to a run: every metric at every severity, against the unchanged images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from scanprior.evaluation.compare import Difference
from scanprior.evaluation.intervals import Interval, bootstrap_interval
from scanprior.evaluation.labels import groups_of
from scanprior.evaluation.scoring import ImageScorer, metric_row, patients_of, readable, resampled, size_of


def drift_rows(
    table: pd.DataFrame,
    scorer_of: Callable[[pd.DataFrame], ImageScorer],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Evaluate predictions of the same images, unchanged and drifted.

    Args:
        table: predictions or mask metrics with the columns ``kind`` and ``severity``, 0 for the unchanged.
        scorer_of: makes a scorer of the rows of one kind and severity.
        resamples, seed, level: as for ``evaluate``.

    Returns:
        ``n``, ``patients``, ``unit``, ``split``, ``level``, ``rows``: the row of every metric, with kind, severity and
        the paired ``difference`` from the unchanged images, its ``difference_low``, ``difference_high``, ``p``
        and ``difference_reason`` (why there is no interval); None of the unchanged ones themselves.
    """
    parts: dict[tuple[str, int], pd.DataFrame] = {}
    for kind, of_kind in table.groupby("kind", sort=False):
        for severity in of_kind["severity"].unique().tolist():
            part = of_kind[of_kind["severity"] == severity]
            parts[str(kind), int(severity)] = readable(part, f"{kind} {severity}")
    plain = next(place for place in parts if place[1] == 0)
    groups, unit = groups_of(parts[plain])
    scorers = {place: scorer_of(part) for place, part in parts.items()}
    spreads = dict(zip(parts, resampled(list(scorers.values()), groups, resamples, seed), strict=True))
    values = {place: scorer.score(np.ones((1, len(groups)))) for place, scorer in scorers.items()}
    rows = []
    for place, scorer in scorers.items():
        patients = patients_of(scorer, groups, spreads[place])
        for key, found in values[place].items():
            value, spread = float(found[0]), spreads[place][key]
            if np.isnan(value):
                interval = Interval(reason=scorer.why_undefined(*key))
            else:
                interval = bootstrap_interval(key[0], value, spread, patients[key], unit, level)
            row = {"kind": place[0], "severity": place[1], **metric_row(scorer, key, value, interval)}
            apart = value - float(values[plain][key][0])
            if place == plain or np.isnan(apart):
                difference, apart = Difference(), float("nan")
            else:
                difference = Difference.of_bootstrap(spread - spreads[plain][key], patients[key], unit, level)
            row |= {
                "difference": None if np.isnan(apart) else apart,
                "difference_low": None if np.isnan(difference.low) else difference.low,
                "difference_high": None if np.isnan(difference.high) else difference.high,
                "p": None if np.isnan(difference.p) else difference.p,
                "difference_reason": difference.reason,
            }
            rows.append(row)
    return {**size_of(parts[plain], groups, unit), "level": level, "rows": rows}
