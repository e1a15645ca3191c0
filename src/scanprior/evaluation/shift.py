"""Whether images differ from a reference, without labels: a two-sample test on encoder features.

Two statistics see different shifts. The kernel one (MMD) compares whole distributions, so it also sees
a change of spread. The classifier one asks how well a linear classifier tells the sets apart; it finds
a shift in a few directions among many that vary, and its AUROC needs no explanation. The permutations
of the patients are the same for both, which gives one exact p-value of the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scanprior import keyed
from scanprior.errors import ConfigError, DataError
from scanprior.evaluation import shift_statistics as statistics
from scanprior.evaluation.shift_units import Units, units_of

Floats = NDArray[np.float64]

MOST_IMAGES = 4000
"""Of both sets together; the test holds a few matrices of this many rows and columns, of 128 MB each.

With 384 features and 1000 permutations a process then peaks at 1.3 GB and takes 6 s of one core.
"""

LEAST_PATIENTS = 10
"""In each set [our definition]; with fewer, what looks like a shift is who was drawn."""


def shift_score(
    reference: ArrayLike,
    target: ArrayLike,
    *,
    reference_patients: Sequence[Any] | None = None,
    target_patients: Sequence[Any] | None = None,
    permutations: int = 1000,
    seed: int = 0,
    level: float = 0.05,
) -> dict[str, Any]:
    """Test whether the images of ``target`` come from where those of ``reference`` come from.

    Features are standardised by mean and deviation of both sets together. Those of the reference alone
    treat the sets unequally, and permutations are no longer exact: with them 0.31 of 500 unshifted pairs of
    sets (15 and 30 images, 16 heavy-tailed features) were flagged at 0.05, with these 0.04. All images of a
    patient change sides together. A patient with images in both sets (before and after, or a drifted copy)
    swaps its two parts; the others are dealt anew to two sets of as many patients as before.

    Args:
        reference: (n, D) features of one encoder, finite.
        target: (m, D) features of the same encoder.
        reference_patients, target_patients: of each image; equal names are the same patient. None, or a
            missing name: the image is a patient of its own.
        permutations: R; the smallest p-value is 1 / (R + 1).
        seed: key of the permutations, the folds and the subsample.
        level: of the flag, in (0, 1).

    Returns:
        JSON values. ``flag``: whether p <= level. ``p``: of the smaller of the two p-values, compared
        with that of every permutation, so no correction is left to make (Westfall and Young 1993).
        ``mmd``: ``value``, the unbiased squared maximum mean discrepancy (Gretton et al. 2012, JMLR
        13:723) over pairs of images of different patients, which may be below 0; the kernel is the mean of
        three Gaussians, of half, once and twice ``bandwidth``, the median distance; ``effect``, the value
        over the mean squared distance between the sets in the kernel's space: at most 1, about 0 without
        a shift whatever the number of images (that of Szekely and Rizzo's energy statistics, with a
        kernel); ``p``. ``classifier``: ``auroc`` of a ridge classifier on patients it was not trained on, 0.5
        = cannot tell; ``p``. It has no interval: folds share training images, and no unbiased variance is
        known (Bengio and Grandvalet 2004, JMLR 5:1089). ``images``, ``patients``, ``left_out`` (images
        dropped by whole patients, drawn by the seed, to hold ``MOST_IMAGES``), ``shared_patients``, ``identical``
        (target images whose features are those of a reference image; without patients given they hide a
        shift), ``unit``, ``features``, ``permutations``, ``seed``, ``level``, ``reason``: why there is no score,
        else None; then ``flag`` and all scores are None.

    Raises:
        DataError: features that are no finite (n, D) table, of different widths, or patients that are not
            one an image.
        ConfigError: a level that no permutation can reach, or that is no level.
    """
    _check_settings(permutations, level)
    first, second = _features(reference, "reference"), _features(target, "target")
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"shift: the reference has {first.shape[1]} features and the target {second.shape[1]}; "
            "take both from the same encoder"
        )
    units = units_of((len(first), len(second)), (reference_patients, target_patients))
    kept = units.subsample(MOST_IMAGES, keyed.key(seed, "shift subsample"))
    features = np.concatenate([first, second])[kept]
    full, units = units, units.take(kept)
    result: dict[str, Any] = {
        "flag": None,
        "p": None,
        "mmd": {"value": None, "effect": None, "p": None, "bandwidth": None},
        "classifier": {"auroc": None, "p": None, "folds": statistics.FOLDS},
        "reason": None,
        "images": _both(units.images),
        "patients": _both(units.patients),
        "left_out": _both((full.images[0] - units.images[0], full.images[1] - units.images[1])),
        "shared_patients": units.shared,
        "identical": _identical(first, second),
        "unit": "image" if reference_patients is None and target_patients is None else "patient",
        "features": first.shape[1],
        "permutations": permutations,
        "seed": seed,
        "level": level,
    }
    if min(units.patients) < LEAST_PATIENTS:
        result["reason"] = (
            f"a shift needs {LEAST_PATIENTS} {result['unit']}s in each set, found {units.patients[0]} in the "
            f"reference and {units.patients[1]} in the target"
        )
        return result
    _score(result, features, units)
    return result


def _score(result: dict[str, Any], features: Floats, units: Units) -> None:
    seed, permutations = result["seed"], result["permutations"]
    scaled = statistics.standardise(features)
    sides = units.permutations(permutations, keyed.key(seed, "shift permutations"))
    kernel, bandwidth = statistics.kernel_sums(scaled, units, keyed.key(seed, "shift bandwidth"))
    discrepancy, between = statistics.discrepancies(kernel, units, sides)
    aurocs = statistics.aurocs(scaled, units, sides, keyed.key(seed, "shift folds"))
    by_kernel, by_classifier = statistics.p_values(discrepancy), statistics.p_values(aurocs)
    together = float(statistics.p_values(-np.minimum(by_kernel, by_classifier))[0])
    # In the kernel's space two images are sqrt(2 (1 - k)) apart.
    apart = 2 * (1 - float(between[0]))
    result["p"] = together
    result["flag"] = together <= result["level"]
    result["mmd"] = {
        "value": float(discrepancy[0]),
        "effect": float(discrepancy[0]) / apart if apart > 1e-12 else 0.0,
        "p": float(by_kernel[0]),
        "bandwidth": bandwidth,
    }
    result["classifier"] |= {"auroc": float(aurocs[0]), "p": float(by_classifier[0])}


def _check_settings(permutations: int, level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"shift: level is {level:g}; it lies between 0 and 1, such as 0.05")
    if permutations < 1 or 1 / (permutations + 1) > level:
        least = int(np.ceil(1 / level)) - 1
        raise ConfigError(
            f"shift: {permutations} permutations never reach the level {level:g}; take {least} or more"
        )


def _features(values: ArrayLike, name: str) -> Floats:
    try:
        table = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"shift: the {name}'s features are no table of numbers; give (images, D)") from error
    if table.ndim != 2 or not table.shape[1]:
        raise DataError(f"shift: the {name}'s features have the shape {table.shape}; give (images, D)")
    broken = ~np.isfinite(table).all(axis=1)
    if broken.any():
        raise DataError(
            f"shift: {broken.sum()} of {len(table)} images of the {name} have features that are not finite, the first "
            f"in row {int(broken.argmax())}; leave out the images that could not be read"
        )
    return table


def _identical(first: Floats, second: Floats) -> int:
    known = {row.tobytes() for row in first + 0.0}
    return sum(row.tobytes() in known for row in second + 0.0)


def _both(counts: tuple[int, int]) -> dict[str, int]:
    return {"reference": counts[0], "target": counts[1]}
