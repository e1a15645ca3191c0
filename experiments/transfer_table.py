"""The tables of docs/results/transfer.md, from the results of the study: run it after that was made anew.

python experiments/transfer_table.py docs/results/transfer
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETS = ("ham10000", "busi", "kermany", "shenzhen")
LABELS = (25, 100, "all")
ARMS = {
    ("scratch", "linear"): "random weights, frozen",
    ("imagenet", "linear"): "ImageNet weights, frozen",
    ("scratch", "full"): "from scratch, fine-tuned",
    ("imagenet", "full"): "from ImageNet, fine-tuned",
}
SECOND = {
    "ham10000": "balanced_accuracy",
    "busi": "balanced_accuracy",
    "kermany": "accuracy",
    "shenzhen": "accuracy",
}

Row = dict[str, Any]


def main(folder: Path) -> None:
    """Print the tables."""
    results = json.loads((folder / "results.json").read_text())
    costs = [
        {
            **row,
            "task": name.split("/")[0],
            "init": name.split("/")[1].split("@")[0],
            "regime": name.split("@")[1],
        }
        for name, row in json.loads((folder / "costs.json").read_text()).items()
    ]
    for name in SETS:
        for metric in ("auroc", SECOND[name]):
            print(f"\n### {name}, {metric}\n")
            print(*_values(results, name, metric), sep="\n")
    print("\n### Weights of ImageNet, minus random ones\n")
    for metric in ("auroc", "accuracy", "balanced_accuracy"):
        print(f"\n{metric}\n", *_differences(results["efficiency"], "init", "imagenet", metric), sep="\n")
    print("\n### Fine-tuned, minus frozen\n")
    print(*_differences(results["regime_gains"], "regime", "full", "auroc"), sep="\n")
    print("\n### Families\n")
    print(*_families(results, costs), sep="\n")
    print("\n### Cost\n")
    print(*_costs(costs), sep="\n")


def _values(results: Row, name: str, metric: str) -> Iterator[str]:
    yield f"| network | {' | '.join(f'{n} labels' for n in LABELS)} |"
    yield f"|---|{'---|' * len(LABELS)}"
    rows = {
        (row["init"], row["regime"], row["labels"]): row
        for row in results["efficiency"]
        if row["task"] == name and row["metric"] == metric and row["evaluation"] == "test"
    }
    for (init, regime), title in ARMS.items():
        yield f"| {title} | {' | '.join(_value(rows.get((init, regime, n))) for n in LABELS)} |"


def _differences(table: list[Row], what: str, which: str, metric: str) -> Iterator[str]:
    yield f"| set, network | {' | '.join(f'{n} labels' for n in LABELS)} |"
    yield f"|---|{'---|' * len(LABELS)}"
    for name in SETS:
        for other in ("scratch", "imagenet") if what == "regime" else ("linear", "full"):
            found = {
                row["labels"]: row
                for row in table
                if row["task"] == name and row["metric"] == metric and row["evaluation"] == "test"
                and row[what] == which and row["init" if what == "regime" else "regime"] == other
            }  # fmt: skip
            if found:
                yield f"| {name}, {other} | {' | '.join(_difference(found.get(n)) for n in LABELS)} |"


def _families(results: Row, costs: list[Row]) -> Iterator[str]:
    yield "| encoder | busi | shenzhen | million weights | images/s, encoding | memory, GB |"
    yield "|---|---|---|---|---|---|"
    cost = {row["init"]: row for row in costs if row["task"] == "busi" and row["regime"] == "linear"}
    rows = {
        (row["task"], row["init"]): row
        for row in results["efficiency"]
        if row["labels"] == "all" and row["regime"] == "linear" and row["metric"] == "auroc"
    }
    for init, paid in cost.items():
        cells = [_value(rows.get((name, init))) for name in ("busi", "shenzhen")]
        numbers = [
            f"{paid['encoder_parameters'] / 1e6:.1f}", f"{paid['encoded_per_second']:.0f}",
            f"{paid['peak_memory_mb'] / 1e3:.1f}",
        ]  # fmt: skip
        yield f"| {init} | {' | '.join(cells + numbers)} |"


def _costs(costs: list[Row]) -> Iterator[str]:
    yield "| set | network | weights trained | images/s | memory, GB | seconds a training |"
    yield "|---|---|---|---|---|---|"
    for row in costs:
        if (row["init"], row["regime"]) not in ARMS:
            continue
        rate = row["images_per_second"] or row["encoded_per_second"]
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        yield (
            f"| {row['task']} | {ARMS[row['init'], row['regime']]} | {row['trained_parameters']:,} | {rate:.0f} | "
            f"{row['peak_memory_mb'] / 1e3:.1f} | {seconds} |"
        )


def _value(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _difference(row: Row | None) -> str:
    if row is None or row.get("difference") is None:
        return "–"
    found = f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    return f"{found}{'*' if row.get('p_holm', 1) < 0.05 else ''}".replace("-", "−")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
