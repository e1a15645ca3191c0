"""The table of the main job: means over seeds with intervals over patients, paired differences, labels to match."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanprior.evaluation import Scorer, groups_of, percentile_interval, resample_weights, two_sided_p

RESAMPLES = 2000
METRICS = {"auroc": "AUROC", "accuracy": "accuracy"}
SETS = {("pneumonia", "test"): "kermany, official test", ("tuberculosis", "test"): "shenzhen, held-out patients",
        ("pneumonia", "nih"): "nih_half, patients of no pretraining (adults, another hospital)"}  # fmt: skip


def write_table(work: Path, jobs: Iterable[Any], tuned: dict[tuple[str, str, int], Any], out: Path) -> None:
    """Write ``main-job/results.json`` and print the tables as Markdown.

    Args:
        work: folder of the runs.
        jobs: all fine-tuning runs of the table.
        tuned: what was chosen on validation, recorded with the results.
        out: folder of the results.
    """
    rows: list[dict[str, Any]] = []
    for (task, evaluation), where in SETS.items():
        part = [job for job in jobs if job.task == task]
        for labels in sorted({job.labels for job in part}):
            rows += _budget(work, [job for job in part if job.labels == labels], evaluation, where, labels)
    chosen = [{**asdict(job), "validation_auroc": job.validated(work)} for job in tuned.values()]
    (out / "main-job" / "results.json").write_text(json.dumps({"tuned": chosen, "rows": rows}, indent=1))
    print("\n".join(_markdown(rows)))


def _budget(work: Path, jobs: list[Any], evaluation: str, where: str, labels: int) -> list[dict[str, Any]]:
    """Rows of one data set and budget: every initialisation on the same resamples of patients."""
    scorers: dict[str, list[Scorer]] = {}
    groups = None
    for job in sorted(jobs, key=lambda job: job.seed):
        file = job.folder(work) / "evaluations" / f"{evaluation}.parquet"
        table = pd.read_parquet(file).sort_values("image").reset_index(drop=True)
        table = table[table["error"].isna()].reset_index(drop=True)
        card = json.loads((job.folder(work) / "model.json").read_text())
        scorers.setdefault(job.init, []).append(Scorer(table, card["task"]["classes"], "multiclass"))
        groups = groups_of(table)[0]
    assert groups is not None
    whole = np.ones((1, len(groups)))
    values = {init: _scores(found, whole) for init, found in scorers.items()}
    blocks = [
        {init: _scores(found, weights) for init, found in scorers.items()}
        for weights in resample_weights(groups, RESAMPLES, 0)
    ]
    patients = int(groups.max()) + 1
    rows = []
    for init in scorers:
        for metric in METRICS:
            mean = {
                k: np.concatenate([block[k][metric].mean(axis=0) for block in blocks])
                for k in (init, "scratch")
            }
            low, high = percentile_interval(mean[init], patients, 0.95)
            seeds = values[init][metric][:, 0]
            row = {
                "data": where, "evaluation": evaluation, "labels": labels, "init": init, "metric": metric,
                "value": float(seeds.mean()), "low": low, "high": high, "seeds": [round(float(s), 4) for s in seeds],
                "spread": float(seeds.std(ddof=1)), "n": len(groups), "patients": patients,
            }  # fmt: skip
            if init != "scratch":
                spread = mean[init] - mean["scratch"]
                row["difference"] = float(seeds.mean() - values["scratch"][metric][:, 0].mean())
                row["difference_low"], row["difference_high"] = percentile_interval(spread, patients, 0.95)
                row["p"] = two_sided_p(spread, patients)
            rows.append(row)
    return rows


def _scores(scorers: list[Scorer], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return (seeds, R) values of every metric."""
    found = [scorer.score(weights) for scorer in scorers]
    return {
        metric: np.stack([next(v for (name, _), v in one.items() if name == metric) for one in found])
        for metric in METRICS
    }


def labels_to_match(rows: list[dict[str, Any]], row: dict[str, Any]) -> str:
    """Return how many labels the scratch network needs for the value of a row, by log-linear interpolation."""
    same = [
        r
        for r in rows
        if r["data"] == row["data"] and r["metric"] == row["metric"] and r["init"] == "scratch"
    ]
    curve = sorted((r["labels"], r["value"]) for r in same)
    best = np.maximum.accumulate([value for _, value in curve])
    if row["value"] > best[-1]:
        return f"> {curve[-1][0]}"
    if row["value"] <= best[0]:
        return f"≤ {curve[0][0]}"
    return f"{2 ** np.interp(row['value'], best, np.log2([labels for labels, _ in curve])):.0f}"


def _markdown(rows: list[dict[str, Any]]) -> Iterable[str]:
    for where in SETS.values():
        for metric, title in METRICS.items():
            part = [row for row in rows if row["data"] == where and row["metric"] == metric]
            first = part[0]
            yield f"\n### {where}: {title} ({first['n']} images, {first['patients']} patients)\n"
            yield "| labels | start | mean [95 % over patients] | spread of seeds | minus scratch | p | to match |"
            yield "|---|---|---|---|---|---|---|"
            for row in part:
                gain = match = p = ""
                if row["init"] != "scratch":
                    low, high = row["difference_low"], row["difference_high"]
                    gain = f"{row['difference']:+.3f} [{low:+.3f} to {high:+.3f}]"
                    p, match = f"{row['p']:.2g}", labels_to_match(rows, row)
                yield (
                    f"| {row['labels']} | {row['init']} | {row['value']:.3f} [{row['low']:.3f}–{row['high']:.3f}] | "
                    f"{row['spread']:.3f} | {gain} | {p} | {match} |"
                )
