"""``predict`` of a segmenter: masks of raw files, at their own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from scanprior.api.batches import worked
from scanprior.api.mask_predictor import MaskPredictor
from scanprior.api.mask_results import predicted_masks
from scanprior.api.models import augmentation_of, load_segmenter
from scanprior.api.outlier_detection import COLUMNS, OutlierDetector
from scanprior.api.prediction_rows import TABLES, PredictionRows, parts_of, save_table, spread
from scanprior.api.reading import Reading, read_all, stacked
from scanprior.data.paths import split_reference
from scanprior.data.transforms import Augmentation
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError
from scanprior.reporting.overlays import save_overlay
from scanprior.run import Run
from scanprior.tasks.segment import MaskClasses

MaskForm = Literal["png", "npy"]


@dataclass(frozen=True)
class MaskOutput:
    """Where predicted masks go.

    Attributes:
        folder: for ``masks/``, ``overlays/`` and ``predictions.csv``.
        form: ``png`` (the values that the run's own masks have; a file a class where classes overlap) or ``npy``
            (bool, (classes, height, width)).
        overlays: whether to draw the masks over the images.

    Raises:
        DataError: the folder cannot be one.
    """

    folder: Path
    form: MaskForm
    overlays: bool

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"--out {self.folder}: masks need a folder, and a file is here")
        if self.folder.suffix in TABLES:
            raise DataError(f"--out {self.folder}: masks need a folder; name it without {self.folder.suffix}")


def predict_masks(
    run: Run,
    references: Sequence[str],
    *,
    output: MaskOutput | None,
    tta: int,
    batch_size: int,
    workers: int,
    resume: bool,
    reporter: Reporter,
) -> pd.DataFrame:
    """Predict the masks of images; one row each.

    Args:
        run: a segmentation run.
        references: images, as ``read_reference`` takes them.
        output: where masks go; None = measure only.
        tta, batch_size, workers, resume, reporter: as for ``predict``; views only differ in brightness and mirroring,
            which masks are mirrored back from.

    Returns:
        A table with ``image``, ``mask`` and ``overlay`` (paths relative to the output), ``height``, ``width``,
        ``area:CLASS`` (pixels of the original image), what ``OutlierDetector.columns`` adds, and ``error``.
    """
    work = _Segmenting(run, file_names(references), output, tta)
    request = {
        "run": run.card_fingerprint(), "tta": tta, "images": list(references),
        "output": None if output is None else [output.form, output.overlays],
    }  # fmt: skip
    rows = PredictionRows(
        None if output is None else parts_of(output.folder), request, resume=resume, reporter=reporter
    )
    readings = read_all(references[rows.done :], work.predictor.forms, workers=workers, originals=True)
    for tables in worked(readings, work, batch_size, reporter):
        rows.add(tables)
        reporter.counted(rows.done, len(references), "images predicted")
    table = rows.table()
    if output is not None:
        save_table(table, output.folder / "predictions.csv")
    rows.close()
    return table


class _Segmenting:
    """Makes rows, and files of masks, of images that were read."""

    def __init__(self, run: Run, names: dict[str, str], output: MaskOutput | None, views: int) -> None:
        self.model, preprocessing = load_segmenter(run)
        self.predictor = MaskPredictor(self.model, preprocessing, view_augmentation(run, views))
        self.detector = OutlierDetector.open(run)
        self.names, self.output, self.views = names, output, views
        self.whole = ["height", "width", *(f"area:{name}" for name in self.model.classes.names)]
        unlike = COLUMNS if self.detector is not None else ()
        self.columns = ["image", "mask", "overlay", *self.whole, *unlike, "error"]

    def __call__(self, readings: Sequence[Reading]) -> pd.DataFrame:
        good = [n for n, reading in enumerate(readings) if reading.error is None]
        rows: list[dict[str, Any]] = [{"image": each.reference, "error": each.error} for each in readings]
        said: dict[str, NDArray[Any]] = {}
        if good:
            pixels = stacked([readings[n] for n in good], self.predictor.forms)
            answers = self.predictor.answers(pixels, self.views)
            for n, maps in zip(good, answers.maps, strict=True):
                rows[n] |= self._measured(readings[n], maps)
            said = {} if self.detector is None else self.detector.columns(answers.descriptors)
        table = pd.DataFrame(rows).assign(
            **{name: spread(values, np.array(good), len(readings)) for name, values in said.items()}
        )
        table = table.reindex(columns=self.columns)
        table[self.whole] = table[self.whole].astype("Int64")
        return table

    def _measured(self, reading: Reading, maps: NDArray[np.float32]) -> dict[str, Any]:
        """Return the size of an image and of its masks, and write these."""
        assert reading.original is not None
        height, width = reading.height, reading.width
        masks = predicted_masks(self.model, maps, height, width, self.predictor.preprocessing)
        row: dict[str, Any] = {"height": height, "width": width}
        row |= {f"area:{name}": int(mask.sum()) for name, mask in masks.items()}
        if self.output is not None:
            stem = self.names[reading.reference]
            row["mask"] = _save(self.output.folder, stem, masks, self.model.classes, self.output.form)
            if self.output.overlays:
                save_overlay(self.output.folder / "overlays" / f"{stem}.png", reading.original.pixels, masks)
                row["overlay"] = f"overlays/{stem}.png"
        return row


def view_augmentation(run: Run, views: int) -> Augmentation:
    """Return of the augmentation of a run's training what masks can follow: brightness, noise, mirroring.

    Raises:
        ConfigError: views are wanted, and nothing of that kind varied in the training.
    """
    whole = augmentation_of(run)
    still = Augmentation()
    places = ("crop_scale", "crop_ratio", "rotate", "translate", "zoom")
    kept = whole.model_copy(update={name: getattr(still, name) for name in places} | {"views": []})
    if views < 0:
        raise ConfigError(f"--tta {views}: the number of further views cannot be negative")
    if views and kept.is_off:
        raise ConfigError(
            f"--tta {views}: in the training of {run.path} no brightness varied and nothing was mirrored, so every "
            "view would be the image itself; leave --tta out"
        )
    return kept


def file_names(references: Sequence[str]) -> dict[str, str]:
    """Return a file name for every image: its own, numbered where two are alike."""
    made, taken = {}, set()
    for reference in references:
        file, place = split_reference(reference)
        stem = Path(file).stem + "".join(c if c.isalnum() else "-" for c in place).rstrip("-")
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        made[reference] = name
    return made


def _save(
    out: Path, stem: str, masks: dict[str, NDArray[np.bool_]], classes: MaskClasses, form: MaskForm
) -> str:
    """Write the masks of an image; return their place, several joined by "|" as in a manifest."""
    folder = out / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    if form == "npy":
        np.save(folder / f"{stem}.npy", np.stack(list(masks.values())), allow_pickle=False)
        return f"masks/{stem}.npy"
    if classes.kind == "multilabel":
        for name, mask in masks.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{stem}-{name}.png")
        return "|".join(f"masks/{stem}-{name}.png" for name in masks)
    values = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for number, mask in enumerate(masks.values(), 1):
        values[mask] = 255 if classes.kind == "binary" else np.flatnonzero(classes.table[0] == number)[0]
    Image.fromarray(values).save(folder / f"{stem}.png")
    return f"masks/{stem}.png"
