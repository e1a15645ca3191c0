"""``predict``: probabilities, or masks, for raw files, DICOM included."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.batches import worked
from scanprior.api.mask_prediction import MaskForm, MaskOutput, predict_masks
from scanprior.api.models import load_predictor
from scanprior.api.prediction_rows import (
    FEATURES,
    TABLES,
    PredictionRows,
    parts_of,
    save_features,
    save_table,
    spread,
)
from scanprior.api.predictor import Predictor
from scanprior.api.reading import Reading, default_workers, read_all, stacked
from scanprior.api.references import Paths, image_references
from scanprior.api.trust import Trust
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError
from scanprior.run import Run

Floats = NDArray[np.float64]


def predict(
    run: str | Path,
    paths: Paths,
    *,
    out: str | Path | None = None,
    masks: MaskForm = "png",
    overlays: bool = True,
    features: str | Path | None = None,
    tta: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> pd.DataFrame:
    """Predict raw images: one row an image, in the order found; probabilities or masks, or the error.

    Args:
        run: a fine-tuned run.
        paths: files (``file.dcm#3`` for a frame, ``file.npz`` for all its images), folders, tables of images and
            patterns such as ``scans/**/*.png``.
        out: a ``.csv``, ``.parquet`` or ``.jsonl`` file to write; of a segmentation run a folder, for ``masks/``,
            ``overlays/`` and ``predictions.csv``.
        masks: form of the masks, at the size of the images: ``png``, with the values of the run's own masks, or
            ``npy`` (bool, (classes, height, width)).
        overlays: whether to draw predicted masks over the images.
        features: a ``.npy`` or ``.parquet`` file for the features that the classes are predicted from: (N, D)
            float32, NaN for an image that could not be read; of an ensemble those of its members side by side.
        tta: so many augmented views of every image are predicted too, and the probabilities averaged (test-time
            augmentation); drawn from the augmentation that the run was trained with.
        batch_size: images held at a time, half of which are computed; fewer where they do not fit into memory.
        workers: processes that read images beside the one that predicts; None = one or half the cores, 0 = none.
        resume: whether to go on with a prediction of the same images that was stopped.
        reporter: shows progress.

    Returns:
        A table with ``image``, ``predicted`` (multi-class), ``prob:CLASS`` columns, what ``Trust.columns`` adds, and
        ``error``; of a segmentation run ``image``, ``mask``, ``overlay``, ``height``, ``width``, ``area:CLASS`` in
        pixels, what ``OutlierDetector.columns`` adds, and ``error``.

    Raises:
        DataError: a path that does not exist, no image found, or a place that cannot be written to.
    """
    reporter = reporter or Reporter()
    place = None if out is None else Path(out)
    if place is not None:
        check_place(place)
    opened = Run.open(run)
    workers = default_workers() if workers is None else workers
    if opened.card["kind"] == "segment":
        if masks not in get_args(MaskForm):
            raise DataError(f"masks={masks!r}: choose one of {', '.join(get_args(MaskForm))}")
        if features is not None:
            raise ConfigError(f"--features {features}: a segmentation run predicts from maps; leave it out")
        output = None if place is None else MaskOutput(place, masks, overlays)
        return predict_masks(
            opened, image_references(paths), output=output, tta=tta, batch_size=batch_size, workers=workers,
            resume=resume, reporter=reporter,
        )  # fmt: skip
    _check_table(place, features)
    work = _Classifying(load_predictor(opened), Trust.open(opened), tta, features is not None)
    references = image_references(paths)
    request = {"run": opened.card_fingerprint(), "tta": tta, "images": references}
    rows = PredictionRows(
        None if place is None else parts_of(place), request, resume=resume, reporter=reporter
    )
    readings = read_all(references[rows.done :], work.predictor.forms, workers=workers)
    for parts in worked(readings, work, batch_size, reporter):
        rows.add([table for table, _ in parts], [vectors for _, vectors in parts if vectors is not None])
        reporter.counted(rows.done, len(references), "images predicted")
    table = rows.table()
    if features is not None:
        save_features(table["image"].tolist(), rows.features(), Path(features))
    if place is not None:
        save_table(table, place)
    rows.close()
    return table


class _Classifying:
    """Makes rows of images that were read: (table, features or None)."""

    def __init__(self, predictor: Predictor, trust: Trust, views: int, features: bool) -> None:
        predictor.check_views(views)
        self.predictor, self.trust, self.views, self.features = predictor, trust, views, features

    def __call__(self, readings: Sequence[Reading]) -> tuple[pd.DataFrame, NDArray[np.float32] | None]:
        model = self.predictor
        good = np.flatnonzero([reading.error is None for reading in readings]).astype(np.int64)
        columns: dict[str, Any] = {"image": [reading.reference for reading in readings]}
        shown = [reading for reading in readings if reading.error is None]
        vectors = None
        if shown:
            answers = model.answers(stacked(shown, model.forms), self.views)
            probabilities = model.combined(answers.members)
            made = {**named(model, probabilities), **self.trust.columns(probabilities, answers.descriptors)}
            columns |= {name: spread(values, good, len(readings)) for name, values in made.items()}
            vectors = spread(answers.pooled, good, len(readings)) if self.features else None
        elif self.features:
            width = sum(member.model.encoder.dim for member in model.members)
            vectors = np.full((len(readings), width), np.nan, np.float32)
        names = ["image", *columns_of(model), *self.trust.names, "error"]
        columns["error"] = [reading.error for reading in readings]
        table = pd.DataFrame(columns).reindex(columns=names)
        return table, vectors


def columns_of(model: Predictor) -> list[str]:
    """Return the names of the columns of ``named``."""
    first = ["predicted"] if model.kind == "multiclass" else []
    return [*first, *(f"prob:{name}" for name in model.classes)]


def named(model: Predictor, probabilities: Floats) -> dict[str, NDArray[Any]]:
    """Return ``predicted`` (multi-class: the most probable) and the ``prob:CLASS`` columns of (B, classes)."""
    made: dict[str, NDArray[Any]] = {}
    if model.kind == "multiclass":
        made["predicted"] = np.asarray(model.classes, dtype=object)[probabilities.argmax(axis=1)]
    return made | {f"prob:{name}": probabilities[:, n] for n, name in enumerate(model.classes)}


def _check_table(out: Path | None, features: str | Path | None) -> None:
    """Refuse files whose ending names no form, before the work."""
    for option, place, endings in (("--out", out, TABLES), ("--features", features, FEATURES)):
        if place is None:
            continue
        path = Path(place)
        if path.suffix not in endings:
            raise DataError(f"{option} {path}: the ending decides the form; use {' or '.join(endings)}")
        if path.is_dir():
            raise DataError(f"{option} {path}: a folder is here; name a file in it")
        check_place(path, option)


def check_place(out: Path, option: str = "--out") -> None:
    """See before the work that its results can be written.

    Raises:
        DataError: the place lies in a file, or in a folder that cannot be written to.
    """
    folder = next(
        place for place in (out if out.is_dir() else out.parent, *out.absolute().parents) if place.exists()
    )
    if not folder.is_dir():
        raise DataError(
            f"{option} {out}: {folder} is a file, and no folder can be made in it; name another place"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):  # rights alone do not say it: a disk may be read-only
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"{option} {out}: {folder} cannot be written to ({reason}); name another place"
        ) from None
