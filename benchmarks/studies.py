"""What a study costs beyond its runs: its time times its workers, over the sum of what the steps took.

A study of small trainings on phantoms, one thread a worker; what is not in the steps is reading the recipe,
drawing and preparing the data, starting the workers, waiting at the end for the last of them, and the
results with their report.
"""

from __future__ import annotations

import json
import os
from typing import Any

import yaml

from benchmarks.measure import Row, Settings, Side, seconds
from scanprior.studies import study


def recipe(settings: Settings) -> dict[str, Any]:
    """Return the study."""
    return {
        "name": "bench",
        "data": {
            "ours": {
                "phantom": {"patients": settings.of(400, 30), "size": 64, "sites": ["a"], "seed": 1},
                "settings": {"label_columns": ["label"]},
            }
        },
        "settings": {
            "data": {"size": 64, "store_size": 64},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 4},
            "engine": {"steps": settings.of(60, 2), "batch_size": 32},
            "evaluation": {"resamples": 200},
        },
        "inits": {"scratch": {}, "slow": {"settings": {"engine": {"lr": 1e-4}}}},
        "tasks": {"screening": {"data": "ours", "labels": [20, "all"], "metrics": ["auroc"]}},
        "seeds": list(range(settings.of(6, 1))),
        "resamples": 1000,
    }


def run(settings: Settings) -> list[Row]:
    """Measure one study; it is long enough to hold many steps."""
    file = settings.folder / "bench.yaml"
    file.write_text(yaml.safe_dump(recipe(settings)))
    out, workers = settings.folder / "study", min(2, os.cpu_count() or 1)
    taken = seconds(lambda: study(file, out=out, workers=workers))
    steps = [json.loads(line)["seconds"] for line in (out / "steps.jsonl").read_text().splitlines()]
    alone = sum(steps) / workers
    return [
        Row(
            f"study of {len(steps)} runs, {workers} workers",
            taken / alone,
            target=1.15,
            sense="<=",
            ours=Side("the study", "s", [taken]),
            reference=Side("its steps / workers", "s", [alone]),
            note="wall-clock, one thread a worker, one study",
        )
    ]
