"""Which of several models is best over several tasks: their average ranks, and how sure these are.

As ranks are compared over data sets (Demsar 2006, Journal of Machine Learning Research 7, section 3.2.2; ties share
their ranks), with an interval by ranking anew in every resample [our definition].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scanprior import keyed
from scanprior.evaluation.replicates import Replicates

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contest:
    """One task at which all models were measured.

    Attributes:
        found: the metric of each model, of the same seeds in the same order.
        falling: whether it is better where it is smaller, such as a distance.
        patients: name of the patients; contests of the same ones are resampled alike, others independently.
    """

    found: Sequence[Replicates]
    falling: bool
    patients: str


@dataclass(frozen=True)
class AverageRank:
    """Average rank of one model, from 1 (always best) to the number of models.

    Attributes:
        rank: mean over contests and seeds.
        low, high: of its interval; None where there is none.
        reason: why there is none.
    """

    rank: float
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def average_ranks(contests: Sequence[Contest], level: float = 0.95) -> list[AverageRank]:
    """Return the average rank of every model.

    Models are ranked for every seed by itself. The interval is between percentiles of the average ranks in resamples
    of patients and, at the same time, of seeds, as in ``Replicates.resampled_means``; it says how the ranking on
    these tasks depends on who was tested and which seeds were drawn, not how it would be on other tasks.

    Args:
        contests: at least one, all of the same models in the same order, the same number of seeds and resamples,
            without a missing value.
        level: such as 0.95.
    """
    values = np.mean(
        [_ranked(np.stack([each.values for each in one.found]), one) for one in contests], axis=0
    )
    spreads = []
    for contest in contests:
        spread = _ranked(np.stack([each.spread for each in contest.found]), contest)
        order = np.arange(spread.shape[-1], dtype=np.int64)
        draws = keyed.uniform(keyed.key(0, f"average ranks, {contest.patients}"), order, 1)[:, 0]
        spreads.append(spread[..., draws.argsort(kind="stable")])
    spread = np.mean(spreads, axis=0)
    return [
        _with_interval(own, around, len(values), level) for own, around in zip(values, spread, strict=True)
    ]


def _ranked(scores: Floats, contest: Contest) -> Floats:
    """Return (models, ...) ranks along the first axis, 1 = best; NaN where a model has no score."""
    made = stats.rankdata(scores if contest.falling else -scores, axis=0, nan_policy="propagate")
    return np.asarray(made, dtype=np.float64)


def _with_interval(values: Floats, spread: Floats, models: int, level: float) -> AverageRank:
    """Return a model's rank from its ranks by seed (S,) and in the resamples (S, R)."""
    rank = float(values.mean())
    means = Replicates(values, spread, np.inf).resampled_means(0)
    means = means[~np.isnan(means)]
    if 2 * len(means) < spread.shape[1]:
        return AverageRank(rank, reason="no interval because fewer than half of the resamples have a value")
    # What is added for the small number of seeds may reach beyond the best and the worst rank that there is.
    low, high = np.quantile(np.clip(means, 1, models), [(1 - level) / 2, (1 + level) / 2])
    return AverageRank(rank, float(low), float(high))
