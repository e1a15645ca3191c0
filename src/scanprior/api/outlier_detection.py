"""Whether an image is unlike the training images of a run: fitted after a training for any task, and kept with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanprior import keyed
from scanprior.api.embeddings import Embedder
from scanprior.api.reference import Reference, thumbnails, unit
from scanprior.api.settings import TrustConfig
from scanprior.api.sources import Images
from scanprior.evaluation import OutlierScore
from scanprior.run import Run

Rows = NDArray[np.int64]

COLUMNS = ("outlier_score", "outlier_p", "outlier")
"""What a table of predictions says of it."""

LEAST = 8
"""Kept training images below which nothing is fitted."""


@dataclass(frozen=True)
class OutlierDetector:
    """What a run keeps of its training images, and from where on an image is unlike them.

    Attributes:
        reference: the training images.
        threshold: score above which an image is called an outlier; infinite where none is.
    """

    reference: Reference
    threshold: float

    @classmethod
    def open(cls, run: Run) -> OutlierDetector | None:
        """Read what a run keeps; None of runs of before, or that were to keep nothing: they say nothing."""
        kept: dict[str, Any] | None = (run.card.get("trust") or {}).get("outliers")
        reference = Reference.open(run)
        if kept is None or reference is None:
            return None
        threshold = kept["threshold"]
        return cls(reference, float("inf") if threshold is None else float(threshold))

    def columns(self, descriptors: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return how unlike the training images B images are.

        Args:
            descriptors: (B, E), see ``Embeddings``.

        Returns:
            ``outlier_score``, see ``OutlierScore.scores``; ``outlier_p``, how rare such a score is among validation
            images; ``outlier``, whether it is above the run's threshold.
        """
        scores = self.reference.outliers.scores(descriptors)
        found = (scores, self.reference.outliers.p_values(scores), scores > self.threshold)
        return dict(zip(COLUMNS, found, strict=True))


def keep_reference(
    run: Run,
    images: Images,
    model: Embedder,
    train: Rows,
    labels: Sequence[str],
    config: TrustConfig,
    notes: list[str],
) -> dict[str, Any] | None:
    """Keep the features of some training images in a run's folder, and what is far from them.

    Args:
        run: where they are written.
        images: its images; their validation images say what is far.
        model: what predicts, after the training.
        train: the rows of the store it was trained on.
        labels: the columns of the images that are kept beside their features, where there are such.
        config: what is wanted.
        notes: is added to where something cannot be said.

    Returns:
        What the card says under ``trust.outliers``; None where nothing is kept.
    """
    rows, val = chosen_rows(train, config.reference_images), images.rows("val")
    if len(rows) < LEAST:
        notes.append(f"{len(rows)} training images are kept: too few to tell outliers ({LEAST} are needed)")
        return None
    found = model.embeddings_of_stored(images, np.concatenate([rows, val]))
    score = OutlierScore.fit(found.descriptors[: len(rows)], found.descriptors[len(rows) :])
    frame = images.frame.iloc[rows].reset_index(drop=True)
    table = frame[[name for name in labels if name in frame]].copy()
    table["thumbnail"] = thumbnails(images.store.read, rows) if config.thumbnails else None
    Reference(score, unit(found.pooled[: len(rows)]), table).save(run.path)
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
