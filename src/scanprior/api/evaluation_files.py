"""Where the evaluations of a run are kept, whatever was evaluated."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from scanprior.engine import Reporter
from scanprior.engine.checkpoint import write_text
from scanprior.run import Run


def save_evaluation(
    run: Run, name: str, table: pd.DataFrame, result: dict[str, Any], training_images: int, reporter: Reporter
) -> dict[str, Any]:
    """Write ``evaluations/NAME.json`` and ``.parquet``, show the evaluation, and return it as written.

    Args:
        run: what was evaluated.
        name: of the evaluation.
        table: one row an image.
        result: the evaluation of it; gets the seed of the run.
        training_images: how many of the images the run was trained on; kept with the result.
        reporter: shows it.
    """
    result["seed"] = run.card.get("seed", result.get("seed"))
    result["training_images"] = training_images
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / f"{name}.parquet", index=False)
    write_text(folder / f"{name}.json", json.dumps(result, indent=1))
    reporter.evaluation(result)
    return result
