"""``predict``: probabilities, or masks, for raw files, DICOM included."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from scanprior.api.mask_prediction import MaskForm, predict_masks
from scanprior.api.models import load_predictor
from scanprior.api.predictor import Predictor
from scanprior.data.fitting import Pixels
from scanprior.data.folders import scan
from scanprior.data.paths import absolute_reference, split_reference
from scanprior.data.readers import read_reference
from scanprior.data.readers.array import npz_members
from scanprior.data.transforms import Form
from scanprior.engine import Reporter
from scanprior.errors import DataError, ImageReadError
from scanprior.files import replacing
from scanprior.run import Run


def predict(
    run: str | Path,
    paths: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    masks: MaskForm = "png",
    overlays: bool = True,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> pd.DataFrame:
    """Predict raw images: one row an image, in the order found; probabilities or masks, or the error.

    Args:
        run: a fine-tuned run.
        paths: files (``file.dcm#3`` for a frame, ``file.npz`` for all its images) and folders.
        out: a ``.csv`` or ``.parquet`` file to write; of a segmentation run a folder, for ``masks/``,
            ``overlays/`` and ``predictions.csv``.
        masks: form of the masks, at the size of the images: ``png``, with the values of the run's own masks, or
            ``npy`` (bool, (classes, height, width)).
        overlays: whether to draw predicted masks over the images.
        batch_size: images per forward pass.
        reporter: shows progress.

    Returns:
        A table with ``image``, ``predicted`` (multi-class), ``prob:CLASS`` columns and ``error``; of a segmentation
        run ``image``, ``mask``, ``overlay``, ``height``, ``width``, ``area:CLASS`` in pixels and ``error``.

    Raises:
        DataError: a path that does not exist, or no image found.
    """
    reporter = reporter or Reporter()
    if out is not None:
        check_place(Path(out))
    opened = Run.open(run)
    if opened.card["kind"] == "segment":
        if masks not in get_args(MaskForm):
            raise DataError(f"masks={masks!r}: choose one of {', '.join(get_args(MaskForm))}")
        return predict_masks(
            opened, _found(paths), out=None if out is None else Path(out), form=masks, overlays=overlays,
            batch_size=batch_size, reporter=reporter,
        )  # fmt: skip
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise DataError(f"--out {out}: the ending decides the form; use .csv or .parquet")
    if out is not None and Path(out).is_dir():
        raise DataError(f"--out {out}: a folder is here; name a file in it")
    model = load_predictor(opened)
    references = _found(paths)
    made = []
    for start in range(0, len(references), batch_size):
        chunk = references[start : start + batch_size]
        pixels, errors = _read(chunk, model)
        found = np.full((len(chunk), len(model.classes)), np.nan)
        good = [number for number, error in enumerate(errors) if error is None]
        if good:
            found[good] = model.combined(model.of_members(pixels))
        made.append((chunk, found, errors))
        reporter.counted(start + len(chunk), len(references), "images predicted")
    table = pd.DataFrame({"image": [name for chunk, _, _ in made for name in chunk]})
    found = np.concatenate([part for _, part, _ in made])
    if model.kind == "multiclass":
        known = ~np.isnan(found).any(axis=1)
        best = np.where(known, np.nan_to_num(found).argmax(axis=1), 0)
        table["predicted"] = [model.classes[b] if k else None for b, k in zip(best, known, strict=True)]
    for number, name in enumerate(model.classes):
        table[f"prob:{name}"] = found[:, number]
    table["error"] = [error for _, _, errors in made for error in errors]
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        _save(table, Path(out))
    return table


def check_place(out: Path) -> None:
    """See before the work that its results can be written.

    Raises:
        DataError: the place lies in a file, or in a folder that cannot be written to.
    """
    folder = next(
        place for place in (out if out.is_dir() else out.parent, *out.absolute().parents) if place.exists()
    )
    if not folder.is_dir():
        raise DataError(
            f"--out {out}: {folder} is a file, and no folder can be made in it; name another place"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):  # rights alone do not say it: a disk may be read-only
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"--out {out}: {folder} cannot be written to ({reason}); name another place"
        ) from None


def _found(paths: str | Path | Sequence[str | Path]) -> list[str]:
    references = list(expand(paths))
    if not references:
        raise DataError("no image found in what was given")
    return references


def _save(table: pd.DataFrame, out: Path) -> None:
    with replacing(out) as part:
        if out.suffix == ".csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)


def expand(paths: str | Path | Sequence[str | Path]) -> Iterator[str]:
    """Yield image references: files as given, a folder's images in sorted order, npz files by member.

    What ``index`` takes for masks in a folder is no image to predict; a mask named by itself is.

    Raises:
        DataError: a path that does not exist.
    """
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given)
        if path.is_dir():
            yield from (str(path / file) for file in scan(path).images)
        elif path.suffix == ".npz" and path.is_file():
            for key, header in npz_members(path).items():
                if key.endswith("images"):
                    yield from (f"{path}[{key}][{number}]" for number in range(header.shape[0]))
        elif path.is_file() or _file_of(str(given)).is_file():
            yield str(given)
        else:
            raise DataError(f"{given}: there is no such file or folder")


def _file_of(reference: str) -> Path:
    return Path(split_reference(reference)[0])


def _read(references: list[str], model: Predictor) -> tuple[dict[Form, Pixels], list[str | None]]:
    """Read images, each once; return the pixels of the readable ones and one error, or None, for every one."""
    pixels: dict[Form, list[Pixels]] = {form: [] for form in model.forms}
    errors: list[str | None] = []
    for reference in references:
        try:
            fitted = model.fitted(read_reference(absolute_reference(reference)))
        except ImageReadError as error:
            errors.append(error.reason)
            continue
        for form, image in fitted.items():
            pixels[form].append(image)
        errors.append(None)
    return {form: np.stack(made) for form, made in pixels.items() if made}, errors
