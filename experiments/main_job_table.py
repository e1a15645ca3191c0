"""The table of the main job: means over seeds with intervals over patients and seeds, differences, labels to match."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from scanprior.evaluation import (
    Replicates,
    Scorer,
    groups_of,
    labels_to_match,
    mean_difference,
    mean_interval,
    replicates,
)

RESAMPLES = 2000
LEVEL = 0.95
BASELINE = "scratch"
METRICS = {"auroc": "AUROC", "accuracy": "accuracy"}
SETS = (
    ("pneumonia", "test", None, "kermany, official test"),
    ("tuberculosis", "test", None, "shenzhen, held-out patients"),
    ("pneumonia", "nih", None, "nih_half, patients of no pretraining (adults, another hospital)"),
    ("pneumonia", "nih", "AP", "nih_half, of these the AP views"),
    ("pneumonia", "nih", "PA", "nih_half, of these the PA views"),
)
"""Task, evaluation, view (None = all) and what the tables call it."""

Found = dict[tuple[int, str], dict[str, Replicates]]


def write_table(work: Path, jobs: Iterable[Any], tuned: dict[tuple[str, str, int], Any], out: Path) -> None:
    """Write ``main-job/results.json`` and print the tables as Markdown.

    Args:
        work: folder of the runs.
        jobs: all fine-tuning runs of the table.
        tuned: what was chosen on validation, recorded with the results.
        out: folder of the results.
    """
    jobs, rows = list(jobs), []
    for task, evaluation, view, where in SETS:
        rows += _set(work, [job for job in jobs if job.task == task], evaluation, view, where)
    chosen = [{**asdict(job), "validation_auroc": job.validated(work)} for job in tuned.values()]
    document = {"tuned": chosen, "resamples": RESAMPLES, "level": LEVEL, "rows": rows}
    (out / "main-job" / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(_markdown(rows)))


def _set(work: Path, jobs: list[Any], evaluation: str, view: str | None, where: str) -> list[dict[str, Any]]:
    """Rows of one data set: every initialisation and budget on the same resamples of patients."""
    found, groups, unit = _scored(work, jobs, evaluation, view)
    budgets = sorted({labels for labels, _ in found})
    rows = []
    for (labels, init), metrics in sorted(found.items()):
        for metric, mine in metrics.items():
            interval = mean_interval(metric, mine, unit, LEVEL)
            row = {
                "data": where, "evaluation": evaluation, "labels": labels, "init": init, "metric": metric,
                "value": mine.mean, "low": interval.low, "high": interval.high, "interval": interval.how,
                "seeds": [round(float(value), 4) for value in mine.values], "spread": mine.deviation,
                "n": len(groups), "patients": int(groups.max()) + 1,
            }  # fmt: skip
            if init != BASELINE:
                base = found[labels, BASELINE][metric]
                difference = mean_difference(mine, base, unit, LEVEL)
                curve = [found[budget, BASELINE][metric] for budget in budgets]
                match = labels_to_match(mine, budgets, curve, level=LEVEL)
                row |= {
                    "difference": mine.mean - base.mean, "difference_low": difference.low,
                    "difference_high": difference.high, "p": difference.p,
                    "match": [_bounded(value, budgets) for value in (match.labels, match.low, match.high)],
                }  # fmt: skip
            rows.append(row)
    return rows


def _scored(work: Path, jobs: list[Any], evaluation: str, view: str | None) -> tuple[Found, Any, str]:
    tables: dict[tuple[int, str], list[pd.DataFrame]] = {}
    classes: list[str] = []
    for job in sorted(jobs, key=lambda job: job.seed):
        file = job.folder(work) / "evaluations" / f"{evaluation}.parquet"
        table = pd.read_parquet(file).sort_values("image")
        kept = table["error"].isna() & (True if view is None else table["view"] == view)
        table = table[kept].reset_index(drop=True)
        classes = json.loads((job.folder(work) / "model.json").read_text())["task"]["classes"]
        tables.setdefault((job.labels, job.init), []).append(table)
    groups, unit = groups_of(next(iter(tables.values()))[0])
    found = {}
    for place, parts in tables.items():
        scorers = [Scorer(table, classes, "multiclass") for table in parts]
        every = replicates(scorers, groups, RESAMPLES, 0)
        found[place] = {name: value for (name, _), value in every.items() if name in METRICS}
    return found, groups, unit


def _bounded(labels: float, budgets: list[int]) -> str:
    if math.isnan(labels):
        return "n/a"
    if math.isinf(labels):
        return f"> {budgets[-1]}"
    return f"≤ {budgets[0]}" if labels == 0 else f"{labels:.0f}"


def _markdown(rows: list[dict[str, Any]]) -> Iterable[str]:
    for _, _, _, where in SETS:
        for metric, title in METRICS.items():
            part = [row for row in rows if row["data"] == where and row["metric"] == metric]
            first = part[0]
            yield f"\n### {where}: {title} ({first['n']} images, {first['patients']} patients)\n"
            yield "| labels | start | mean [95 %] | SD of seeds | minus scratch [95 %] | p | scratch needs [95 %] |"
            yield "|---|---|---|---|---|---|---|"
            for row in part:
                gain = match = p = ""
                if row["init"] != BASELINE:
                    low, high = row["difference_low"], row["difference_high"]
                    gain = f"{row['difference']:+.3f} [{low:+.3f} to {high:+.3f}]"
                    value, least, most = row["match"]
                    p, match = f"{row['p']:.2g}", f"{value} [{least} to {most}]"
                yield (
                    f"| {row['labels']} | {row['init']} | {row['value']:.3f} [{row['low']:.3f}–{row['high']:.3f}] | "
                    f"{row['spread']:.3f} | {gain} | {p} | {match} |"
                )
