"""When not to rely on a run: its calibration, its conformal sets, and what it was trained on.

All three are made after the training, from images that were not trained on, and stay with the run; ``predict``, the
server and the report show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior import keyed
from scanprior.api.conformal_sets import ConformalSets
from scanprior.api.prediction_tables import certain, validation_predictions
from scanprior.api.predictor import Predictor
from scanprior.api.reference import Reference, thumbnails, unit
from scanprior.api.settings import TrustConfig
from scanprior.api.sources import Images
from scanprior.evaluation import OutlierScore, apply_temperature, fit_temperature, truth_matrix
from scanprior.evaluation.combination import log_loss
from scanprior.run import Run
from scanprior.tasks.heads import Kind

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

LEAST = 20
"""Labelled validation images below which neither temperature nor sets are fitted."""


@dataclass(frozen=True)
class Trust:
    """What a run knows of its own limits.

    Attributes:
        classes, kind: of the run.
        temperature: by which the log-odds are divided for calibrated probabilities; None = not known.
        sets: the conformal sets; None = not known.
        reference: the training images that are kept; None = none are.
        threshold: score above which an image is called an outlier.
    """

    classes: Sequence[str]
    kind: Kind
    temperature: float | None
    sets: ConformalSets | None
    reference: Reference | None
    threshold: float

    @classmethod
    def open(cls, run: Run) -> Trust:
        """Read what a run holds; runs of before hold nothing, and say nothing."""
        kept = run.card.get("trust") or {}
        task = run.card["task"]
        temperature, sets, outliers = (kept.get(name) for name in ("temperature", "sets", "outliers"))
        return cls(
            task["classes"],
            task["kind"],
            None if temperature is None else float(temperature["value"]),
            None if sets is None else ConformalSets.of_card(sets),
            None if outliers is None else Reference.open(run),
            float("inf") if outliers is None else float(outliers["threshold"] or np.inf),
        )

    @property
    def names(self) -> list[str]:
        """The columns that ``columns`` adds to a table of predictions."""
        calibrated = [f"calibrated:{name}" for name in self.classes] if self.temperature else []
        sets = ["conformal_set"] if self.sets is not None else []
        outliers = ["outlier_score", "outlier_p", "outlier"] if self.reference is not None else []
        return [*calibrated, *sets, *outliers]

    def columns(self, probabilities: Floats, descriptors: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return what there is to say of B images beside their probabilities.

        Args:
            probabilities: (B, classes).
            descriptors: (B, E), see ``Answers``.

        Returns:
            ``calibrated:CLASS`` probabilities; ``conformal_set``, see ``ConformalSets.named``; ``outlier_score``, see
            ``OutlierScore.scores``, ``outlier_p``, how rare such a score is among validation images, and ``outlier``,
            whether it is above the run's threshold.
        """
        made: dict[str, NDArray[Any]] = {}
        if self.temperature is not None:
            calibrated = apply_temperature(probabilities, self.temperature, self.kind)
            made |= {f"calibrated:{name}": calibrated[:, n] for n, name in enumerate(self.classes)}
        if self.sets is not None:
            made["conformal_set"] = np.asarray(self.sets.named(probabilities, self.classes), dtype=object)
        if self.reference is not None:
            scores = self.reference.outliers.scores(descriptors)
            made["outlier_score"] = scores
            made["outlier_p"] = self.reference.outliers.p_values(scores)
            made["outlier"] = scores > self.threshold
        return made


def assess(run: Run, images: Images, model: Predictor, train: Rows, config: TrustConfig) -> dict[str, Any]:
    """Return what a card says of a classifier's limits, and write what it keeps of its training images.

    Args:
        run: with ``predictions.parquet`` of its validation images.
        images: its images.
        model: its classifier, or the members of an ensemble.
        train: the rows of the store it was trained on.
        config: what is wanted.
    """
    section: dict[str, Any] = {"notes": []}
    section |= _fitted(run, model, config, section["notes"])
    val = images.rows("val")
    section["outliers"] = _keep_reference(run, images, model, train, val, config, section["notes"])
    return section


def _fitted(run: Run, model: Predictor, config: TrustConfig, notes: list[str]) -> dict[str, Any]:
    """Fit temperature and conformal sets to the predictions of validation images."""
    table = certain(validation_predictions(run, model), model)
    truth = truth_matrix(table, model.classes, model.kind)
    found = table[[f"prob:{name}" for name in model.classes]].to_numpy(np.float64)
    known = np.flatnonzero(~np.isnan(truth).all(axis=1))
    truth, found = truth[known], found[known]
    if len(truth) < LEAST:
        notes.append(
            f"{len(truth)} labelled validation images: too few for a calibration or conformal sets ({LEAST} are needed)"
        )
        return {"temperature": None, "sets": None}
    value = fit_temperature(found, truth, model.kind)
    losses = (log_loss(p, truth, model.kind) for p in (found, apply_temperature(found, value, model.kind)))
    before, after = (round(loss, 6) for loss in losses)
    patients = table["patient"][known] if table["patient"].notna().all() else None
    sets = ConformalSets.fit(
        found,
        truth,
        model.kind,
        config.coverage,
        config.sets,
        None if patients is None else patients.to_numpy(),
    )
    notes += sets.reasons(model.classes)
    return {
        "temperature": {"value": value, "images": len(truth), "log_loss": [before, after]},
        "sets": sets.card(),
    }


def _keep_reference(
    run: Run,
    images: Images,
    model: Predictor,
    train: Rows,
    val: Rows,
    config: TrustConfig,
    notes: list[str],
) -> dict[str, Any] | None:
    """Keep the features of some training images, and what is far from them."""
    rows = chosen_rows(train, config.reference_images)
    if len(rows) < 8:
        notes.append(f"{len(rows)} training images are kept: too few to tell outliers (8 are needed)")
        return None
    trained, looked = (_looked_at(images, model, part) for part in (rows, val))
    score = OutlierScore.fit(trained[1], looked[1])
    columns = ["label"] if model.kind == "multiclass" else list(model.classes)
    frame = images.frame.iloc[rows]
    table = pd.DataFrame({name: frame[name].to_numpy() for name in columns if name in frame})
    table["thumbnail"] = thumbnails(images.store.read, rows) if config.thumbnails else None
    Reference(score, unit(trained[0]), table).save(run.path)
    threshold = score.threshold(config.false_alarms)
    if not np.isfinite(threshold):
        notes.append(
            f"{len(val)} validation images: too few for {config.false_alarms:.0%} false alarms, so no image is called "
            f"an outlier ({int(np.ceil(1 / config.false_alarms)) - 1} are needed)"
        )
    return {
        "score": "mahalanobis",
        "false_alarms": config.false_alarms,
        "threshold": threshold if np.isfinite(threshold) else None,
        "reference_images": len(rows),
        "validation_images": len(val),
    }


def chosen_rows(train: Rows, most: int) -> Rows:
    """Return the rows whose features are kept: all, or as many as are wanted, drawn the same way every time."""
    if len(train) <= most:
        return train
    draws = keyed.uniform(keyed.key(0, "reference images"), train, 1)[:, 0]
    return np.sort(train[np.argsort(draws, kind="stable")[:most]])


def _looked_at(
    images: Images, model: Predictor, rows: Rows
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return pooled features and descriptors of stored images."""
    pooled, descriptors = [], []
    for start in range(0, len(rows), 64):
        found = model.answers(model.stored(images, rows[start : start + 64]))
        pooled.append(found.pooled)
        descriptors.append(found.descriptors)
    if not pooled:
        return np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)
    return np.concatenate(pooled), np.concatenate(descriptors)
