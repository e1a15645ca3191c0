"""Predicted masks of stored images: measured at the size of the files, evaluated, shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.evaluation_files import Origin, save_evaluation
from scanprior.api.settings import EvaluationConfig
from scanprior.api.sources import Images, side_columns
from scanprior.api.work import Rows
from scanprior.data.fitting import unfit_maps
from scanprior.data.loader import evaluation_batches
from scanprior.data.masks import Masks, MaskValues
from scanprior.data.readers import read_mask, read_reference
from scanprior.data.split import NEAR_DUPLICATES
from scanprior.data.store import ImageStore, Store, StoreSet
from scanprior.data.transforms import Preprocessing
from scanprior.engine import Reporter
from scanprior.errors import DataError, ImageReadError
from scanprior.evaluation import evaluate_masks, mask_row
from scanprior.reporting.overlays import save_overlay
from scanprior.run import Run
from scanprior.tasks.segment import Segmenter

SHOWN = 3
"""Best, median and worst images of an evaluation that are kept as overlays, of each so many."""


def predicted_maps(
    model: Segmenter, store: ImageStore, rows: Rows, preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
    """Yield rows and their probabilities (B, channels, S, S), a batch at a time."""
    batches = evaluation_batches(store, rows, preprocessing, batch_size)
    for start, maps in zip(range(0, len(rows), batch_size), model.predict(batches), strict=True):
        yield rows[start : start + batch_size], maps.numpy()


def measure_masks(
    model: Segmenter,
    images: Images,
    masks: Masks,
    rows: Rows,
    preprocessing: Preprocessing,
    batch_size: int = 64,
    store: ImageStore | None = None,
) -> pd.DataFrame:
    """Measure the predicted masks of stored images against the mask files, at the files' own size.

    Args:
        model, images, masks, rows, preprocessing, batch_size: what to measure, on what.
        store: the same images, changed; None = as they are.

    Returns:
        One row an image, with the columns of ``mask_row``, ``patient``, ``split``, side columns and ``error``.
    """
    made = []
    kept = ["patient", "split", *side_columns(images)]
    kept += [NEAR_DUPLICATES] if NEAR_DUPLICATES in images.frame else []
    for part, maps in predicted_maps(model, store or images.store, rows, preprocessing, batch_size):
        for row, probability in zip(part, maps, strict=True):
            entry: dict[str, Any] = {"image": images.frame["image"].iloc[row], "error": None}
            for name in kept:
                entry[name] = images.frame[name].iloc[row] if name in images.frame else None
            try:
                truth = true_masks(model, images, masks, int(row))
            except ImageReadError as error:
                made.append({**entry, "error": error.reason})
                continue
            height, width = next(iter(truth.values())).shape
            found = predicted_masks(model, probability, height, width, preprocessing)
            made.append({**entry, **mask_row(found, truth)})
    return pd.DataFrame(made)


def true_masks(model: Segmenter, images: Images, masks: Masks, row: int) -> dict[str, NDArray[np.bool_]]:
    """Read the true masks (H, W) of a stored image from their files, by class.

    Raises:
        ImageReadError: a file cannot be read any more, or holds values that the run does not know.
    """
    root = root_of(images.store, row)
    values = []
    for number, column in enumerate(masks.names):
        file = str(images.frame[column].iloc[row])
        values.append(read_mask(file, root))
        present = np.bincount(values[-1].ravel(), minlength=256)[None] > 0
        wrong = model.classes.unknown(number, MaskValues(column, [file], present), model.config)
        if wrong is not None:  # lost where the mask was made small, so not seen before
            raise ImageReadError(file, wrong)
    return dict(zip(model.classes.names, model.classes.truth(np.stack(values)), strict=True))


def root_of(store: ImageStore, row: int) -> Path:
    """Return the folder that the paths of an image start from."""
    if isinstance(store, StoreSet):
        store = store.stores[int(np.searchsorted(store.starts, row, side="right")) - 1]
    assert isinstance(store, Store)
    return store.root


def predicted_masks(
    model: Segmenter, probability: NDArray[np.float32], height: int, width: int, preprocessing: Preprocessing
) -> dict[str, NDArray[np.bool_]]:
    """Return the masks (height, width) of probabilities (channels, S, S), by class."""
    whole = unfit_maps(probability, height=height, width=width, fit=preprocessing.fit)
    return dict(zip(model.classes.names, model.chosen_of(whole[None])[0], strict=True))


def write_mask_evaluation(
    run: Run,
    name: str,
    table: pd.DataFrame,
    model: Segmenter,
    config: EvaluationConfig,
    fingerprint: str,
    reporter: Reporter,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Evaluate measured masks and write ``evaluations/NAME.json`` and ``.parquet``."""
    result = evaluate_masks(
        table, classes=model.classes.names, name=name, split_fingerprint=fingerprint, resamples=config.resamples,
        seed=config.seed, level=config.level,
    )  # fmt: skip
    return save_evaluation(run, name, table, result, origin or Origin(), reporter)


def save_cases(
    run: Run,
    name: str,
    table: pd.DataFrame,
    model: Segmenter,
    images: Images,
    masks: Masks,
    preprocessing: Preprocessing,
) -> None:
    """Save overlays of the best, median and worst images of an evaluation into ``evaluations/NAME-cases/``."""
    good = table[table["error"].isna()]
    score = good[[f"dice:{c}" for c in model.classes.names]].mean(axis=1).sort_values(kind="stable")
    middle = max(0, len(score) // 2 - SHOWN // 2)
    places = {
        "worst": score.index[:SHOWN],
        "median": score.index[middle : middle + SHOWN],
        "best": score.index[-SHOWN:],
    }
    rows = {image: row for row, image in enumerate(images.frame["image"])}
    folder = run.path / "evaluations" / f"{name}-cases"
    folder.mkdir(parents=True, exist_ok=True)
    for what, chosen in places.items():
        for number, place in enumerate(chosen):
            row = rows[table["image"].iloc[place]]
            _, maps = next(predicted_maps(model, images.store, np.array([row]), preprocessing, 1))
            truth = true_masks(model, images, masks, row)
            height, width = next(iter(truth.values())).shape
            picture = read_reference(str(images.frame["image"].iloc[row]), root_of(images.store, row)).pixels
            found = predicted_masks(model, maps[0], height, width, preprocessing)
            save_overlay(folder / f"{what}-{number}-dice{score[place]:.3f}.png", picture, found, truth)


def evaluate_stored_masks(
    run: Run,
    model: Segmenter,
    preprocessing: Preprocessing,
    images: Images,
    rows: Rows,
    name: str,
    config: EvaluationConfig,
    reporter: Reporter,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Measure, evaluate and show the masks of stored images.

    Raises:
        DataError: none of the images has a mask, or the masks hold values that no class of the run has.
    """
    masks = images.masks
    assert masks is not None
    rows = rows[masks.has[rows]]
    if not len(rows):
        raise DataError(f"{name}: no image of this split has a mask")
    _check_values(model, masks, rows, name)
    table = measure_masks(model, images, masks, rows, preprocessing)
    fingerprint = str(images.split["fingerprint"])
    result = write_mask_evaluation(run, name, table, model, config, fingerprint, reporter, origin)
    save_cases(run, name, table, model, images, masks, preprocessing)
    return result


def _check_values(model: Segmenter, masks: Masks, rows: Rows, name: str) -> None:
    """Refuse masks of other columns or values than the run was trained on."""
    table = model.classes.table
    if len(masks.names) != len(table):
        raise DataError(
            f"{name}: the masks are in the columns {', '.join(masks.names)}, the run has {len(table)} of them"
        )
    for number, found in enumerate(masks.values(rows)):
        wrong = model.classes.unknown(number, found, model.config)
        if wrong is not None:
            raise DataError(f"{name}: {wrong}; mend the mask, or leave its image out")
