"""Distances between the surfaces of two masks of one image.

A surface pixel is a foreground pixel with a background pixel above, below, left or right of it, or at
the border of the image: mask XOR its erosion by the cross (connectivity 1), where what lies outside the
image is background. MONAI (``get_mask_edges``) and medpy (``__surface_distances``) take the same one.

All are functions of boolean arrays (H, W). Distances run from pixel centre to pixel centre, in pixels, or
in millimetres where ``spacing``, the distance of the centres of neighbouring (rows, columns), is given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from scanprior.errors import DataError

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Spacing = tuple[float, float]

_DENSE = 8
"""Fewer surface pixels than one in so many of the cropped image: a search tree is faster than a map."""


class SurfaceMetrics(NamedTuple):
    """Both metrics of a pair of masks; NaN where exactly one of the masks is empty, 0 where both are."""

    hausdorff95: float
    surface_distance: float


def hausdorff95(predicted: Mask, true: Mask, spacing: Spacing | None = None) -> float:
    """Return the 95 % Hausdorff distance of two masks.

    The larger of the two 95th percentiles: of the distances from each predicted surface pixel to the
    nearest true one, and of those back (Maier-Hein et al. 2024, Metrics reloaded, Nature Methods 21:195;
    MONAI takes the same one, medpy the percentile of both together). Percentiles are interpolated linearly
    between order statistics, NumPy's default.

    Args:
        predicted, true: (H, W) bool.
        spacing: millimetres between rows and between columns; None = pixels.

    Returns:
        0 where both masks are empty, NaN where exactly one is.

    Raises:
        DataError: the arrays are not boolean (H, W) of one shape, or the spacing is not above 0.
    """
    return surface_metrics(predicted, true, spacing).hausdorff95


def surface_distance(predicted: Mask, true: Mask, spacing: Spacing | None = None) -> float:
    """Return the average symmetric surface distance of two masks.

    The mean over the surface pixels of both masks together of the distance to the nearest surface pixel of
    the other mask: both directions are pooled, so the longer surface counts for more (Heimann et al. 2009,
    IEEE TMI 28:1251; MONAI with ``symmetric=True`` does the same, medpy averages the two means).

    Arguments, empty masks and errors as for ``hausdorff95``.
    """
    return surface_metrics(predicted, true, spacing).surface_distance


def surface_metrics(predicted: Mask, true: Mask, spacing: Spacing | None = None) -> SurfaceMetrics:
    """Return both metrics at the cost of one; arguments, empty masks and errors as for ``hausdorff95``."""
    check_masks(predicted, true, spacing)
    filled = bool(predicted.any()), bool(true.any())
    if not all(filled):
        value = float("nan") if any(filled) else 0.0
        return SurfaceMetrics(value, value)
    there, back = surface_distances(predicted, true, spacing)
    return SurfaceMetrics(
        float(max(np.percentile(there, 95), np.percentile(back, 95))),
        float(np.concatenate([there, back]).mean()),
    )


def surface_distances(predicted: Mask, true: Mask, spacing: Spacing | None = None) -> tuple[Floats, Floats]:
    """Return the distance of each predicted surface pixel to the true surface, and of each true one back.

    Both masks must have foreground. They are cropped to the box that holds both, which changes nothing: the
    nearest surface pixel lies in the box, and what the crop takes away is background.
    """
    box = _box(predicted | true)
    edges = surface(predicted[box]), surface(true[box])
    scale = np.array(spacing or (1.0, 1.0))
    total = sum(int(np.count_nonzero(edge)) for edge in edges)
    measure = _by_tree if total * _DENSE < edges[0].size else _by_map
    return measure(edges[0], edges[1], scale), measure(edges[1], edges[0], scale)


def surface(mask: Mask) -> Mask:
    """Return (H, W) True at the surface pixels of a mask (H, W)."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inner


def check_masks(predicted: Mask, true: Mask, spacing: Spacing | None = None) -> None:
    """Refuse what is not a pair of masks of one image.

    Raises:
        DataError: the arrays are not boolean (H, W) of one shape, or the spacing is not above 0.
    """
    for name, mask in (("predicted", predicted), ("true", true)):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise DataError(
                f"the {name} mask is {mask.dtype} of shape {mask.shape}; a mask is boolean (H, W), one a class"
            )
    if predicted.shape != true.shape:
        raise DataError(
            f"the predicted mask is {predicted.shape} and the true one {true.shape}; resize one to the other first"
        )
    if spacing is not None and not (len(spacing) == 2 and all(0 < step < np.inf for step in spacing)):
        raise DataError(
            f"spacing is {spacing}; it is the millimetres between rows and between columns, above 0"
        )


def _box(mask: Mask) -> tuple[slice, slice]:
    """The smallest box that holds the foreground."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _by_tree(start: Mask, goal: Mask, scale: Floats) -> Floats:
    """Distance from each True pixel of the one to the nearest of the other, by a search tree."""
    tree = cKDTree(np.argwhere(goal) * scale, compact_nodes=False, balanced_tree=False)
    found: Floats = tree.query(np.argwhere(start) * scale)[0]
    return found


def _by_map(start: Mask, goal: Mask, scale: Floats) -> Floats:
    """The same, by a distance transform: the time does not grow with the surface."""
    nearest = ndimage.distance_transform_edt(
        ~goal, sampling=scale, return_distances=False, return_indices=True
    )
    at = np.flatnonzero(start)
    steps = [
        (to.ravel()[at] - place) * step
        for to, place, step in zip(nearest, np.divmod(at, start.shape[1]), scale, strict=True)
    ]
    found: Floats = np.sqrt(steps[0] ** 2 + steps[1] ** 2)
    return found
