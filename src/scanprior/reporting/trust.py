"""What the report and the card say of a run's own limits: calibration, conformal sets, images unlike the training's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scanprior.reporting.formatting import count, finite, interval, level_of, number, plural
from scanprior.reporting.runfiles import part
from scanprior.reporting.study_tables import Table

_METHODS = {"lac": "least ambiguous sets", "aps": "adaptive sets"}


def trust_facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the card says of what was fitted after the training; [] of a run without it."""
    return [*_temperature(model), *_sets(model), *_outliers(model)]


def trust_notes(model: Mapping[str, Any]) -> list[str]:
    """Return why something of it could not be fitted."""
    return [str(note) for note in part(model, "trust").get("notes") or []]


def sets_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Return how often the conformal sets of an evaluation hold the truth; None where it was not measured."""
    rows = evaluation.get("sets") or []
    if not rows:
        return None
    sites = any(row.get("site") is not None for row in rows)
    header = ["Images", *(["Site"] if sites else []), "n", "Coverage", f"{level_of(evaluation)} interval",
              "Classes in a set", "Sets of one class"]  # fmt: skip
    made = [
        [
            str(row.get("of")),
            *([str(row.get("site") or "all")] if sites else []),
            count(row.get("n")),
            number(row.get("coverage")) if row.get("coverage") is not None else str(row.get("reason")),
            interval(row.get("low"), row.get("high")) or "n/a",
            number(row.get("mean_size"), 2),
            number(row.get("singletons"), 2),
        ]
        for row in rows
    ]
    caption = "How often a set held the truth. Of a finding the two classes are absent and present."
    return Table(caption, header, made)


def trust_sentences(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same as sentences, for a card and for the terminal."""
    facts = trust_facts(model)
    if facts:
        yield "; ".join(f"{name[0].lower()}{name[1:]}: {value}" for name, value in facts) + "."
    yield from (f"{note[0].upper()}{note[1:]}." for note in trust_notes(model))


def _temperature(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = part(model, "trust", "temperature")
    if not found:
        return
    before, after = (found.get("log_loss") or [None, None])[:2]
    fitted = f"on {plural(found.get('images'), 'validation image')}"
    yield (
        "Temperature",
        f"{number(found.get('value'), 2)} (log loss {number(before)} to {number(after)}, {fitted})",
    )


def _sets(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    thresholds = part(model, "trust", "sets").get("thresholds") or []
    if not thresholds:
        return
    first = thresholds[0]
    method = _METHODS.get(str(first.get("method")), str(first.get("method")))
    level = finite(first.get("level"))
    wanted = "n/a" if level is None else f"{level:.0%}"
    yield "Conformal sets", f"{wanted} are to hold the truth; {method}"


def _outliers(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = part(model, "trust", "outliers")
    if not found:
        return
    threshold, alarms = finite(found.get("threshold")), finite(found.get("false_alarms"))
    kept = plural(found.get("reference_images"), "training image")
    if threshold is None or alarms is None:
        yield "Outliers", f"scored against {kept}; none is flagged"
        return
    looked = plural(found.get("validation_images"), "validation image")
    yield (
        "Outliers",
        f"flagged above a score of {threshold:.2f}, as {alarms:.0%} of {looked} are (1 is the mean of {kept})",
    )
