"""How inits and regimes are called in a study's report, and what all comparisons of it say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scanprior.reporting.formatting import number, plural
from scanprior.reporting.study_tables import Row, Table, difference_text, p_text
from scanprior.reporting.tables import metric_name

_TABLES = (
    "efficiency",
    "contrasts",
    "ensembles",
    "regime_gains",
    "drift",
    "synthetic",
    "subgroups",
    "gaps",
    "tuned",
)


def shown(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results as they are to be read: random inits marked, and in every row ``arm``, init and regime."""
    random = results.get("random", [])

    def named(row: Row) -> Row:
        init = marked(row["init"], row["init"] in random)
        return {**row, "init": init, "arm": arm_text(init, row.get("regime"))}

    def contrasted(row: Row) -> Row:
        init, _, regime = row["against"].partition("@")
        return {**row, "against": arm_text(marked(init, init in random), regime)}

    baseline = results["baseline"]
    made = {**results, "baseline": marked(baseline, baseline in random)}
    made["short_baseline"] = "the baseline" if baseline in random else baseline  # heads of columns are narrow
    for table in _TABLES:
        made[table] = [named(row) for row in results.get(table, [])]
    made["contrasts"] = [contrasted(row) for row in made["contrasts"]]
    if "ranks" in results:
        made["ranks"] = {**results["ranks"], "rows": [named(row) for row in results["ranks"]["rows"]]}
    return made


def arm_text(init: str, regime: str | None) -> str:
    """Write an init and its regime, if there are regimes."""
    return f"{init}, {regime}" if regime else init


def marked(init: str, random: bool) -> str:
    """Write the name of an init, and whether it is meant to have random weights."""
    return f"{init} (random weights)" if random else init


def absent_ones(results: Mapping[str, Any]) -> list[str]:
    """Say which inits are left out, for want of which file, and where that comes from."""
    return [
        f"{row['init']} is left out: {row['reason']}"
        + (f"; it comes from the {row['source']}" if row["source"] else "")
        + "."
        for row in results.get("absent", [])
    ]


def families(results: Mapping[str, Any], table: str = "efficiency") -> dict[str, int]:
    """Return how many comparisons of each metric were corrected together; empty where none were."""
    counts: dict[str, int] = {}
    for row in results[table]:
        if row.get("p_holm") is not None:
            counts[row["metric"]] = counts.get(row["metric"], 0) + 1
    return counts


def family_text(metric: str, size: int) -> str:
    """Say in words which comparisons a p-value was corrected for."""
    return (
        f"p (Holm) is corrected for {plural(size, 'comparison')} of {metric_name(metric)} in this study: over all "
        "inits, regimes, numbers of labels, tasks and test sets."
    )


def correction_limit(results: Mapping[str, Any]) -> str:
    """Say of the whole report what was corrected and what was not."""
    if not families(results):
        return "No correction was made for the number of comparisons."
    return (
        "Intervals are not corrected for the number of comparisons; p-values of differences from the baseline are "
        "(Holm 1979, all comparisons of a metric together), and of regimes; those of other tables are not."
    )


def rank_table(results: Mapping[str, Any]) -> Table | None:
    """Return the average ranks; None where nothing could be ranked."""
    ranks = results.get("ranks")
    if not ranks or not ranks["rows"]:
        return None
    rows = [
        [
            f"{row['rank']:.2f}"
            + (f" [{row['low']:.2f}–{row['high']:.2f}]" if row["low"] is not None else ""),
            row["init"],
            row["regime"] or "–",
        ]
        for row in ranks["rows"]
    ]
    over = "; ".join(
        f"{one['task']} with {_labels(one['labels'])} by {metric_name(one['metric'])}"
        for one in ranks["over"]
    )
    left_out = (
        f" Left out, as some init lacks it in part: {', '.join(ranks['left_out'])}."
        if ranks["left_out"]
        else ""
    )
    seeds = plural(len(ranks["seeds"]), "seed")
    caption = (
        f"1 is best of {len(rows)}; ties share a rank. Mean over {seeds} and over {over}.{left_out} Intervals: ranked "
        "anew in resamples of patients and seeds, tasks on other data independently; other tasks may rank otherwise."
    )
    return Table(caption, ["Average rank [interval]", "Init", "Regime"], rows)


def _labels(labels: object) -> str:
    return "all labels" if labels == "all" else plural(labels, "label")


def regime_tables(results: Mapping[str, Any], task: str, where: Mapping[str, str]) -> list[tuple[str, Table]]:
    """Return, of every evaluation and metric, what the regimes of a task give beyond the baseline regime."""
    rows = [row for row in results["regime_gains"] if row["task"] == task]
    sizes = families(results, "regime_gains")
    made = []
    for place in dict.fromkeys((row["evaluation"], row["metric"], row["class"]) for row in rows):
        evaluation, metric, cls = place
        mine = [row for row in rows if (row["evaluation"], row["metric"], row["class"]) == place]
        body = [
            [
                str(row["labels_used"]),
                row["init"],
                row["regime"],
                number(row["value"]),
                number(row["value_against"]),
                difference_text(row),
                p_text(row),
                p_text(row, "p_holm"),
            ]
            for row in mine
        ]
        against = mine[0]["against"]
        header = ["Labels", "Init", "Regime", "Its", f"{against}’s", "Difference [interval]", "p", "p (Holm)"]
        several = len({row["class"] for row in rows if row["metric"] == metric}) > 1
        caption = f"Each init against itself in {against}, paired by {mine[0]['unit']} and seed."
        if metric in sizes:
            caption += " " + family_text(metric, sizes[metric])
        else:
            header, body = header[:-1], [cells[:-1] for cells in body]
        title = f"Regimes minus {against}: {metric_name(metric)}{f' of {cls}' if several else ''}, {where[evaluation]}"
        made.append((title, Table(caption, header, body)))
    return made
