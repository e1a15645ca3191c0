"""The report of a study as Markdown: the same words and tables, for a repository or a manuscript."""

from __future__ import annotations

from collections.abc import Iterator

from scanprior.reporting.study_page import StudyPage
from scanprior.reporting.study_tables import Table


def study_markdown(page: StudyPage) -> str:
    """Return everything of the page but its drawings."""
    return "\n".join(_lines(page)) + "\n"


def _lines(page: StudyPage) -> Iterator[str]:
    yield f"# {page.title}\n"
    if page.phantoms:
        yield "Phantoms: images of this study are synthetic. They say nothing of patients.\n"
    if page.question:
        yield f"{page.question}\n"
    yield f"**{page.verdict}**\n"
    yield from (f"- {name} failed: {why}" for name, why in page.failed)
    yield from (f"- {text}" for text in (*page.warnings, *page.absent))
    yield "\n## Data and training\n"
    yield from (f"- {name}: {value}" for name, value in page.facts)
    yield ""
    for heading, table in (
        ("", page.data),
        ("Pretraining", page.pretraining),
        ("What was chosen on validation", page.tuned),
    ):
        if table is not None:
            yield from _table(heading, table)
    for section in page.sections:
        yield f"## {section.heading}\n"
        if section.verdict:
            yield f"{section.verdict}\n"
        for heading, table in section.tables:
            yield from _table(heading, table)
    if page.shift_table is not None:
        yield "## Do the images differ? Without labels\n"
        yield from (f"- {text}" for _, text in page.shifts)
        yield ""
        yield from _table("", page.shift_table)
    yield "## Limits\n"
    yield from (f"- {text}" for text in page.limits)
    yield f"\nResearch use only. Not a medical device. Written by scanprior {page.version}."


def _table(heading: str, table: Table) -> Iterator[str]:
    if heading:
        yield f"### {heading}\n"
    yield from (_row(table.header), _row(["---"] * len(table.header)), *map(_row, table.rows))
    yield f"\n{table.caption}\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
