"""Which images the members of an ensemble have seen, and on which the ensemble can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.sources import Images
from scanprior.engine import Reporter
from scanprior.errors import DataError, RunError
from scanprior.evaluation import FITTED_METHODS
from scanprior.run import Run

Rows = NDArray[np.int64]

LISTED = 10
"""Images that an error names; the rest are counted."""


@dataclass(frozen=True)
class History:
    """Which images a run was trained, selected and tested on, and what an error calls it."""

    path: Path
    table: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> History:
        """Read it.

        Raises:
            RunError: the run does not say.
        """
        file = run.path / "data.parquet"
        if not file.exists():
            raise RunError(
                f"{run.path}: does not say which images it was trained on (it has no data.parquet)"
            )
        return cls(run.path, pd.read_parquet(file))

    def pixels(self, use: str) -> set[str]:
        """Return the digests of the images of a use: train, val or test."""
        return set(self.table.loc[self.table["used"] == use, "pixels"])

    def patients(self, use: str) -> set[tuple[str, str]]:
        """Return source and name of the patients of a use, where they are known."""
        if "patient" not in self.table or "source" not in self.table:
            return set()
        rows = self.table[(self.table["used"] == use) & self.table["patient"].notna()]
        return set(zip(rows["source"], rows["patient"], strict=True))


def common_rows(
    images: Images, histories: Sequence[History], method: str, reporter: Reporter
) -> tuple[Rows, Rows]:
    """Return the rows that all members validated on, and the test rows.

    Raises:
        DataError: a member was trained on an image to evaluate on, or a method lacks validation images.
    """
    val, test = images.rows("val"), images.rows("test")
    pixels = images.frame["pixels"]
    name, evaluated = ("test", test) if len(test) else ("validation", val)
    for history in histories:
        seen = evaluated[pixels.iloc[evaluated].isin(history.pixels("train")).to_numpy()]
        if len(seen):
            named = ", ".join(images.frame["image"].iloc[seen[:LISTED]])
            more = f" and {len(seen) - LISTED} more" if len(seen) > LISTED else ""
            raise DataError(
                f"{history.path}: was trained on {len(seen)} of the {len(evaluated)} {name} images of "
                f"{histories[0].path} ({named}{more}); combine runs of the same division of the data"
            )
    for history in histories:
        val = val[pixels.iloc[val].isin(history.pixels("val") - history.pixels("train")).to_numpy()]
    for text in notes_about(images, histories, evaluated):
        reporter.note(f"warning: {text}")
    if not len(val):
        if method in FITTED_METHODS:
            raise DataError(
                f"--method {method}: no validation image is common to the members, and it is fitted on them; "
                "use --method mean or geometric"
            )
        reporter.note(
            "no validation image is common to the members: thresholds are 0.5, no member is called best"
        )
    return val, test


def notes_about(images: Images, histories: Sequence[History], evaluated: Rows) -> list[str]:
    """Return what makes the evaluation a little too good: patients and selected images of members in it."""
    said, frame = [], images.frame.iloc[evaluated]
    for history in histories:
        if "patient" in frame:
            pairs = list(zip(frame["source"], frame["patient"], strict=True))
            known = history.patients("train")
            patients = {pair for pair in pairs if pd.notna(pair[1]) and pair in known}
            if patients:
                said.append(
                    "patients of the evaluated images who have other images among the training images of "
                    f"{history.path}: {len(patients)}"
                )
        chosen = int(frame["pixels"].isin(history.pixels("val")).sum())
        if chosen and not (frame["split"] == "val").any():
            said.append(f"{history.path} was selected on {chosen} of the evaluated images")
    return said


def used_together(histories: Sequence[History]) -> pd.DataFrame:
    """Return what all members together used each image for: trained on by one counts as trained on."""
    together = pd.concat([history.table for history in histories], ignore_index=True)
    rank = together["used"].map({"train": 0, "val": 1, "test": 2}).fillna(3)
    order = together.assign(rank=rank).sort_values("rank", kind="stable")
    keys = [name for name in ("source", "image", "pixels") if name in order]
    return order.drop_duplicates(keys).sort_index().drop(columns="rank").reset_index(drop=True)
