"""Tables of predictions of stored images: probabilities beside labels, one row an image."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.outlier_detection import OutlierDetector
from scanprior.api.predictor import Predictor
from scanprior.api.settings import EvaluationConfig
from scanprior.api.sources import Images, side_columns
from scanprior.data.split import NEAR_DUPLICATES
from scanprior.evaluation import choose_thresholds, member_column, member_probabilities
from scanprior.run import Run
from scanprior.tasks.heads import Kind


class Labelled(Protocol):
    """Whoever has classes."""

    classes: list[str]
    kind: Kind
    ordered: bool


def predictions_table(
    images: Images,
    rows: NDArray[np.int64],
    predictor: Predictor,
    batch_size: int,
    detector: OutlierDetector | None = None,
) -> pd.DataFrame:
    """Predict stored images; one row each, with labels, side columns and ``prob:`` columns.

    Of an ensemble there are also the columns ``member:NUMBER:CLASS``. With a detector there are its columns, from the
    same pass of the encoders; not where kept features are read, of which there is too little to tell outliers.
    """
    frame = images.frame.iloc[rows].reset_index(drop=True)
    members, unlike = _predicted(images, rows, predictor, batch_size, detector)
    found = predictor.combined(members)
    table = pd.DataFrame({"image": frame["image"]})
    table["patient"] = frame.get("patient")
    if "source" in frame and frame["source"].nunique() > 1 and table["patient"].notna().any():
        table["patient"] = frame["source"] + "/" + frame["patient"]  # one without a name stays without
    if NEAR_DUPLICATES in frame:
        table[NEAR_DUPLICATES] = frame[NEAR_DUPLICATES]
    findings = [] if predictor.kind == "multiclass" else predictor.classes
    for name in side_columns(images):
        table[name] = frame[name]
    table["split"] = frame["split"]
    if predictor.kind == "multiclass":
        table["label"] = frame.get("label")
    for name in findings:
        table[f"label:{name}"] = frame.get(name, np.nan)
    for number, name in enumerate(predictor.classes):
        table[f"prob:{name}"] = found[:, number]
    if predictor.combination is not None:
        for who, probabilities in enumerate(members):
            for number, name in enumerate(predictor.classes):
                table[member_column(who, name)] = probabilities[:, number]
    for column, values in unlike.items():
        table[str(column)] = (
            values.convert_dtypes() if values.dtype == bool else values
        )  # a missing one is no false
    table["error"] = None
    return table


def _predicted(
    images: Images,
    rows: NDArray[np.int64],
    predictor: Predictor,
    batch_size: int,
    detector: OutlierDetector | None,
) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Return the probabilities (K, N, classes) of the members, and what a detector says of the N images."""
    if detector is None or predictor.reads_features or not len(rows):
        return predictor.of_stored(images, rows, batch_size), pd.DataFrame()
    members, unlike = [], []
    for found in predictor.stored_answers(images, rows, batch_size):
        members.append(found.members)
        unlike.append(pd.DataFrame(detector.columns(found.descriptors)))
    return np.concatenate(members, axis=1), pd.concat(unlike, ignore_index=True)


def recombined(table: pd.DataFrame, predictor: Predictor) -> pd.DataFrame:
    """Return a table of an ensemble's predictions with ``prob:`` columns made anew from those of its members."""
    members = member_probabilities(table, len(predictor.members), predictor.classes)
    found = predictor.combined(members)
    return table.assign(**{f"prob:{name}": found[:, n] for n, name in enumerate(predictor.classes)})


def with_errors(table: pd.DataFrame, images: Images, split: str | None = None) -> pd.DataFrame:
    """Add a row with the reason for every image (of a split) that could not be read."""
    rows = [
        {"image": gone["image"], "split": gone.get("split"), "error": gone["reason"]}
        for gone in images.store.audit["left_out"]
        if split is None or gone.get("split") in (("val", "test") if split == "held-out" else (split,))
    ]
    if not rows:
        return table
    return pd.concat([table, pd.DataFrame(rows).reindex(columns=table.columns)], ignore_index=True)


def labelled_only(table: pd.DataFrame, model: Labelled) -> pd.DataFrame:
    """Keep the rows with at least one label of the model."""
    if model.kind == "multiclass":
        return table[table["label"].isin(model.classes)].reset_index(drop=True)
    known = table[[f"label:{name}" for name in model.classes]]
    return table[(known.notna() & (known != -1)).any(axis=1)].reset_index(drop=True)


def thresholds_from(val: pd.DataFrame, model: Labelled, config: EvaluationConfig) -> dict[str, Any] | None:
    """Choose operating thresholds on labelled validation predictions; None where there are none."""
    if not len(val):
        return None
    return choose_thresholds(
        certain(val, model), rule=config.threshold, classes=model.classes, task=model.kind,
        positive_class=config.positive_class,
    )  # fmt: skip


def certain(table: pd.DataFrame, model: Labelled) -> pd.DataFrame:
    """Set uncertain labels (-1) to missing: they take no part in an evaluation."""
    if model.kind == "multiclass":
        return table
    columns = {f"label:{name}": table[f"label:{name}"].replace(-1, np.nan) for name in model.classes}
    return table.assign(**columns)


def validation_predictions(run: Run, model: Labelled) -> pd.DataFrame:
    """Return what a run predicted for its labelled validation images."""
    table = pd.read_parquet(run.path / "predictions.parquet")
    return labelled_only(table[(table["split"] == "val") & table["error"].isna()], model)
