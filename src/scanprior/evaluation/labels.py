"""Truth out of a table of predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.errors import DataError

Task = Literal["multiclass", "multilabel"]

_UNITS = {"near_duplicates": "near-duplicate group", "patient": "patient"}
_NUMBER = re.compile(r"^-?\d+(\.\d+)?$")
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


def are_numbers(classes: Sequence[str]) -> bool:
    """Return whether all class names are numbers, such as the grades 0 to 4."""
    return all(_NUMBER.match(name) for name in classes)


def are_rising(classes: Sequence[str]) -> bool:
    """Return whether the class names are numbers that rise: then the classes are taken to be in an order."""
    if not are_numbers(classes):
        return False
    values = [float(name) for name in classes]
    return all(low < high for low, high in pairwise(values))


def truth_of(predictions: pd.DataFrame, name: str, task: Task) -> NDArray[np.float64]:
    """Return (n,) 1, 0 or NaN (unknown) for a class or finding.

    Raises:
        DataError: no such column; a multi-label table holds -1 (uncertain labels are to be resolved
            before) or anything else that is not 0 or 1.
    """
    if task == "multiclass":
        labels = _column(predictions, "label")
        return np.where(labels.isna(), np.nan, labels.isin([name]).to_numpy(np.float64))
    values = _column(predictions, f"label:{name}").to_numpy(np.float64, na_value=np.nan)
    if (values == -1).any():
        raise DataError(
            f"label:{name} holds uncertain labels (-1); set them to missing, 0 or 1 before evaluating"
        )
    strange = values[~np.isnan(values) & (values != 0) & (values != 1)]
    if len(strange):
        raise DataError(f"label:{name} holds {strange[0]:g}; a finding is 0, 1 or missing")
    return values


def probability_of(predictions: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return (n,) the probability of a class, in [0, 1].

    Raises:
        DataError: no such column, a missing value, or one that is no probability.
    """
    values = _column(predictions, f"prob:{name}").to_numpy(np.float64, na_value=np.nan)
    wrong = ~((values >= -1e-6) & (values <= 1 + 1e-6))
    if wrong.any():
        row = int(wrong.argmax())
        image = predictions["image"].iloc[row] if "image" in predictions else f"row {row}"
        raise DataError(f"prob:{name} of {image} is {values[row]:g}; a probability lies between 0 and 1")
    return values.clip(0, 1)


def check_labels(predictions: pd.DataFrame, classes: Sequence[str]) -> None:
    """Refuse labels of a multi-class table that are not one of the classes.

    Raises:
        DataError: naming the first such label.
    """
    labels = _column(predictions, "label").dropna()
    unknown = labels[~labels.isin(list(classes))]
    if len(unknown):
        raise DataError(f"label {unknown.iloc[0]!r} is not one of the classes ({', '.join(classes)})")


def groups_of(predictions: pd.DataFrame) -> tuple[NDArray[np.int64], str]:
    """Return (n,) group numbers and what they are: near-duplicate groups where known, else patients, else images.

    A near-duplicate group holds all images of its patients. Images without a name are groups of their own.
    """
    for column, unit in _UNITS.items():
        if (numbers := _numbered(predictions, column)) is not None:
            return numbers, unit
    return np.arange(len(predictions), dtype=np.int64), "image"


def count_patients(predictions: pd.DataFrame) -> int | None:
    """Return how many patients the images are of, each image without one counted as its own; None if none is known."""
    numbers = _numbered(predictions, "patient")
    return None if numbers is None else int(numbers.max()) + 1


def _numbered(predictions: pd.DataFrame, column: str) -> NDArray[np.int64] | None:
    """Return (n,) numbers 0..g-1 of the values of a column, a missing one alone; None if there is no value."""
    if column not in predictions or predictions[column].isna().all():
        return None
    named = [
        f"image {row}" if pd.isna(name) else f"name {name}" for row, name in enumerate(predictions[column])
    ]
    return np.unique(named, return_inverse=True)[1].astype(np.int64)


def _column(predictions: pd.DataFrame, name: str) -> pd.Series:
    if name not in predictions:
        raise DataError(
            f"the predictions have no column {name!r}; they have {', '.join(predictions.columns)}"
        )
    return predictions[name]
