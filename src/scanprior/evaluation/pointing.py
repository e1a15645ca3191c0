"""Do saliency maps lie where a reader drew the finding? The pointing game, and the share of saliency inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from scanprior.errors import DataError
from scanprior.evaluation.bootstrap import percentile_interval, resample_weights, two_sided_p
from scanprior.evaluation.labels import groups_of

Floats = NDArray[np.float64]
Map = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

POINTING = ("pointing_game", "energy_inside")


def pointing_game(maps: Sequence[Map], masks: Sequence[Mask], tolerance: float = 0.0) -> Floats:
    """Return which maps have their highest point in the mask, or near it (Zhang et al. 2018, IJCV 126:1084).

    Args:
        maps: n maps (H, W), at least 0; sizes may differ.
        masks: n masks of the same sizes.
        tolerance: pixels by which the point may miss the mask; the paper has 15 on photographs of about 500.

    Returns:
        (n,) 1 where the point hits, else 0. Of several points that are equally high, the share that hits: a map that
        is the same everywhere, or zero, scores as chance does.

    Raises:
        DataError: a map and its mask differ in size, a mask is empty, or a map has a value below 0 or none.
    """
    hits = []
    for saliency, mask in _pairs(maps, masks):
        highest = saliency == saliency.max()
        hits.append(float(_reached(mask, tolerance)[highest].mean()))
    return np.array(hits)


def energy_inside(maps: Sequence[Map], masks: Sequence[Mask]) -> Floats:
    """Return the share of each map's sum that lies in its mask (Wang et al. 2020, arXiv 1910.01279).

    Args:
        maps, masks: as for ``pointing_game``.

    Returns:
        (n,) in [0, 1]; of a map that is zero everywhere the mask's share of the area, as by chance.

    Raises:
        DataError: as for ``pointing_game``.
    """
    shares = []
    for saliency, mask in _pairs(maps, masks):
        whole = float(saliency.sum(dtype=np.float64))
        shares.append(
            float(saliency[mask].sum(dtype=np.float64)) / whole if whole > 0 else float(mask.mean())
        )
    return np.array(shares)


def chance(masks: Sequence[Mask], tolerance: float = 0.0) -> Floats:
    """Return (n,) what random saliency scores on average: the share of the area that is in a mask, or so near to it."""
    return np.array([float(_reached(mask, tolerance).mean()) for mask in masks])


def pointing_row(saliency: Map, mask: Mask, tolerance: float = 0.0) -> dict[str, Any]:
    """Return both scores of one map (H, W) and what chance scores, and whether the map is zero everywhere.

    Raises:
        DataError: as for ``pointing_game``.
    """
    maps, masks = [saliency], [mask]
    return {
        "pointing_game": float(pointing_game(maps, masks, tolerance)[0]),
        "pointing_game:chance": float(chance(masks, tolerance)[0]),
        "energy_inside": float(energy_inside(maps, masks)[0]),
        "energy_inside:chance": float(chance(masks)[0]),
        "silent": not bool(saliency.any()),
    }


def evaluate_pointing(
    table: pd.DataFrame, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[dict[str, Any]]:
    """Return the means of both scores over images, and their difference from chance, with bootstrap intervals.

    Args:
        table: one row an image, with the columns of ``pointing_row``, and ``patient`` where it is known.
        resamples: of the patients, or of the images where none is known.
        seed: key of the resamples.
        level: of the intervals.

    Returns:
        For each metric ``value``, ``low``, ``high``, ``chance``, ``difference`` (to chance, paired) with
        ``difference_low``, ``difference_high`` and ``p`` (two-sided); None where there are fewer than two patients.

    Raises:
        DataError: no image.
    """
    if not len(table):
        raise DataError("no image with a mask to point at")
    groups, unit = groups_of(table)
    count = int(groups.max()) + 1
    columns = [name for metric in POINTING for name in (metric, f"{metric}:chance")]
    values = table[columns].to_numpy(np.float64)
    drawn = [
        weights @ values / weights.sum(axis=1, keepdims=True)
        for weights in resample_weights(groups, resamples, seed)
    ]
    spread = dict(zip(columns, np.concatenate(drawn).T, strict=True))
    means = dict(zip(columns, values.mean(axis=0), strict=True))
    rows = []
    for metric in POINTING:
        by_chance = f"{metric}:chance"
        differences = spread[metric] - spread[by_chance]
        low, high = percentile_interval(spread[metric], count, level)
        under, over = percentile_interval(differences, count, level)
        row = {
            "metric": metric,
            "value": means[metric],
            "low": low,
            "high": high,
            "chance": means[by_chance],
            "difference": means[metric] - means[by_chance],
            "difference_low": under,
            "difference_high": over,
            "p": two_sided_p(differences, count),
        }
        known = {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in row.items()}
        rows.append({**known, "method": f"bootstrap over {unit}s, {resamples} resamples"})
    return rows


def _pairs(maps: Sequence[Map], masks: Sequence[Mask]) -> list[tuple[Map, Mask]]:
    if len(maps) != len(masks):
        raise DataError(f"{len(maps)} maps cannot be compared with {len(masks)} masks; give one mask a map")
    for number, (saliency, mask) in enumerate(zip(maps, masks, strict=True)):
        if saliency.shape != mask.shape:
            raise DataError(
                f"map {number} is {saliency.shape} and its mask {mask.shape}; bring them to one size"
            )
        if not mask.any():
            raise DataError(f"mask {number} is empty; leave its image out")
        if not (saliency >= 0).all():
            raise DataError(f"map {number} has values below 0 or that are none; saliency is at least 0")
    return list(zip(maps, masks, strict=True))


def _reached(mask: Mask, tolerance: float) -> Mask:
    """Return the pixels that are at most so many pixels from the mask."""
    if tolerance <= 0:
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= tolerance)
