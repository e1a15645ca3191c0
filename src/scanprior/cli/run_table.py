"""A list of runs as a table for the terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from scanprior.api.browsing import FIELDS, LOWER_IS_BETTER, letters, takes_part
from scanprior.api.run_entries import Metric, RunEntry
from scanprior.terminal import console

_MAIN = ("auroc", "accuracy", "dice")
"""Metrics that have a column wherever a run has them; the one that is ranked by has one, too."""

_FOLDED = {"path": 16, "state": 24}
"""Columns that are folded where there is too little room, and the width they keep."""


@dataclass(frozen=True)
class _Column:
    """A column: its heading, how it is filled, and how important it is (0 = the last to be left out)."""

    name: str
    cell: Callable[[RunEntry], str]
    importance: int
    numeric: bool = False
    heading: str = ""


def print_table(entries: Sequence[RunEntry], folder: Path, metric: str | None, evaluation: str) -> None:
    """Print the list as wide as the terminal is; say which columns had no room."""
    columns = _columns(entries, metric)
    shown = _fitting(columns, entries, console.width)
    table = Table(title=printable(f"{_counted(entries)} below {folder}"), title_justify="left")
    for column in shown:
        table.add_column(
            column.heading or column.name,
            justify="right" if column.numeric else "left",
            no_wrap=column.name not in _FOLDED,
            overflow="fold" if column.name in _FOLDED else "crop",
        )
    ranked = metric is not None and any(entry.best for entry in entries)
    before: object = _group(entries[0], metric)
    for entry in entries:
        if ranked and _group(entry, metric) != before:
            table.add_section()
        before = _group(entry, metric)
        style = "bold" if entry.best else ""
        table.add_row(*(Text(column.cell(entry), style=style) for column in shown))
    console.print(table)
    if any(entry.metrics for entry in entries):
        levels = sorted({f"{100 * entry.level:g} %" for entry in entries if entry.level is not None})
        console.print(
            f"metrics of the evaluation {evaluation}, over all classes, with {' and '.join(levels) or 'no'} intervals",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if left_out := [column.name for column in columns if column not in shown]:
        console.print(
            f"no room for the columns {', '.join(left_out)}; --csv and --json have them",
            markup=False,
            soft_wrap=True,
        )


def json_text(entries: Sequence[RunEntry], notes: Sequence[str]) -> str:
    """Return the list, complete, as JSON: ``runs`` and ``notes``."""
    return json.dumps({"runs": [entry.as_dict() for entry in entries], "notes": list(notes)}, indent=1)


def csv_text(entries: Sequence[RunEntry], notes: Sequence[str]) -> str:
    """Return the list as a table: one column a field, and value, low and high of every metric."""
    metrics = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    heads = [part for name in metrics for part in (name, f"{name}_low", f"{name}_high")]
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow([*FIELDS, "best", *heads])
    for entry in entries:
        values: list[object] = []
        for name in metrics:
            found = entry.metrics.get(name, Metric(None))
            values += [found.value, found.low, found.high]
        cells = [getattr(entry, name) for name in (*FIELDS, "best")]
        cells = ["; ".join(cell) if isinstance(cell, tuple) else cell for cell in cells]
        writer.writerow([printable(cell) if isinstance(cell, str) else cell for cell in (*cells, *values)])
    return made.getvalue()


def printable(text: str) -> str:
    """Return a text without what a terminal would obey, and names that are no text as far as they are."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _counted(entries: Sequence[RunEntry]) -> str:
    """Return how many runs and studies there are, and how many of them are not in order."""
    studies = sum(entry.kind == "study" for entry in entries)
    parts = [
        f"{count:,} {noun if count == 1 else many}"
        for count, noun, many in ((len(entries) - studies, "run", "runs"), (studies, "study", "studies"))
        if count
    ]
    wrong = [
        f"{count:,} {state}"
        for state in ("unfinished", "damaged")
        if (count := sum(entry.state == state for entry in entries))
    ]
    return " and ".join(parts) + (f" ({', '.join(wrong)})" if wrong else "")


def _columns(entries: Sequence[RunEntry], metric: str | None) -> list[_Column]:
    """Return all columns in which an entry has something, in their order."""
    sets = {} if metric is None else letters(entries, metric)
    held = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    metrics = [name for name in held if name == metric or name in _MAIN]
    metrics.sort(key=lambda name: (name != metric, _MAIN.index(name) if name in _MAIN else 0))
    several = len(sets) > 1
    columns = [
        _Column("path", lambda entry: entry.path, 0),
        _Column("kind", lambda entry: entry.kind or "", 3),
        _Column("state", _state, 1),
        *([_Column("test set", lambda entry: _set(entry, sets, metric), 2)] if several else []),
        *(
            _Column(name, lambda entry, name=name: _metric(entry, name, metric), 2 if name == metric else 4,  # type: ignore[misc]
                    heading=f"{name} ↓" if name in LOWER_IS_BETTER else "")
            for name in metrics
        ),
        _Column("labels", lambda entry: _whole(entry.labels), 5, numeric=True),
        _Column("encoder", lambda entry: entry.encoder or "", 6),
        _Column("objective/task", lambda entry: entry.objective or entry.task or "", 7),
        _Column("steps", lambda entry: _whole(entry.steps), 8, numeric=True),
        _Column("data", lambda entry: ", ".join(entry.data), 9),
        _Column("seed", lambda entry: "" if entry.seed is None else str(entry.seed), 10, numeric=True),
        _Column("size", lambda entry: _whole(entry.size), 11, numeric=True),
        _Column("created", lambda entry: (entry.created or "")[:16].replace("T", " "), 12),
        _Column("report", lambda entry: "yes" if entry.report else "", 13),
        _Column("parent", lambda entry: entry.parent or "", 14),
    ]  # fmt: skip
    columns = [_Column(c.name, _printed(c.cell), c.importance, c.numeric, c.heading) for c in columns]
    return [column for column in columns if column.importance < 2 or any(map(column.cell, entries))]


def _printed(cell: Callable[[RunEntry], str]) -> Callable[[RunEntry], str]:
    return lambda entry: printable(cell(entry))


def _fitting(columns: Sequence[_Column], entries: Sequence[RunEntry], width: int) -> list[_Column]:
    """Return the columns that fit beside each other, the least important left out; path always stays."""

    def needed(column: _Column) -> int:
        cells = (column.heading or column.name, *map(column.cell, entries))
        widest = max(map(cell_len, cells))
        return min(widest, _FOLDED.get(column.name, widest)) + 3  # and the space and line beside it

    needs = {column.name: needed(column) for column in columns}
    shown = list(columns)
    while len(shown) > 1 and sum(needs[column.name] for column in shown) + 1 > width:
        shown.remove(max(reversed(shown), key=lambda column: column.importance))
    return shown


def _state(entry: RunEntry) -> str:
    return entry.state if entry.reason is None else f"{entry.state}: {entry.reason}"


def _group(entry: RunEntry, metric: str | None) -> object:
    """Return what the rows between two lines of the table have in common."""
    return (entry.test_set,) if metric is not None and takes_part(entry, metric) else None


def _set(entry: RunEntry, sets: dict[str, str], metric: str | None) -> str:
    if metric is None or not takes_part(entry, metric):
        return ""
    return "?" if entry.test_set is None else sets[entry.test_set]


def _metric(entry: RunEntry, name: str, ranked: str | None) -> str:
    found = entry.metrics.get(name)
    if found is None:
        return ""
    if found.value is None:
        return "n/a"
    interval = "" if found.low is None or found.high is None else f" [{found.low:.3f}–{found.high:.3f}]"
    return f"{found.value:.3f}{interval}{' best' if entry.best and name == ranked else ''}"


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
