"""What the command line shows: progress, notes, tables of results."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scanprior.engine.logs import Reporter
from scanprior.terminal import console

_EVERY = 10.0
"""Seconds between lines of progress where the output is no terminal."""

_LOGGED_ALONE = frozenset({"balanced_accuracy", "macro_f1", "kappa", "quadratic_kappa"})
"""Validation metrics that stand in the log alone, unless a step is selected by one."""


class ConsoleReporter(Reporter):
    """Shows progress on one line of a terminal, or as a line every ten seconds in a log."""

    def __init__(self, out: Console | None = None) -> None:
        self.out = out or console
        self._last, self._open = time.monotonic(), False

    def step(self, row: dict[str, Any], total: int, seconds: float) -> None:
        """Show a row of training metrics."""
        done = int(row["step"])
        left = seconds / done * (total - done)
        spread = f"  spread {row['embedding_std']:.2f}" if "embedding_std" in row else ""
        self._progress(
            f"step {done:,}/{total:,}  epoch {row['epoch']:.1f}  loss {row['loss']:.4f}{spread}  "
            f"{row['images_per_second']:.0f} images/s  waiting for data {row['data_wait']:.0%}  {clock(left)} left",
            done == total,
        )

    def validation(self, step: int, values: dict[str, float], select: str | None) -> None:
        """Show the metrics of a validation."""
        hidden = _LOGGED_ALONE - {select}
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, float) and name not in hidden and not name.startswith("negative")
        }
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        what = values.get("split", "validation")
        self.note(f"{what} at step {step:,}: {shown}")

    def preparing(self, done: int, total: int) -> None:
        """Show how many images were decoded."""
        self.counted(done, total, "images decoded")

    def counted(self, done: int, total: int, what: str) -> None:
        """Show how many of something are done."""
        self._progress(f"{done:,}/{total:,} {what}", done == total)

    def evaluation(self, result: dict[str, Any]) -> None:
        """Show an evaluation as a table."""
        self._close()
        self.out.print(evaluation_table(result))

    def note(self, text: str) -> None:
        """Show a sentence."""
        self._close()
        style = "yellow" if text.startswith("warning") else ""
        self.out.print(Text(text, style=style), soft_wrap=True)

    def _progress(self, line: str, finished: bool) -> None:
        now = time.monotonic()
        if self.out.is_terminal:
            if finished or now - self._last > 0.1:
                self.out.file.write("\r\x1b[2K" + line[: self.out.width - 1])
                self.out.file.flush()
                self._last, self._open = now, True
            if finished:
                self._close()
        elif finished or now - self._last > _EVERY:
            self.out.print(line, soft_wrap=True)
            self._last = now

    def _close(self) -> None:
        if self._open:
            self.out.file.write("\n")
            self._open = False


def clock(seconds: float) -> str:
    """Return a duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _interval(result: dict[str, Any]) -> str:
    """Return what the column of intervals is called."""
    from scanprior.reporting.formatting import (
        level_of,
    )  # draws in the whole report, which not all commands need

    return f"{level_of(result)} interval"


def evaluation_table(result: dict[str, Any]) -> Table:
    """Return the metrics of an evaluation as a table."""
    who = f"{result['patients']:,} patients" if result.get("patients") else "patients unknown"
    if result.get("unit") not in (None, "image", "patient"):
        who += f", {result['units']:,} {result['unit']}s"
    table = Table(title=f"{result['name']}: {result['n']:,} images, {who}", title_justify="left")
    for column, side in (
        ("metric", "left"),
        ("class", "left"),
        ("value", "right"),
        (_interval(result), "right"),
        ("n", "right"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for row in result["metrics"]:
        if row["value"] is None:
            table.add_row(row["metric"], str(row["class"]), "n/a", row["reason"] or "", str(row["n"]))
            continue
        interval = f"{row['low']:.3f} – {row['high']:.3f}" if row["low"] is not None else ""
        if (row.get("interval") or "").startswith("DeLong"):
            interval += " (DeLong)"
        table.add_row(row["metric"], str(row["class"]), f"{row['value']:.3f}", interval, str(row["n"]))
    return table


def comparison_table(result: dict[str, Any]) -> Table:
    """Return the paired differences of two runs as a table."""
    gone = f", {result['left_out']:,} unreadable ones left out" if result["left_out"] else ""
    title = f"{result['names'][0]} minus {result['names'][1]}: {result['n']:,} images{gone}"
    table = Table(title=title, title_justify="left")
    for column in ("metric", "class", "first", "second", "difference", _interval(result), "p"):
        table.add_column(column, justify="left" if column in ("metric", "class") else "right")
    for row in result["differences"]:
        if row["difference"] is None:
            table.add_row(row["metric"], str(row["class"]), "", "", "n/a", row["reason"] or "", "")
            continue
        table.add_row(
            row["metric"], str(row["class"]), f"{row['first']:.3f}", f"{row['second']:.3f}",
            f"{row['difference']:+.3f}",
            f"{row['low']:+.3f} – {row['high']:+.3f}" if row["low"] is not None else "n/a",
            f"{row['p']:.3g}" if row["p"] is not None else "n/a",
        )  # fmt: skip
    return table


def ensemble_table(result: dict[str, Any]) -> Table:
    """Return the AUROC of an ensemble and its members, and what the ensemble gains, as a table.

    Of several classes it is the macro AUROC, as the best member is chosen by it; where there is none, the first
    metric that has a value.
    """
    section, rows = result["ensemble"], result["metrics"]
    known = [row for row in rows if row["value"] is not None] or rows
    macro = [row for row in known if (row["metric"], row["class"]) == ("auroc", "macro")]
    first = (macro or known)[0]
    key = (first["metric"], first["class"])

    def of(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return next((row for row in rows if (row["metric"], row["class"]) == key), {})

    title = f"{key[0]} of {key[1]}, {result['name']}: {result['n']:,} images"
    table = Table(title=title, title_justify="left")
    for column in ("what", "value", _interval(result), "p"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for member in section["members"]:
        row = of(member["metrics"])
        best = ", best on validation" if member["name"] == section["best_member"] else ""
        interval = _range(row.get("low"), row.get("high"), ".3f")
        table.add_row(member["name"] + best, _number(row.get("value"), ".3f"), interval, "")
    table.add_row(f"ensemble ({section['method']})", _number(first["value"], ".3f"),
                  _range(first["low"], first["high"], ".3f"), "")  # fmt: skip
    for difference in section["differences"]:
        row = of(difference["rows"])
        table.add_row(
            f"ensemble minus the {difference['against']}", _number(row.get("difference"), "+.3f"),
            _range(row.get("low"), row.get("high"), "+.3f"), _number(row.get("p"), ".3g"),
        )  # fmt: skip
    return table


def drift_table(result: dict[str, Any]) -> Table:
    """Return what every drift at every severity changes, of the first metric of the whole set or class."""
    first = next(row for row in result["rows"] if row["value"] is not None)
    key = (first["metric"], first["class"])
    title = f"{key[0]} of {key[1]}: {result['n']:,} images; unchanged {first['value']:.3f}"
    table = Table(title=title, title_justify="left")
    for column in (
        "drift",
        "severity",
        "value",
        _interval(result),
        "difference",
        f"{_interval(result)} ",
        "p",
    ):
        table.add_column(column, justify="left" if column == "drift" else "right")
    for row in result["rows"]:
        if (row["metric"], row["class"]) != key or not row["severity"]:
            continue
        table.add_row(
            row["kind"], str(row["severity"]), _number(row["value"], ".3f"), _range(row["low"], row["high"], ".3f"),
            _number(row["difference"], "+.3f"), _range(row["difference_low"], row["difference_high"], "+.3f"),
            _number(row["p"], ".3g"),
        )  # fmt: skip
    return table


def shift_sentence(result: dict[str, Any]) -> str:
    """Return in a sentence whether images differ from a reference."""
    if result["flag"] is None:
        return f"no verdict: {result['reason']}"
    verdict = (
        "the target differs from the reference"
        if result["flag"]
        else "no shift was found, which does not show that there is none"
    )
    return (
        f"{verdict}: p {result['p']:.3g}, MMD {result['mmd']['value']:.4f}, a classifier tells the sets apart with "
        f"AUROC {result['classifier']['auroc']:.3f} ({result['patients']['reference']:,} against "
        f"{result['patients']['target']:,} {result['unit']}s)"
    )


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _range(low: float | None, high: float | None, form: str) -> str:
    return "n/a" if low is None or high is None else f"{low:{form}} – {high:{form}}"
