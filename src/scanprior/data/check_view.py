"""Show an audit on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scanprior.data.audit import Audit
from scanprior.data.tables import SPLITS

_STYLES = {"leakage": "bold red", "warning": "yellow", "note": "cyan"}


def render(audit: Audit, *, shown: int = 10) -> RenderableType:
    """Return what the terminal shows of an audit: counts, labels, problems, and the first of every list.

    Args:
        audit: the result of ``check``.
        shown: rows of each list; the JSON has them all.
    """
    parts: list[RenderableType] = [Text(audit.found), _counts(audit)]
    if audit.labels:
        parts.append(_labels(audit))
    if audit.unreadable:
        rows = [[entry["image"], entry["reason"]] for entry in audit.unreadable]
        parts.append(_table("Cannot be read", ["image", "reason"], rows, shown))
    if audit.patients_in_splits:
        rows = [
            [entry["patient"], *(str(entry["splits"].get(name, "")) for name in SPLITS)]
            for entry in audit.patients_in_splits
        ]
        parts.append(_table("Patients in more than one split", ["patient", *SPLITS], rows, shown))
    for title, groups in (("Equal images", audit.exact), ("Images that look the same", audit.near)):
        if groups:
            parts.append(_duplicates(title, groups, shown))
    parts += [_problem(problem.severity, problem.message) for problem in audit.problems]
    verdict = "Leakage: yes" if audit.leakage else "Leakage: none found"
    parts.append(Text(verdict, style="bold red" if audit.leakage else "bold green"))
    return Group(*parts)


def _problem(severity: str, message: str) -> Text:
    return Text.assemble((f"{severity:>8}  ", _STYLES[severity]), message)


def _counts(audit: Audit) -> Text:
    facts = audit.summary
    parts = [f"{facts['readable']:,} of {facts['images']:,} images readable"]
    if facts["median_size"] is not None:
        rows, columns = facts["median_size"]
        parts.append(f"median size {rows:g} x {columns:g}")
    kinds = {"1": "grey", "3": "colour"}
    parts += [
        f"{count:,} {kinds.get(channels, channels + ' channels')}"
        for channels, count in facts["channels"].items()
    ]
    parts += [f"{count:,} of {bits} bit" for bits, count in facts["source_bits"].items()]
    return Text(", ".join(parts))


def _labels(audit: Audit) -> Table:
    table = Table(title="Labels", title_justify="left")
    for name in ("label", "split", "images", "patients", "negative", "uncertain", "missing"):
        table.add_column(name, justify="left" if name in ("label", "split") else "right")
    for entry in audit.labels:
        table.add_row(
            escape(str(entry["label"])) if entry["split"] == "all" else "",
            entry["split"],
            *("" if entry[key] is None else f"{entry[key]:,}" for key in list(entry)[2:]),
            end_section=False,
        )
    return table


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], shown: int) -> Table:
    more = f"and {len(rows) - shown:,} more in the JSON" if len(rows) > shown else None
    table = Table(title=f"{title}: {len(rows):,}", title_justify="left", caption=more, caption_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows[:shown]:
        table.add_row(*(escape(str(value)) for value in row))
    return table


def _duplicates(title: str, groups: Sequence[dict[str, Any]], shown: int) -> Table:
    """List the groups, those across splits or with conflicting labels first."""
    ordered = sorted(groups, key=lambda group: (not group["across_splits"], not group["conflicting_labels"]))
    rows = []
    for group in ordered:
        remarks = [
            words
            for key, words in (
                ("across_splits", "across splits"),
                ("conflicting_labels", "conflicting labels"),
                ("several_patients", "several patients"),
                ("inverted", "negative of each other"),
            )
            if group.get(key)
        ]
        rows.append(["\n".join(map(str, group["images"])), ", ".join(remarks)])
    return _table(title, ["images", "remarks"], rows, shown)
