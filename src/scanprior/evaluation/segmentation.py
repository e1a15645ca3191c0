"""Metrics of the masks of one image: one boolean mask (H, W) a class, whatever the classes are.

Binary masks are one class; a multi-class label map is one mask a class (``labels == number``), the masks of
findings may overlap. Empty masks follow one rule [our definition]:

- both empty: Dice and IoU are 1, the distances 0;
- exactly one empty: Dice and IoU are 0, the distances are undefined (NaN, with the reason).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scanprior.errors import DataError
from scanprior.evaluation.surface import Spacing, check_masks, surface_metrics

Mask = NDArray[np.bool_]

OVERLAPS = ("dice", "iou")
DISTANCES = ("hausdorff95", "surface_distance")
METRICS = (*OVERLAPS, *DISTANCES)


def dice(predicted: Mask, true: Mask) -> float:
    """Return 2 |P ∩ T| / (|P| + |T|) of two masks (H, W), in [0, 1] (Dice 1945, Ecology 26:297).

    Raises:
        DataError: the arrays are not boolean (H, W) of one shape.
    """
    check_masks(predicted, true)
    both, total = _areas(predicted, true)
    return 2 * both / total if total else 1.0


def iou(predicted: Mask, true: Mask) -> float:
    """Return |P ∩ T| / |P ∪ T| of two masks (H, W), in [0, 1] (Jaccard 1912, New Phytologist 11:37).

    Raises:
        DataError: the arrays are not boolean (H, W) of one shape.
    """
    check_masks(predicted, true)
    both, total = _areas(predicted, true)
    return both / (total - both) if total else 1.0


def mask_metrics(predicted: Mask, true: Mask, spacing: Spacing | None = None) -> dict[str, float]:
    """Return all metrics of two masks (H, W): ``dice``, ``iou``, ``hausdorff95``, ``surface_distance``.

    Distances are in pixels, or in millimetres where ``spacing`` (row, column) is given, and NaN where
    exactly one mask is empty.

    Raises:
        DataError: the arrays are not boolean (H, W) of one shape, or the spacing is not above 0.
    """
    distances = surface_metrics(predicted, true, spacing)
    both, total = _areas(predicted, true)
    return {
        "dice": 2 * both / total if total else 1.0,
        "iou": both / (total - both) if total else 1.0,
        **distances._asdict(),
    }


def why_no_distance(predicted: Mask, true: Mask) -> str | None:
    """Return the reason why two masks have no distances; None where they have."""
    filled = bool(predicted.any()), bool(true.any())
    if filled[0] == filled[1]:
        return None
    return f"n/a because the {'true' if filled[0] else 'predicted'} mask is empty"


def mask_row(
    predicted: Mapping[str, Mask], true: Mapping[str, Mask], spacing: Spacing | None = None
) -> dict[str, float | str | None]:
    """Return the columns of one image in the table of ``evaluate_masks``.

    Args:
        predicted, true: class to mask (H, W), the same classes in both.
        spacing: millimetres between rows and between columns; None = pixels.

    Returns:
        ``dice:NAME``, ``iou:NAME``, ``hausdorff95:NAME``, ``surface_distance:NAME`` and ``reason:NAME`` (why
        a distance is NaN, else None) of every class.

    Raises:
        DataError: the classes differ, or as for ``mask_metrics``.
    """
    if predicted.keys() != true.keys():
        raise DataError(
            f"the predicted masks are of {', '.join(predicted)} and the true ones of {', '.join(true)}; "
            "give one mask a class, empty where there is nothing"
        )
    row: dict[str, float | str | None] = {}
    for name, mask in predicted.items():
        found = mask_metrics(mask, true[name], spacing)
        row |= {f"{metric}:{name}": found[metric] for metric in METRICS}
        row[f"reason:{name}"] = why_no_distance(mask, true[name])
    return row


def _areas(predicted: Mask, true: Mask) -> tuple[int, int]:
    """Pixels in both masks, and the pixels of the one plus those of the other."""
    both = int(np.count_nonzero(predicted & true))
    return both, int(np.count_nonzero(predicted)) + int(np.count_nonzero(true))
