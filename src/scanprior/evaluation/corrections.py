"""P-values of many comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct the p-values of one family of comparisons so that all of them hold together.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before it, or
    larger than 1. The chance of a single false one among those at or below 0.05 is then at most 0.05, however the
    comparisons depend on one another (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        values: p-values in [0, 1]; None or NaN = no test was made, which is no part of the family.

    Returns:
        The corrected p-values in the same order, None where there was none.

    Example:
        >>> holm([0.01, 0.04, None, 0.02])
        [0.03, 0.04, None, 0.04]
    """
    known = [
        (value, place) for place, value in enumerate(values) if value is not None and not math.isnan(value)
    ]
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (value, place) in enumerate(sorted(known)):
        least = max(least, min(1.0, (len(known) - rank) * value))
        corrected[place] = least
    return corrected
