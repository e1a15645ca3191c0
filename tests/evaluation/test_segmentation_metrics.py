"""Metrics of masks: against all pairs of surface pixels, under shifts and spacings, with empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from scanprior.errors import DataError
from scanprior.evaluation import dice, hausdorff95, iou, mask_metrics, mask_row, surface_distance
from scanprior.evaluation.segmentation import METRICS
from scanprior.evaluation.surface import _by_map, _by_tree, surface, surface_distances

Mask = NDArray[np.bool_]
SMALL = settings(deadline=None, max_examples=60)
SEEDS = st.integers(0, 2**31)
STEPS = st.floats(0.05, 20.0)
KINDS = st.sampled_from(["blobs", "noise", "dots", "full"])


def made(draw: np.random.Generator, kind: str, shape: tuple[int, int]) -> Mask:
    """A mask with at least one foreground pixel."""
    if kind == "blobs":
        field = ndimage.gaussian_filter(draw.normal(size=shape), 2.0)
        mask = field > np.quantile(field, 0.7)
    else:
        mask = draw.random(shape) < {"noise": 0.5, "dots": 0.02, "full": 1.0}[kind]
    mask.flat[draw.integers(mask.size)] = True
    return mask


def pair(seed: int, kinds: tuple[str, str]) -> tuple[Mask, Mask]:
    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(1, 25, 2).tolist())
    return made(draw, kinds[0], shape), made(draw, kinds[1], shape)


def slowly(predicted: Mask, true: Mask, spacing: tuple[float, float] | None) -> tuple[float, float]:
    """Both metrics from SciPy's erosion and the distances of all pairs of surface pixels."""
    cross = ndimage.generate_binary_structure(2, 1)
    edges = [mask ^ ndimage.binary_erosion(mask, cross) for mask in (predicted, true)]
    apart = cdist(*(np.argwhere(edge) * np.array(spacing or (1, 1)) for edge in edges))
    there, back = apart.min(axis=1), apart.min(axis=0)
    far = max(np.quantile(each, 0.95, method="linear") for each in (there, back))
    return float(far), float((there.sum() + back.sum()) / (len(there) + len(back)))


@SMALL
@given(SEEDS, st.tuples(KINDS, KINDS), st.none() | st.tuples(STEPS, STEPS))
def test_distances_are_those_of_all_pairs(
    seed: int, kinds: tuple[str, str], spacing: tuple[float, float] | None
) -> None:
    predicted, true = pair(seed, kinds)
    wanted = slowly(predicted, true, spacing)
    found = hausdorff95(predicted, true, spacing), surface_distance(predicted, true, spacing)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@SMALL
@given(SEEDS, st.tuples(KINDS, KINDS), st.tuples(STEPS, STEPS))
def test_the_tree_and_the_map_agree(seed: int, kinds: tuple[str, str], spacing: tuple[float, float]) -> None:
    """Whichever of the two is taken, the distances are the same, pixel by pixel."""
    edges = [surface(mask) for mask in pair(seed, kinds)]
    tree, map_ = (measure(*edges, np.array(spacing)) for measure in (_by_tree, _by_map))
    np.testing.assert_allclose(tree, map_, rtol=1e-12)


def test_both_ways_are_taken() -> None:
    """Few surface pixels in a large box, and many: compared with the uncropped distance transform."""
    rows, columns = np.mgrid[:128, :128]
    discs = [(rows - 60) ** 2 + (columns - centre) ** 2 < 45**2 for centre in (60, 68)]
    noise = list(np.random.default_rng(0).random((2, 128, 128)) < 0.5)
    for predicted, true in (discs, noise):
        edges = [mask ^ ndimage.binary_erosion(mask) for mask in (predicted, true)]
        found = surface_distances(predicted, true, (0.7, 1.9))
        for each, start, goal in zip(found, edges, edges[::-1], strict=True):
            wanted = ndimage.distance_transform_edt(~goal, sampling=(0.7, 1.9))[start]
            np.testing.assert_allclose(each, wanted, rtol=1e-12)


@SMALL
@given(SEEDS, st.tuples(KINDS, KINDS), STEPS, STEPS)
def test_symmetric_and_scaled_by_the_spacing(
    seed: int, kinds: tuple[str, str], step: float, scale: float
) -> None:
    predicted, true = pair(seed, kinds)
    one, other = mask_metrics(predicted, true), mask_metrics(true, predicted)
    assert one == pytest.approx(other, rel=1e-12)
    spaced = mask_metrics(predicted, true, (step, 2 * step))
    scaled = mask_metrics(predicted, true, (scale * step, scale * 2 * step))
    for metric in ("hausdorff95", "surface_distance"):
        assert scaled[metric] == pytest.approx(scale * spaced[metric], rel=1e-9)
        assert mask_metrics(predicted, true, (step, step))[metric] == pytest.approx(
            step * one[metric], rel=1e-9
        )
    turned = mask_metrics(predicted.T, true.T, (2 * step, step))
    assert turned == pytest.approx(spaced, rel=1e-9)
    assert (spaced["dice"], spaced["iou"]) == (one["dice"], one["iou"])


@SMALL
@given(SEEDS, st.tuples(KINDS, KINDS), st.tuples(*[st.integers(1, 9)] * 4))
def test_a_shift_within_the_image_changes_nothing(
    seed: int, kinds: tuple[str, str], margins: tuple[int, int, int, int]
) -> None:
    top, bottom, left, right = margins
    masks = [np.pad(mask, ((top, bottom), (left, right))) for mask in pair(seed, kinds)]
    moved = [np.pad(mask[top:, left:], ((0, top), (0, left))) for mask in masks]  # now at the border
    assert mask_metrics(*masks) == mask_metrics(*moved)


@SMALL
@given(SEEDS, st.tuples(KINDS, KINDS))
def test_overlaps_are_those_of_sets(seed: int, kinds: tuple[str, str]) -> None:
    predicted, true = pair(seed, kinds)
    ours, theirs = (set(map(tuple, np.argwhere(mask).tolist())) for mask in (predicted, true))
    overlap = 2 * len(ours & theirs) / (len(ours) + len(theirs))
    assert dice(predicted, true) == pytest.approx(overlap)
    assert iou(predicted, true) == pytest.approx(len(ours & theirs) / len(ours | theirs))
    found = mask_metrics(predicted, true)
    assert (found["dice"], found["iou"]) == (dice(predicted, true), iou(predicted, true))
    assert found["iou"] == pytest.approx(overlap / (2 - overlap))
    assert mask_metrics(true, true) == {"dice": 1, "iou": 1, "hausdorff95": 0, "surface_distance": 0}


def test_by_hand() -> None:
    """Two single pixels three rows and four columns apart; a square and the same with a hole filled."""
    predicted, true = np.zeros((2, 9, 9), dtype=bool)
    predicted[1, 1] = true[4, 5] = True
    assert mask_metrics(predicted, true) == {"dice": 0, "iou": 0, "hausdorff95": 5, "surface_distance": 5}
    assert hausdorff95(predicted, true, (2.0, 0.0625)) == pytest.approx(math.hypot(6, 0.25))
    square = np.ones((3, 3), dtype=bool)  # all but the centre is surface: the border is background
    assert surface(square).sum() == 8 and not surface(square)[1, 1]
    ring = surface(square)
    assert mask_metrics(ring, square)["surface_distance"] == 0


def test_percentiles_are_directed_and_means_are_pooled() -> None:
    """In an image of one row every foreground pixel is surface."""
    true, predicted = np.zeros((2, 1, 60), dtype=bool)
    true[0, :40] = predicted[0, :40] = predicted[0, 49] = True  # one of 41 is 10 pixels off
    assert hausdorff95(predicted, true) == 0 and hausdorff95(predicted, true, (1.0, 9.0)) == 0
    assert surface_distance(predicted, true) == pytest.approx(10 / 81)  # 41 distances there, 40 back
    true[0, 1:], predicted[0, 1:] = False, False
    predicted[0, 10] = True  # distances 0 and 10 there, 0 back: a pooled percentile would be 9
    assert hausdorff95(predicted, true) == hausdorff95(true, predicted) == pytest.approx(9.5)
    assert surface_distance(predicted, true) == pytest.approx(10 / 3)


def test_empty_masks() -> None:
    empty, full = np.zeros((5, 7), dtype=bool), np.ones((5, 7), dtype=bool)
    assert mask_metrics(empty, empty) == {"dice": 1, "iou": 1, "hausdorff95": 0, "surface_distance": 0}
    for predicted, true, side in ((empty, full, "predicted"), (full, empty, "true")):
        found = mask_metrics(predicted, true)
        assert (found["dice"], found["iou"]) == (0, 0) == (dice(predicted, true), iou(predicted, true))
        assert math.isnan(found["hausdorff95"]) and math.isnan(found["surface_distance"])
        row = mask_row({"lung": predicted, "heart": full}, {"lung": true, "heart": full})
        assert row["reason:lung"] == f"n/a because the {side} mask is empty" and row["reason:heart"] is None
        assert set(row) == {f"{each}:{name}" for each in (*METRICS, "reason") for name in ("lung", "heart")}
    nothing = np.zeros((0, 4), dtype=bool)
    assert mask_metrics(nothing, nothing)["dice"] == 1


def test_what_is_no_pair_of_masks_is_refused() -> None:
    mask = np.ones((4, 4), dtype=bool)
    with pytest.raises(DataError, match="predicted mask is float64 of shape"):
        dice(mask.astype(float), mask)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"true mask is bool of shape \(1, 4, 4\)"):
        iou(mask, mask[None])
    with pytest.raises(DataError, match="resize one to the other"):
        mask_metrics(mask, mask[:3])
    for spacing in ((0.0, 1.0), (1.0, float("nan")), (1.0, 1.0, 1.0)):
        with pytest.raises(DataError, match="spacing is"):
            hausdorff95(mask, mask, spacing)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the predicted masks are of lung and the true ones of heart"):
        mask_row({"lung": mask}, {"heart": mask})
