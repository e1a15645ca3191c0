"""Truth out of a table of predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError

Task = Literal["multiclass", "multilabel"]

_NEGATIVE = re.compile(r"^(normal|negative|no[ _-]?finding|healthy|control|none|benign|0)$", re.IGNORECASE)


def positive_of(classes: Sequence[str], positive_class: str | None = None) -> str:
    """Return the positive one of two classes: the one named, else the one not called normal.

    A class called normal, negative, no finding, healthy, control, none, benign or 0 is the negative
    one; where that does not decide it, the second in order is positive [our definition].

    Raises:
        DataError: ``positive_class`` is not one of the classes.
    """
    if positive_class is not None:
        if positive_class not in classes:
            raise DataError(
                f"evaluation.positive_class: {positive_class!r} is not one of the classes ({', '.join(classes)})"
            )
        return positive_class
    positive = [name for name in classes if not _NEGATIVE.match(name)]
    return positive[0] if len(positive) == 1 else classes[-1]


def truth_of(predictions: pd.DataFrame, name: str, task: Task) -> NDArray[np.float64]:
    """Return (n,) 1, 0 or NaN (unknown) for a class or finding.

    Raises:
        DataError: a multi-label table holds -1: uncertain labels are to be resolved before.
    """
    if task == "multiclass":
        labels = predictions["label"]
        return np.where(labels.isna(), np.nan, (labels == name).to_numpy(np.float64))
    values = predictions[f"label:{name}"].to_numpy(np.float64)
    if (values == -1).any():
        raise DataError(
            f"label:{name} holds uncertain labels (-1); set them to missing, 0 or 1 before evaluating"
        )
    return values


def groups_of(predictions: pd.DataFrame) -> tuple[NDArray[np.int64], str]:
    """Return (n,) group numbers and what they are: patients where known, else images.

    Images without a patient are groups of their own.
    """
    patients = predictions["patient"] if "patient" in predictions else pd.Series([None] * len(predictions))
    if patients.isna().all():
        return np.arange(len(predictions), dtype=np.int64), "image"
    alone = [f"image {number} alone" for number in range(len(predictions))]
    named = np.where(patients.isna(), alone, "patient " + patients.astype(str).to_numpy(dtype=object))
    return np.unique(named.astype(str), return_inverse=True)[1].astype(np.int64), "patient"
