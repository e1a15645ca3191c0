"""The tables of docs/results/entropy-mae.md, from the results of the studies: run it after one was made anew.

python experiments/entropy_mae_table.py docs/results/entropy-mae
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETS = {"busi": "busi", "ham10000": "ham10000", "kermany": "kermany", "covid_cc": "covid_cc"}
METRICS = {"auroc": "AUROC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
NETWORKS = {
    "scratch": "ConvNeXt-Atto from scratch",
    "random": "pretrained here, masks at random",
    "guided": "pretrained here, masks guided by entropy",
    "guided_long": "the same, fine-tuned twice as long",
    "imagenet": "EfficientNet-Lite0 from ImageNet",
    "imagenet_long": "the same, fine-tuned twice as long",
    "twin_guided": "two seeds of guided, mean",
    "twin_imagenet": "two seeds of ImageNet, mean",
    "imagenet_scratch": "ImageNet and scratch, mean",
    "imagenet_random": "ImageNet and random, mean",
    "imagenet_guided": "ImageNet and guided, mean (the published pair)",
    "geometric": "ImageNet and guided, geometric mean",
    "calibrated": "ImageNet and guided, after a temperature each",
    "weighted": "ImageNet and guided, weights of validation",
}
QUESTIONS = (
    ("pretraining here", "guided", "scratch"),
    ("guided masks", "guided", "random"),
    ("guided masks, in the pair", "imagenet_guided", "imagenet_random"),
    ("the pair, from its best member", "imagenet_guided", "best member"),
    ("the pair, from two seeds of ImageNet", "imagenet_guided", "twin_imagenet"),
    ("two seeds of ImageNet, from the better of them", "twin_imagenet", "best member"),
)

Row = dict[str, Any]


def main(folder: Path) -> None:
    """Print the tables."""
    found = {
        name: json.loads((folder / name / "results.json").read_text())
        for name in SETS
        if (folder / name / "results.json").is_file()
    }
    for name, results in found.items():
        print(f"\n### {SETS[name]}\n")
        print(*_table(results), sep="\n")
    for metric, title in METRICS.items():
        print(f"\n### Differences: {title}\n")
        print(*_differences(found, metric), sep="\n")


def _table(results: Row) -> Iterator[str]:
    yield f"| network | {' | '.join(METRICS.values())} |"
    yield f"|---|{'---|' * len(METRICS)}"
    rows = {(row["init"], row["metric"]): row for row in results["efficiency"] if _overall(row)}
    for init, title in NETWORKS.items():
        cells = [_value(rows.get((init, metric))) for metric in METRICS]
        if any(cell != "–" for cell in cells):
            yield f"| {title} | {' | '.join(cells)} |"


def _differences(found: dict[str, Row], metric: str) -> Iterator[str]:
    yield f"| gain of | {' | '.join(found)} |"
    yield f"|---|{'---|' * len(found)}"
    for title, first, second in QUESTIONS:
        cells = [_difference(results, metric, first, second) for results in found.values()]
        yield f"| {title} | {' | '.join(cells)} |"


def _overall(row: Row) -> bool:
    return row["evaluation"] == "test" and row["labels"] == "all"


def _value(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _difference(results: Row, metric: str, first: str, second: str) -> str:
    """Return a difference of two arms, wherever the results hold it."""
    for row in (*results["contrasts"], *results["ensembles"], *results["efficiency"]):
        against = row.get("against", results["baseline"])
        if not _overall(row) or row["metric"] != metric or (row["init"], against) != (first, second):
            continue
        if row.get("difference") is not None:
            low, high = row["difference_low"], row["difference_high"]
            return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    return "–"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
