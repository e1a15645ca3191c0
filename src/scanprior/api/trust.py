"""When not to rely on a classifier: its calibration, its conformal sets, and what it was trained on.

All three are made after the training, from images that were not trained on, and stay with the run; ``predict``, the
server and the report show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanprior.api.outlier_detection import COLUMNS, OutlierDetector, keep_reference
from scanprior.api.prediction_tables import certain, validation_predictions
from scanprior.api.predictor import Predictor
from scanprior.api.settings import TrustConfig
from scanprior.api.sources import Images
from scanprior.evaluation import apply_temperature, fit_temperature, truth_matrix
from scanprior.evaluation.combination import log_loss
from scanprior.evaluation.conformal_sets import ConformalSets
from scanprior.evaluation.labels import groups_of
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
        detector: of images that are unlike the training images; None = nothing is kept of these.
    """

    classes: Sequence[str]
    kind: Kind
    temperature: float | None
    sets: ConformalSets | None
    detector: OutlierDetector | None

    @classmethod
    def open(cls, run: Run) -> Trust:
        """Read what a run holds; runs of before hold nothing, and say nothing."""
        kept = run.card.get("trust") or {}
        task = run.card["task"]
        temperature, sets = kept.get("temperature"), kept.get("sets")
        return cls(
            task["classes"],
            task["kind"],
            None if temperature is None else float(temperature["value"]),
            None if sets is None else ConformalSets.of_card(sets),
            OutlierDetector.open(run),
        )

    @property
    def names(self) -> list[str]:
        """The columns that ``columns`` adds to a table of predictions."""
        calibrated = [f"calibrated:{name}" for name in self.classes] if self.temperature else []
        sets = ["conformal_set"] if self.sets is not None else []
        outliers = COLUMNS if self.detector is not None else ()
        return [*calibrated, *sets, *outliers]

    def columns(self, probabilities: Floats, descriptors: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return what there is to say of B images beside their probabilities.

        Args:
            probabilities: (B, classes).
            descriptors: (B, E), see ``Answers``.

        Returns:
            ``calibrated:CLASS`` probabilities; ``conformal_set``, see ``ConformalSets.named``; and what
            ``OutlierDetector.columns`` says.
        """
        made: dict[str, NDArray[Any]] = {}
        if self.temperature is not None:
            calibrated = apply_temperature(probabilities, self.temperature, self.kind)
            made |= {f"calibrated:{name}": calibrated[:, n] for n, name in enumerate(self.classes)}
        if self.sets is not None:
            made["conformal_set"] = np.asarray(self.sets.named(probabilities, self.classes), dtype=object)
        if self.detector is not None:
            made |= self.detector.columns(descriptors)
        return made


def remember(
    run: Run, images: Images, model: Predictor, train: Rows, config: TrustConfig
) -> OutlierDetector | None:
    """Begin the section ``trust`` of a classifier's card: write what it keeps of its training images.

    Args:
        run: whose it is.
        images: its images.
        model: its classifier, or the members of an ensemble.
        train: the rows of the store it was trained on.
        config: what is wanted.

    Returns:
        What tells images that are unlike them; None where nothing is kept.
    """
    notes: list[str] = []
    labels = ["label"] if model.kind == "multiclass" else model.classes
    outliers = keep_reference(run, images, model, train, labels, config, notes)
    run.card["trust"] = {"outliers": outliers, "notes": notes}
    return OutlierDetector.open(run)


def assess(run: Run, model: Predictor, config: TrustConfig) -> None:
    """Complete the section: fit temperature and conformal sets to what ``predictions.parquet`` says of validation."""
    section = run.card["trust"]
    section |= _fitted(run, model, config, section["notes"])


def _fitted(run: Run, model: Predictor, config: TrustConfig, notes: list[str]) -> dict[str, Any]:
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
    sets = ConformalSets.fit(
        found,
        truth,
        model.kind,
        config.coverage,
        config.sets,
        groups_of(table.iloc[known])[0],
    )
    notes += sets.reasons(model.classes)
    return {
        "temperature": {"value": value, "images": len(truth), "log_loss": [before, after]},
        "sets": sets.card(),
    }
