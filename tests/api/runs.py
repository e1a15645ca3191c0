"""What the tests of whole commands share: sources made of the phantoms, and what a run says it used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scanprior.run import Run


def copied(phantoms: Path, to: Path, change: Callable[[pd.DataFrame], pd.DataFrame] | None = None) -> Path:
    """Copy the images, and the label table with a change."""
    shutil.copytree(phantoms / "images", to / "images")
    table = pd.read_csv(phantoms / "labels.csv").drop(columns="mask")
    (table if change is None else change(table)).to_csv(to / "labels.csv", index=False)
    return to


def used(run: Run, what: str) -> set[str]:
    table = pd.read_parquet(run.path / "data.parquet")
    return set(table.loc[table["used"] == what, "image"])


def by_image(table: pd.DataFrame) -> pd.DataFrame:
    return (
        table.assign(image=table["image"].map(lambda name: Path(name).name)).set_index("image").sort_index()
    )
