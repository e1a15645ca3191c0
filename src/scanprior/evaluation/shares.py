"""The share of images of which something is so, with an interval over those who the images are of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.evaluation.bootstrap import resample_weights
from scanprior.evaluation.intervals import Interval, binomial_interval, bootstrap_interval


def share_interval(
    so: NDArray[np.bool_],
    groups: NDArray[Any],
    unit: str,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the interval of a share of images.

    It is exact (Clopper-Pearson) with one image a group, else by bootstrap over groups.

    Args:
        so: (N,) of which images it is so; N at least 1.
        groups: (N,) whose images they are.
        unit: what a group is, such as ``patient``.
        level: of the interval.
        resamples, seed: of the bootstrap.
    """
    numbers = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    count = int(numbers.max()) + 1
    if count == len(so):
        low, high = binomial_interval(int(so.sum()), count, level)
        return Interval(low, high, f"exact (Clopper-Pearson), {count} {unit}{'s' if count > 1 else ''}")
    values = so.astype(np.float64)
    spread = np.concatenate(
        [weights @ values / weights.sum(axis=1) for weights in resample_weights(numbers, resamples, seed)]
    )
    return bootstrap_interval("share", float(values.mean()), spread, count, unit, level)


def by_site(table: pd.DataFrame) -> Iterator[tuple[str | None, NDArray[np.bool_]]]:
    """Yield None and all rows (N,) of a table of images, then the name and the rows of each ``site`` of several."""
    yield None, np.ones(len(table), dtype=np.bool_)
    names = table["site"].astype("string") if "site" in table else None
    found = [] if names is None else sorted(names.dropna().unique())
    for name in found if len(found) > 1 else []:
        yield str(name), (names == name).to_numpy(np.bool_, na_value=False)
