"""Groups of images by a side column: its values, or bands of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError

Floats = NDArray[np.float64]

UNKNOWN = "unknown"
"""Name of the group of images without a value."""

DISTINCT = 10
"""A numeric column with more distinct values than this is cut into quartile bands."""


def groups_by(table: pd.DataFrame, column: str, bands: Sequence[float] | None = None) -> pd.Series:
    """Return the group of each image, an ordered categorical: by number or name, ``unknown`` last.

    No image is left out: one without a value is in the group ``unknown``, one outside the bands in a band
    of its own below or above them.

    Args:
        table: of images.
        column: numeric or of names.
        bands: rising edges of a numeric column, each band from its edge to below the next; None = the values
            themselves, or the quartiles of the known ones where there are more than 10 distinct numbers.

    Raises:
        DataError: there is no such column, the edges do not rise, or a value is no finite number though
            bands are asked for.
    """
    if column not in table:
        raise DataError(f"the predictions have no column {column!r}; they have {', '.join(table.columns)}")
    values = table[column]
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if bands is None and not (numeric and values.nunique() > DISTINCT):
        return _by_value(values)
    numbers = _numbers(values)
    edges = quartiles(numbers) if bands is None else _checked(bands, column)
    edges = np.unique([-np.inf, *edges, np.inf])
    known = ~np.isnan(numbers)
    names = _names(edges, whole=bool((numbers[known] % 1 == 0).all()))
    places = np.searchsorted(edges, numbers[known], side="right") - 1
    found = np.full(len(numbers), UNKNOWN, dtype=object)
    found[known] = np.array(names, dtype=object)[places]
    return _ordered(pd.Series(found, index=values.index, name=column), names)


def quartiles(numbers: Floats) -> Floats:
    """Return the edges between quartile bands of the known numbers, each of them a number that occurs.

    Equal edges are one, and none is the smallest number; where that leaves none, the next larger number is
    the only edge.

    Args:
        numbers: (n,) NaN = unknown; at least two distinct ones.
    """
    known = np.unique(numbers[~np.isnan(numbers)])
    edges = np.unique(np.nanquantile(numbers, [0.25, 0.5, 0.75], method="higher"))
    above: Floats = edges[edges > known[0]]
    return above if len(above) else known[1:2]


def _by_value(values: pd.Series) -> pd.Series:
    known = values.dropna().unique().tolist()
    try:
        known = sorted(known)
    except TypeError:  # names and numbers mixed
        known = sorted(known, key=str)
    return _ordered(values.astype(object).where(values.notna(), UNKNOWN), known)


def _ordered(groups: pd.Series, names: Sequence[object]) -> pd.Series:
    """A categorical of the names that occur, in their order."""
    names = [*(name for name in names if name != UNKNOWN), UNKNOWN]
    kind = pd.CategoricalDtype(names, ordered=True)
    return groups.astype(kind).cat.remove_unused_categories()


def _numbers(values: pd.Series) -> Floats:
    """The column as floats, NaN = unknown."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    strange = (np.isnan(numbers) & values.notna().to_numpy()) | np.isinf(numbers)
    if strange.any():
        value = values.iloc[int(strange.argmax())]
        raise DataError(f"{values.name} holds {value}; bands are for finite numbers and missing values")
    return numbers


def _checked(bands: Sequence[float], column: str) -> Floats:
    edges = np.asarray(bands, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 1 or np.isnan(edges).any() or (np.diff(edges) <= 0).any():
        raise DataError(f"the bands of {column} are {list(bands)}; give edges that rise, such as [0, 18, 65]")
    return edges


def _names(edges: Floats, whole: bool) -> list[str]:
    """Names of the bands between the edges, which begin with -inf and end with inf.

    Of whole numbers between whole edges ``18–39``, of others ``18 to under 40``.
    """
    inner = edges[np.isfinite(edges)]
    whole = whole and bool((inner % 1 == 0).all())
    made = []
    for low, high in pairwise(edges):
        if np.isinf(low):
            name = "all" if np.isinf(high) else f"under {_text(high)}"
        elif np.isinf(high):
            name = f"{_text(low)}+"
        elif not whole:
            name = f"{_text(low)} to under {_text(high)}"
        elif high - low == 1:
            name = _text(low)
        else:
            name = f"{_text(low)}{'–' if low >= 0 else ' to '}{_text(high - 1)}"
        made.append(name)
    return made


def _text(number: float) -> str:
    """The number in as few digits as tell it from every other."""
    short = f"{number:.0f}" if number % 1 == 0 else f"{number:.6g}"
    return short if float(short) == number else repr(float(number))
