"""Where the evaluations of a run are kept, whatever was evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scanprior.engine import Reporter
from scanprior.errors import DataError
from scanprior.files import replacing, write_text
from scanprior.run import Run

OWN = ("test", "validation", "val", "train")
"""Names that evaluations of a run's own images have."""


@dataclass(frozen=True)
class Origin:
    """Whose images an evaluation is of.

    Attributes:
        data: the source; None = the run's own.
        label_map: labels that were renamed.
        training_images: how many of the images the run was trained on.
    """

    data: str | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    training_images: int = 0


def evaluation_name(data: str | Path, split: str) -> str:
    """Return the name that an evaluation of other data has by itself: that of the file or folder, and the split."""
    path = Path(data)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem) or "data"
    stem = f"{path.resolve().parent.name}-{stem}" if stem in OWN else stem
    return stem if split == "all" else f"{stem}-{split}"


def check_name(run: Run, name: str, origin: Origin, split: str) -> None:
    """Refuse a name that would leave the folder of the run, or replace an evaluation of other images.

    Raises:
        DataError: the name and what to do.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(
            f"--name {name}: letters, digits, dots, dashes and underscores make a name; use another"
        )
    if origin.data is not None and name in OWN:
        raise DataError(f"--name {name}: the run's own evaluation has this name; use another")
    file = run.path / "evaluations" / f"{name}.json"
    if not file.exists():
        return
    there = json.loads(file.read_text())
    before = there.get("data"), there.get("label_map") or {}, there.get("split") or "all"
    now = origin.data, dict(origin.label_map), split
    if before != now:
        of = before[0] or "the run's own images"
        raise DataError(
            f"{file}: holds an evaluation of {of}, split {before[2]}, labels renamed: {before[1] or 'none'};"
            " give this one another name with --name"
        )


def save_evaluation(
    run: Run, name: str, table: pd.DataFrame, result: dict[str, Any], origin: Origin, reporter: Reporter
) -> dict[str, Any]:
    """Write ``evaluations/NAME.json`` and ``.parquet``, show the evaluation, and return it as written.

    Args:
        run: what was evaluated.
        name: of the evaluation.
        table: one row an image.
        result: the evaluation of it; gets the seed of the run.
        origin: whose images they are; kept with the result.
        reporter: shows it.
    """
    result["seed"] = run.card.get("seed", result.get("seed"))
    result["data"], result["label_map"] = origin.data, dict(origin.label_map)
    result["training_images"] = origin.training_images
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    with replacing(folder / f"{name}.parquet") as part:
        table.to_parquet(part, index=False)
    write_text(folder / f"{name}.json", json.dumps(result, indent=1))
    reporter.evaluation(result)
    return result
