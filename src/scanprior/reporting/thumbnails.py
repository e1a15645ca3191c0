"""The most wrong cases of an evaluation, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from scanprior.reporting.formatting import finite, number

Thumbnails = Callable[[list[str]], list[NDArray[Any] | None]]

THUMBNAIL_SIZE = 176  # longest side in pixels; shown at about 150 CSS pixels
PICTURE_SIZE = 1400


@dataclass(frozen=True)
class WrongCase:
    """One image the model got wrong: what it is, what the model said, and how far off (0 to 1)."""

    image: str
    true: str
    true_probability: float
    said: str
    said_probability: float
    wrongness: float
    patient: str = ""
    uri: str = ""

    @property
    def true_text(self) -> str:
        """The probability that the model gave to the label."""
        return number(self.true_probability, 2)

    @property
    def said_text(self) -> str:
        """The probability of what the model said."""
        return number(self.said_probability, 2)

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return PurePosixPath(self.image.replace("\\", "/")).name or self.image


def wrong_cases(
    table: pd.DataFrame, evaluation: Mapping[str, Any], limit: int = 12
) -> tuple[list[WrongCase], int]:
    """Return the most wrong cases, worst first, and how many images were wrong in all.

    Multi-class: wrong means that the predicted class (binary: by the threshold; else the most probable)
    is not the label; wrongness is 1 − P(label). Multi-label: a finding labelled 0 or 1 on the wrong side
    of its threshold (0.5 where none was chosen); wrongness is |label − P|; an image counts once, by its
    worst finding. Rows with an error or without a label are left aside. Ties keep the table's order.
    """
    classes = [str(c) for c in evaluation.get("classes") or []]
    if "image" not in table.columns or not classes:
        return [], 0
    usable = table[table["error"].isna()] if "error" in table.columns else table
    if evaluation.get("task") == "multilabel":
        cases = _wrong_findings(usable, classes, _thresholds(evaluation))
    else:
        cases = _wrong_classes(usable, classes, evaluation)
    cases.sort(key=lambda case: -case.wrongness)
    return cases[:limit], len(cases)


def _thresholds(evaluation: Mapping[str, Any]) -> dict[str, float]:
    found = evaluation.get("thresholds") or {}
    values = {str(k): finite(t.get("value")) for k, t in found.items() if isinstance(t, Mapping)}
    return {k: v for k, v in values.items() if v is not None}


def _patient(row: Mapping[str, Any]) -> str:
    value = row.get("patient")
    return "" if value is None or pd.isna(value) else str(value)


def _wrong_classes(table: pd.DataFrame, classes: list[str], evaluation: Mapping[str, Any]) -> list[WrongCase]:
    columns = [f"prob:{c}" for c in classes]
    if "label" not in table.columns or not set(columns) <= set(table.columns):
        return []
    table = table[table["label"].isin(classes)].dropna(subset=columns)
    probabilities = table[columns].to_numpy(dtype=np.float64)
    true = np.array([classes.index(label) for label in table["label"]], dtype=np.int64)
    said = probabilities.argmax(axis=1) if len(table) else true
    positive, threshold = evaluation.get("positive_class"), _thresholds(evaluation)
    if len(classes) == 2 and positive in classes and positive in threshold:
        index = classes.index(str(positive))
        said = np.where(probabilities[:, index] >= threshold[str(positive)], index, 1 - index)
    rows = table.to_dict("records")
    return [
        WrongCase(
            str(rows[i]["image"]),
            classes[true[i]],
            float(probabilities[i, true[i]]),
            classes[said[i]],
            float(probabilities[i, said[i]]),
            1.0 - float(probabilities[i, true[i]]),
            _patient({str(k): v for k, v in rows[i].items()}),
        )
        for i in np.flatnonzero(said != true)
    ]


def _wrong_findings(table: pd.DataFrame, classes: list[str], thresholds: dict[str, float]) -> list[WrongCase]:
    worst: dict[int, WrongCase] = {}
    rows = table.to_dict("records")
    for finding in classes:
        label_column, column = f"label:{finding}", f"prob:{finding}"
        if label_column not in table.columns or column not in table.columns:
            continue
        threshold = thresholds.get(finding, 0.5)
        for i, row in enumerate(rows):
            label, p = finite(row[label_column]), finite(row[column])
            if label not in (0.0, 1.0) or p is None or (p >= threshold) == (label == 1.0):
                continue
            off = abs(label - p)
            if i not in worst or off > worst[i].wrongness:
                words = (f"{finding}", f"no {finding}") if label == 1.0 else (f"no {finding}", f"{finding}")
                of_true = p if label == 1.0 else 1.0 - p
                patient = _patient({str(k): v for k, v in row.items()})
                worst[i] = WrongCase(
                    str(row["image"]), words[0], of_true, words[1], 1.0 - of_true, off, patient
                )
    return [worst[i] for i in sorted(worst)]


def with_pictures(cases: list[WrongCase], thumbnails: Thumbnails | None) -> list[WrongCase]:
    """Return the cases with a data URI each where ``thumbnails`` gives pixels; else they stay without.

    Raises:
        ValueError: if ``thumbnails`` does not give one entry an image, or pixels that are not
            (H, W) or (H, W, 3) uint8.
    """
    if thumbnails is None or not cases:
        return cases
    pixels = thumbnails([case.image for case in cases])
    if len(pixels) != len(cases):
        raise ValueError(
            f"thumbnails() returned {len(pixels)} arrays for {len(cases)} images; one an image is needed"
        )
    return [
        case if array is None else replace(case, uri=thumbnail_uri(array))
        for case, array in zip(cases, pixels, strict=True)
    ]


def thumbnail_uri(pixels: NDArray[Any], size: int = THUMBNAIL_SIZE) -> str:
    """Return (H, W) or (H, W, 3) uint8 pixels as a JPEG data URI whose longest side is at most ``size``.

    Raises:
        ValueError: for any other shape or dtype.
    """
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"a thumbnail must be (H, W) or (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    return _jpeg_uri(Image.fromarray(np.ascontiguousarray(pixels)), size, quality=82)


def picture_uri(content: bytes, budget: int = 200_000) -> str:
    """Return an image file's bytes as a data URI: as they are if within ``budget``, else as a JPEG.

    Raises:
        OSError: if the bytes are no image that Pillow can read (PIL.UnidentifiedImageError included).
    """
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if len(content) <= budget and image.format == "PNG":
            return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
        return _jpeg_uri(
            image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB"), PICTURE_SIZE, quality=80
        )


def _jpeg_uri(image: Image.Image, size: int, quality: int) -> str:
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
