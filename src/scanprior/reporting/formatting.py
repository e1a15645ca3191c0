"""How numbers and values are written in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping


def finite(value: object) -> float | None:
    """Return ``value`` as a float, or None if it is no finite number (``True`` is none either)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: object, digits: int = 3) -> str:
    """Write a metric with fixed decimals; what is not exactly 0 or 1 is never rounded to it.

    >>> number(0.93149), number(0.99996), number(1.0), number(None)
    ('0.931', '>0.999', '1.000', 'n/a')
    """
    exact = finite(value)
    if exact is None:
        return "n/a"
    text, unit = f"{exact:.{digits}f}", 10.0**-digits
    if exact not in (0.0, 1.0):
        if float(text) == 1.0:
            return f">{1 - unit:.{digits}f}" if exact < 1 else text
        if float(text) == 0.0:
            return f"<{unit:.{digits}f}" if exact > 0 else f">−{unit:.{digits}f}"
    return text.replace("-", "−")


def interval(low: object, high: object, digits: int = 3) -> str:
    """Write ``[low–high]``, or nothing when either end is unknown."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f"[{number(low, digits)}–{number(high, digits)}]"


def level_of(evaluation: Mapping[str, object]) -> str:
    """Write the level of an evaluation's intervals: ``95 %``."""
    exact = finite(evaluation.get("level"))
    return f"{100 * (0.95 if exact is None else exact):g} %"


def count(value: object) -> str:
    """Write a whole number with thousands separators; ``n/a`` if it is none."""
    exact = finite(value)
    return "n/a" if exact is None else f"{exact:,.0f}"


def plural(value: object, noun: str) -> str:
    """Write ``1 image``, ``2,400 images``."""
    return f"{count(value)} {noun}" + ("" if finite(value) == 1 else "s")


def duration(seconds: object) -> str:
    """Write a time span: 48 s, 12 min 5 s, 3 h 10 min."""
    exact = finite(seconds)
    if exact is None:
        return "n/a"
    whole = round(exact)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def scalar(value: object) -> str:
    """Write any configuration or log value in one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(scalar(v) for v in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{k} {scalar(v)}" for k, v in value.items())
    return "none" if value is None else str(value)
