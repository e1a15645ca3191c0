"""Two statistics of the difference of two sets, for many permutations of their patients at once.

Who is in the reference is a matrix ``sides`` (R + 1, U) of 0 and 1, a row a permutation and a column a unit
(the images of one patient in one set); row 0 is as observed. Kernel and classifier are computed once, and
every permutation costs a matrix product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import pdist

from scanprior import keyed
from scanprior.evaluation.shift_units import Units

Floats = NDArray[np.float64]

FOLDS = 5
_BANDWIDTHS = (
    0.5,
    1.0,
    2.0,
)  # of the median distance; one kernel of three scales sees coarse and fine shifts
_RIDGE = 0.1  # [ours] of the mean variance of a feature, 1
_MEDIAN_OF = 500  # images whose distances give the median
_BLOCK = 500  # rows or permutations worked on at a time
_DIGITS = 10  # statistics that differ by less are ties: what is left of rounding


def standardise(features: Floats) -> Floats:
    """Return (n, D) features with mean 0 and deviation 1; those that do not vary are 0."""
    centred: Floats = features - features.mean(axis=0)
    deviation = centred.std(axis=0)
    varies = deviation > 1e-9 * np.abs(features).max(axis=0, initial=0.0)
    scaled: Floats = np.divide(centred, deviation, out=np.zeros_like(centred), where=varies)
    return scaled


def kernel_sums(features: Floats, units: Units, key: int) -> tuple[Floats, float]:
    """Return the kernel summed over the pairs of images of any two units (U, U), and the bandwidth.

    Pairs of images of the same patient count 0. The bandwidth is the median distance among some images,
    drawn by ``key``.
    """
    drawn = keyed.permutation(key, len(features))[:_MEDIAN_OF]
    distances = pdist(features[drawn])
    bandwidth = float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
    lengths = np.square(features).sum(axis=1)
    rows = np.empty((len(features), len(units.owner)))
    for start in range(0, len(features), _BLOCK):
        part = slice(start, start + _BLOCK)
        squared = lengths[part, None] + lengths - 2 * features[part] @ features.T
        np.maximum(squared, 0, out=squared)
        kernels = (np.exp(squared * (-0.5 / (scale * bandwidth) ** 2)) for scale in _BANDWIDTHS)
        rows[part] = _by_unit(sum(kernels, start=np.zeros_like(squared)) / len(_BANDWIDTHS), units)
    sums = _by_unit(rows.T, units)
    sums[units.owner[:, None] == units.owner] = 0
    return sums, bandwidth


def _by_unit(matrix: Floats, units: Units) -> Floats:
    """Sum the columns (k, n) of the images of each unit: (k, U)."""
    order = np.argsort(units.unit, kind="stable")
    begins = np.searchsorted(units.unit[order], np.arange(len(units.owner)))
    summed: Floats = np.add.reduceat(matrix[:, order], begins, axis=1)
    return summed


def discrepancies(kernel: Floats, units: Units, sides: Floats) -> tuple[Floats, Floats]:
    """Return the unbiased squared MMD (R + 1,) and the mean kernel between the sets (R + 1,).

    Means are over pairs of images of different patients.
    """
    sums, counts = _sums(kernel, sides), _pairs(units, sides)
    within_first, between, within_second = (
        part / np.maximum(number, 1) for part, number in zip(sums, counts, strict=True)
    )
    return np.round(within_first + within_second - 2 * between, _DIGITS), between


def _sums(kernel: Floats, sides: Floats) -> tuple[Floats, Floats, Floats]:
    """Sum a symmetric (U, U) matrix within the reference, between the sets, within the target."""
    first = np.einsum("ru,ru->r", sides @ kernel, sides)
    between = sides @ kernel.sum(axis=1) - first
    return first, between, kernel.sum() - first - 2 * between


def _pairs(units: Units, sides: Floats) -> tuple[Floats, Floats, Floats]:
    """Count the pairs of images of different patients in those three parts."""
    sizes = units.sizes
    # The two units of a patient in both sets are never on the same side.
    own = (np.square(np.bincount(units.patient)).sum() - np.square(sizes).sum()) / 2
    first = sides @ sizes
    second = sizes.sum() - first
    return (
        first**2 - sides @ np.square(sizes),
        first * second - own,
        second**2 - (1 - sides) @ np.square(sizes),
    )


def aurocs(features: Floats, units: Units, sides: Floats, key: int) -> Floats:
    """Return (R + 1,) the AUROC of telling the target from the reference by features.

    A ridge classifier (which ranks as a regularised linear discriminant does), cross-validated in folds
    of patients that do not depend on the sides. Its scores are linear in the labels it is trained on, so one
    matrix gives those of all permutations; logistic regression would be trained R times.
    """
    by_unit = _by_unit(_hat(features, _folds(units, key)), units)
    made = np.empty(len(sides))
    for start in range(0, len(sides), _BLOCK):
        target = 1 - sides[start : start + _BLOCK].T  # (U, r)
        ranks = stats.rankdata(np.round(by_unit @ target, _DIGITS), axis=0)
        labels = target[units.unit]
        positives = labels.sum(axis=0)
        wins = (ranks * labels).sum(axis=0) - positives * (positives + 1) / 2
        made[start : start + _BLOCK] = wins / (positives * (len(features) - positives))
    return np.round(made, _DIGITS)


def _folds(units: Units, key: int) -> NDArray[np.int64]:
    """Return (n,) fold numbers; patients are dealt to the folds in a drawn order."""
    order = np.argsort(keyed.permutation(key, int(units.owner.max()) + 1))
    folds: NDArray[np.int64] = (order % FOLDS)[units.patient]
    return folds


def _hat(features: Floats, folds: NDArray[np.int64]) -> Floats:
    """Return (n, n) H: H @ y are the scores of images by classifiers trained on y outside their fold.

    Scores are relative to the training images' mean, so that folds of different mixtures compare.
    """
    if features.shape[1] > len(features):
        # A rotation that keeps all there is: a ridge does not depend on the axes.
        left, singular, _ = np.linalg.svd(features, full_matrices=False)
        features = left * singular
    hat = np.zeros((len(features), len(features)))
    width = features.shape[1]
    for fold in range(FOLDS):
        held, used = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        centre = features[used].mean(axis=0)
        training = features[used] - centre
        gram = training.T @ training
        gram.flat[:: width + 1] += _RIDGE * len(used)
        weights = cho_solve(cho_factor(gram), training.T)
        hat[np.ix_(held, used)] = (features[held] - centre) @ weights
    return hat


def p_values(statistic: Floats) -> Floats:
    """Return for each row (R + 1,) the share of all rows whose statistic is at least as large.

    That of row 0, the observed one, is (1 + count) / (1 + R), which is exact: under no shift all rows are
    alike (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39).
    """
    in_order = np.sort(statistic)
    at_least = len(statistic) - np.searchsorted(in_order, statistic, side="left")
    return at_least / len(statistic)
