"""``predict`` of a segmenter: masks of raw files, at their own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from scanprior.api.mask_results import predicted_masks
from scanprior.api.models import load_segmenter
from scanprior.data.paths import absolute_reference, split_reference
from scanprior.data.readers import read_reference
from scanprior.data.transforms import Preprocessing, prepare_image, to_input
from scanprior.engine import Reporter
from scanprior.errors import DataError, ImageReadError
from scanprior.files import replacing
from scanprior.reporting.overlays import save_overlay
from scanprior.run import Run
from scanprior.tasks.segment import MaskClasses, Segmenter

MaskForm = Literal["png", "npy"]


def predict_masks(
    run: Run,
    references: Sequence[str],
    *,
    out: Path | None,
    form: MaskForm,
    overlays: bool,
    batch_size: int,
    reporter: Reporter,
) -> pd.DataFrame:
    """Predict the masks of images; one row each.

    Args:
        run: a segmentation run.
        references: images, as ``read_reference`` takes them.
        out: folder for ``masks/``, ``overlays/`` and ``predictions.csv``; None = measure only.
        form: ``png`` (the values that the run's own masks have; a file a class where classes overlap) or
            ``npy`` (bool, (classes, height, width)).
        overlays: whether to draw the masks over the images.
        batch_size: images per forward pass.
        reporter: shows progress.

    Returns:
        A table with ``image``, ``mask`` and ``overlay`` (paths relative to ``out``), ``height``, ``width``,
        ``area:CLASS`` (pixels of the original image) and ``error``.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: masks need a folder, and a file is here")
    if out is not None and out.suffix in (".csv", ".parquet"):
        raise DataError(f"--out {out}: masks need a folder; name it without {out.suffix}")
    model, preprocessing = load_segmenter(run)
    names = file_names(references)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(references), batch_size):
        chunk = references[start : start + batch_size]
        for reference, pixels, masks, error in _predicted(model, preprocessing, chunk):
            row: dict[str, Any] = {"image": reference, "error": error}
            if pixels is not None and masks is not None:
                row |= {"height": pixels.shape[0], "width": pixels.shape[1]}
                row |= {f"area:{name}": int(mask.sum()) for name, mask in masks.items()}
                if out is not None:
                    stem = names[reference]
                    row["mask"] = _save(out, stem, masks, model.classes, form)
                    if overlays:
                        save_overlay(out / "overlays" / f"{stem}.png", pixels, masks)
                        row["overlay"] = f"overlays/{stem}.png"
            rows.append(row)
        reporter.counted(start + len(chunk), len(references), "images predicted")
    columns = [
        "image",
        "mask",
        "overlay",
        "height",
        "width",
        *(f"area:{n}" for n in model.classes.names),
        "error",
    ]
    table = pd.DataFrame(rows).reindex(columns=columns)
    whole = columns[3:-1]
    table[whole] = table[whole].astype("Int64")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "predictions.csv") as part:
            table.to_csv(part, index=False)
    return table


def _predicted(
    model: Segmenter, preprocessing: Preprocessing, references: Sequence[str]
) -> Iterator[tuple[str, NDArray[Any] | None, dict[str, NDArray[np.bool_]] | None, str | None]]:
    """Yield every reference with its pixels and masks, or its error."""
    pixels: list[NDArray[Any] | None] = []
    inputs: list[NDArray[np.generic]] = []
    errors: list[str | None] = []
    for reference in references:
        try:
            image = read_reference(absolute_reference(reference))
            inputs.append(prepare_image(image, preprocessing))
        except ImageReadError as error:
            pixels.append(None)
            errors.append(error.reason)
            continue
        pixels.append(image.pixels)
        errors.append(None)
    maps: list[NDArray[np.float32]] = []
    if inputs:
        batch = to_input(torch.from_numpy(np.stack(inputs)), preprocessing)
        maps = [part for made in model.predict([batch]) for part in made.numpy()]
    for reference, image_pixels, reason in zip(references, pixels, errors, strict=True):
        if image_pixels is None:
            yield reference, None, None, reason
            continue
        height, width = image_pixels.shape[:2]
        yield reference, image_pixels, predicted_masks(model, maps.pop(0), height, width, preprocessing), None


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
