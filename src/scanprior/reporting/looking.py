"""What the report and the card say of where a classifier looks: whether its maps follow its weights, and findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from scanprior.reporting.formatting import count, finite, interval, level_of, number, plural
from scanprior.reporting.study_tables import Table

Found = Mapping[str, Any]

_METRICS = {"pointing_game": "Pointing game", "energy_inside": "Energy inside"}
_STAGES = {"head": "head", "last block": "head and last block", "all": "all weights"}


def randomised_table(sanity: Found) -> Table | None:
    """Return how alike the maps stay when weights become random; None where that was not measured."""
    members = [member for member in sanity.get("members") or [] if isinstance(member, Mapping)]
    if not members:
        return None
    named = len(members) > 1
    rows = [
        [
            *([str(member.get("name") or number_)] if named else []),
            str(member.get("method")),
            _STAGES.get(str(stage.get("stage")), str(stage.get("stage"))),
            count(stage.get("parameters")),
            _mean(stage, "spearman"),
            _mean(stage, "ssim"),
        ]
        for number_, member in enumerate(members, start=1)
        for stage in member.get("stages") or []
    ]
    header = [*(["Member"] if named else []), "Method", "Made random", "Numbers drawn", "Rank correlation",
              "Structural similarity"]  # fmt: skip
    caption = (
        f"Maps of {plural(members[0].get('images'), 'image')} ({sanity.get('data')}) compared with those of the same "
        "network after weights were made random, from the head down. Near 1 a map does not show what was learned."
    )
    return Table(caption, header, rows)


def pointing_table(pointing: Found) -> Table | None:
    """Return whether the maps lie in what a reader drew; None where that was not measured."""
    metrics = [row for row in pointing.get("metrics") or [] if isinstance(row, Mapping)]
    if not metrics:
        return None
    level = level_of(pointing)
    rows = [
        [
            _METRICS.get(str(row.get("metric")), str(row.get("metric"))),
            f"{number(row.get('value'))} {interval(row.get('low'), row.get('high'))}".strip(),
            number(row.get("chance")),
            f"{_signed(row.get('difference'))} {_signed_interval(row)}".strip(),
        ]
        for row in metrics
    ]
    whose = "" if pointing.get("patients") is None else f" of {plural(pointing.get('patients'), 'patient')}"
    tolerance = finite(pointing.get("tolerance"))
    near = f" or at most {tolerance:g} pixels from it" if tolerance else ""
    caption = (
        f"Do the maps ({_methods(pointing)}) lie in the masks that were drawn? "
        f"{plural(pointing.get('n'), 'image')}{whose}, {_whose(pointing)}. "
        f"Pointing game: share of images whose highest point lies in the mask{near}; "
        "energy inside: mean share of the map that does."
    )
    return Table(
        caption, ["Score", f"Value, {level} interval", "Random map", f"Difference, {level} interval"], rows
    )


def looking_sentences(sanity: Found, pointing: Found) -> Iterator[str]:
    """Yield the same as sentences, for a card."""
    for member in sanity.get("members") or []:
        whose = f" of {member['name']}" if member.get("name") else ""
        said = ", ".join(
            f"{_mean(stage, 'spearman')} ({_STAGES.get(str(stage.get('stage')), stage.get('stage'))})"
            for stage in member.get("stages") or []
        )
        yield (
            f"Maps ({member.get('method')}){whose} of {plural(member.get('images'), 'image')} against those after "
            f"weights were made random: rank correlation {said}; near 1 they would not show what was learned."
        )
    for row in pointing.get("metrics") or []:
        yield (
            f"{_METRICS.get(str(row.get('metric')), row.get('metric'))} of the maps ({_methods(pointing)}) on "
            f"{plural(pointing.get('n'), 'image')} with a mask: {number(row.get('value'))} "
            f"{interval(row.get('low'), row.get('high'))}, a random map {number(row.get('chance'))}."
        )


def _whose(pointing: Found) -> str:
    data, split = str(pointing.get("data")), f"split {pointing.get('split')}"
    return f"{PurePath(data).name}, {split}"


def _methods(pointing: Found) -> str:
    return ", ".join(dict.fromkeys(map(str, pointing.get("methods") or [])))


def _mean(stage: Found, name: str) -> str:
    return "n/a: maps are the same everywhere" if stage.get(name) is None else number(stage.get(name), 2)


def _signed(value: object) -> str:
    exact = finite(value)
    return "n/a" if exact is None else f"{'+' if exact > 0 else ''}{number(exact)}"


def _signed_interval(row: Found) -> str:
    low, high = row.get("difference_low"), row.get("difference_high")
    return "" if finite(low) is None or finite(high) is None else f"[{_signed(low)}–{_signed(high)}]"
