"""Find images that are the same: exactly, or to the eye.

Near duplicates are pairs whose 256-bit DCT hashes differ in at most ``distance`` bits and whose
standardised 16 x 16 thumbnails correlate at ``correlation`` or more (our definition). Both were set
on real images. Among the 7,200 radiographs of four public collections (over 17 million pairs in the
largest) only four pairs pass, and those are one picture under two names; the nearest hashes of
different patients are 36 bits apart. Among the 780 breast ultrasounds of BUSI, as grey JPEG with a
short side of 256, 185 pairs pass beside one of equal pixels: seen side by side, each shows one
scene, nearly always cropped by other pixels, and 8 have different labels. The 21 pairs there with
33 to 60 bits and 0.98 or more show one scene too, so the limits are a lower bound for such frames.
Among 1,633 dermoscopic images of HAM10000 none passes. Copies re-encoded as JPEG at quality 40, resized by 0.87, with
10 % more contrast and 15 grey levels more brightness, or with gamma 0.8, stay within 22 bits and
0.989. Negatives (a file whose MONOCHROME1 is wrong) are found too; crops of 3 %, mirrored and
rotated copies are not. 65,000 images take ten seconds on one core, and that grows a little slower
than the square of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from scanprior.data.measure import HASH_BITS

NEAR_DISTANCE = 32
NEAR_CORRELATION = 0.98

_COMPONENTS = 12
_BLOCK = 2048


def exact_groups(digests: Sequence[bytes]) -> list[NDArray[np.int64]]:
    """Return the positions of every digest that occurs more than once; empty digests never match."""
    places: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        if digest:
            places.setdefault(digest, []).append(position)
    return [np.array(group, dtype=np.int64) for group in places.values() if len(group) > 1]


@dataclass(frozen=True)
class NearPairs:
    """Pairs of near duplicates, ordered by position; all arrays have shape (P,).

    Attributes:
        first, second: int64 positions, first < second.
        distance: int64 number of differing hash bits (of the negative where ``inverted``).
        correlation: float64 of the thumbnails, in absolute value.
        inverted: whether one is the negative of the other.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.int64]
    correlation: NDArray[np.float64]
    inverted: NDArray[np.bool_]


def near_pairs(
    hashes: NDArray[np.uint8],
    thumbnails: NDArray[np.int8],
    *,
    distance: int = NEAR_DISTANCE,
    correlation: float = NEAR_CORRELATION,
) -> NearPairs:
    """Return every pair of images within both limits; exact, and without comparing all pairs.

    Two standardised thumbnails that correlate at r are sqrt(2 - 2r) apart as unit vectors, and a
    projection only shortens that. So a k-d tree over the 12 leading principal components yields
    a superset of the wanted pairs, which is then tested in full.

    Args:
        hashes: (n, 32) uint8, packed bits.
        thumbnails: (n, 256) int8, standardised.
        distance: largest number of differing bits.
        correlation: least correlation, in (0, 1].
    """
    found = [_none()]
    if len(thumbnails) > 1:
        points = _project(thumbnails)
        tree = cKDTree(points)
        radius = float(np.sqrt(max(2 - 2 * correlation, 0.0))) + 1e-6
        for start in range(0, len(points), _BLOCK):
            rows = tree.indices[start : start + _BLOCK].astype(np.int64)  # in the order of leaves: neighbours
            for inverted in (False, True):
                probe = cKDTree(-points[rows] if inverted else points[rows])
                near = probe.sparse_distance_matrix(tree, radius, output_type="ndarray")
                first, second = rows[near["i"]], near["j"].astype(np.int64)
                keep = first < second
                pairs = _measured(hashes, thumbnails, first[keep], second[keep], inverted)
                found.append(_take(pairs, (pairs.distance <= distance) & (pairs.correlation >= correlation)))
    joined = NearPairs(*(np.concatenate(parts) for parts in zip(*map(_fields, found), strict=True)))
    return _take(joined, np.lexsort((joined.second, joined.first)))


def _fields(pairs: NearPairs) -> tuple[NDArray[np.generic], ...]:
    return pairs.first, pairs.second, pairs.distance, pairs.correlation, pairs.inverted


def _take(pairs: NearPairs, which: NDArray[np.generic]) -> NearPairs:
    return NearPairs(*(field[which] for field in _fields(pairs)))


def _none() -> NearPairs:
    empty = np.zeros(0, dtype=np.int64)
    return NearPairs(empty, empty, empty, np.zeros(0), np.zeros(0, dtype=bool))


def _unit(thumbnails: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return (n, 256) float32 rows of mean 0 and length 1, whose dot products are correlations."""
    rows = thumbnails.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _project(thumbnails: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return (n, 12) coordinates on the principal components; works in blocks, so memory stays small."""
    blocks = range(0, len(thumbnails), _BLOCK)
    total = np.zeros(thumbnails.shape[1])
    moment = np.zeros((thumbnails.shape[1],) * 2)
    for start in blocks:
        rows = _unit(thumbnails[start : start + _BLOCK]).astype(np.float64)
        total += rows.sum(axis=0)
        moment += rows.T @ rows
    mean = total / len(thumbnails)
    axes = np.linalg.eigh(moment / len(thumbnails) - np.outer(mean, mean))[1][:, -_COMPONENTS:]
    kept = axes.astype(np.float32)
    return np.concatenate([_unit(thumbnails[start : start + _BLOCK]) @ kept for start in blocks])


def _measured(
    hashes: NDArray[np.uint8],
    thumbnails: NDArray[np.int8],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    inverted: bool,
) -> NearPairs:
    """Measure the pairs (first[i], second[i]); of a negative, every bit but the constant one is turned."""
    distance = np.empty(len(first), dtype=np.int64)
    correlation = np.empty(len(first))
    for start in range(0, len(first), 16 * _BLOCK):
        part = slice(start, start + 16 * _BLOCK)
        differing = np.bitwise_count(hashes[first[part]] ^ hashes[second[part]]).sum(axis=1, dtype=np.int64)
        distance[part] = HASH_BITS - 1 - differing if inverted else differing
        products = np.einsum("ij,ij->i", _unit(thumbnails[first[part]]), _unit(thumbnails[second[part]]))
        correlation[part] = -products if inverted else products
    return NearPairs(first, second, distance, correlation, np.full(len(first), inverted))


def clusters(
    count: int, groups: Sequence[NDArray[np.int64]], pairs: NearPairs | None = None
) -> NDArray[np.int64]:
    """Return, for ``count`` images, the smallest position connected with each by groups and pairs, (count,)."""
    starts = [group[:-1] for group in groups] + ([pairs.first] if pairs else [])
    ends = [group[1:] for group in groups] + ([pairs.second] if pairs else [])
    if not starts:
        return np.arange(count, dtype=np.int64)
    first, second = np.concatenate(starts), np.concatenate(ends)
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    smallest = np.unique(labels, return_index=True)[1].astype(np.int64)
    found: NDArray[np.int64] = smallest[labels]
    return found
