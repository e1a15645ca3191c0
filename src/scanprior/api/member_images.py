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
from scanprior.reporting.formatting import plural
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

    def trained_patients(self, frame: pd.DataFrame) -> list[str]:
        """Return the patients of some images who have training images of this run, sorted.

        A patient is known by source and name, and by what this run calls the patient of the same pixels.
        """
        if "patient" not in self.table or "source" not in self.table:
            return []
        own = pd.DataFrame({"who": _patients(self.table), "pixels": self.table["pixels"]})
        trained = set(own.loc[(self.table["used"] == "train") & own["who"].notna(), "who"])
        asked = pd.DataFrame({"pixels": frame["pixels"], "here": _patients(frame)}).drop_duplicates()
        asked = asked.merge(own.drop_duplicates(), on="pixels", how="left")
        found = asked[asked["here"].isin(trained) | asked["who"].isin(trained)]
        named = found["here"].where(found["here"].notna(), found["who"])
        return sorted({str(name) for _, name in named})


def _patients(table: pd.DataFrame) -> pd.Series:
    """Return source and name of every image's patient, None where it is unknown."""
    if "patient" not in table:
        return pd.Series(None, index=table.index, dtype=object)
    pairs = zip(table["source"], table["patient"], strict=True)
    return pd.Series(
        [(source, name) if pd.notna(name) else None for source, name in pairs], table.index, dtype=object
    )


def common_rows(
    images: Images, histories: Sequence[History], method: str, reporter: Reporter
) -> tuple[Rows, Rows]:
    """Return the rows that all members validated on, and the test rows.

    Raises:
        DataError: a member was trained on an image to evaluate on, or on another one of its patient though the
            first member was not; or a method lacks validation images.
    """
    val, test = images.rows("val"), images.rows("test")
    pixels = images.frame["pixels"]
    name, evaluated = ("test", test) if len(test) else ("validation", val)
    _refuse_trained_on(images, histories, evaluated, name)
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


def _refuse_trained_on(images: Images, histories: Sequence[History], evaluated: Rows, name: str) -> None:
    """Refuse members that know the images to evaluate on, or their patients.

    Patients whom the first member knows too are in both parts by its own division: that is warned of.
    """
    frame, first = images.frame.iloc[evaluated], histories[0]
    allowed = set(first.trained_patients(frame))
    for history in histories:
        seen = frame.loc[frame["pixels"].isin(history.pixels("train")), "image"].tolist()
        if seen:
            raise DataError(
                f"{history.path}: was trained on {len(seen)} of the {len(frame)} {name} images of {first.path} "
                f"({_listed(seen)}); combine runs of the same division of the data"
            )
        known = [patient for patient in history.trained_patients(frame) if patient not in allowed]
        if known:
            raise DataError(
                f"{history.path}: was trained on other images of {plural(len(known), 'patient')} of the {name} "
                f"images of {first.path} ({_listed(known)}); combine runs of the same division of the data"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(str, names[:LISTED])) + more


def notes_about(images: Images, histories: Sequence[History], evaluated: Rows) -> list[str]:
    """Return what makes the evaluation a little too good: patients and selected images of members in it."""
    said, frame = [], images.frame.iloc[evaluated]
    for history in histories:
        patients = history.trained_patients(frame)
        if patients:
            said.append(
                f"{plural(len(patients), 'patient')} of the evaluated images ({_listed(patients)}) have other images "
                f"among the training images of {history.path}, as the division of the data is not by patient"
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
