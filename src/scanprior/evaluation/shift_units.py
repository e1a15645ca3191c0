"""Who moves together in a permutation of two sets: the images of a patient in one set are a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior import keyed
from scanprior.errors import DataError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """The images of two sets, one after the other, by patient and by unit.

    Attributes:
        patient: (n,) patient numbers 0..P-1.
        unit: (n,) unit numbers 0..U-1; a patient with images in both sets has two.
        owner: (U,) the patient of each unit.
        in_reference: (U,) whether a unit is of the reference.
    """

    patient: Codes
    unit: Codes
    owner: Codes
    in_reference: NDArray[np.bool_]

    @classmethod
    def of(cls, patient: Codes, in_reference: NDArray[np.bool_]) -> Units:
        """Number patients and units of images."""
        patient = np.unique(patient, return_inverse=True)[1].astype(np.int64)
        pairs, unit = np.unique(2 * patient + ~in_reference, return_inverse=True)
        return cls(patient, unit.astype(np.int64), pairs // 2, pairs % 2 == 0)

    @property
    def sizes(self) -> Floats:
        """(U,) images of each unit."""
        return np.bincount(self.unit, minlength=len(self.owner)).astype(np.float64)

    @property
    def images(self) -> tuple[int, int]:
        """Images of the reference and of the target."""
        reference = int(self.sizes[self.in_reference].sum())
        return reference, len(self.unit) - reference

    @property
    def patients(self) -> tuple[int, int]:
        """Patients of the reference and of the target."""
        return int(self.in_reference.sum()), int((~self.in_reference).sum())

    @property
    def shared(self) -> int:
        """Patients with images in both sets."""
        return len(self.owner) - len(np.unique(self.owner))

    def take(self, rows: NDArray[np.intp]) -> Units:
        """Return the units of some of the images."""
        return Units.of(self.patient[rows], self.in_reference[self.unit[rows]])

    def subsample(self, most: int, key: int) -> NDArray[np.intp]:
        """Return the rows of at most ``most`` images, whole patients in a drawn order.

        A set smaller than half of ``most`` stays whole, and the other has the rest.
        """
        reference, target = self.images
        if reference + target <= most:
            return np.arange(len(self.unit))
        quota = max(most // 2, most - target), max(most // 2, most - reference)
        rank = np.argsort(keyed.permutation(key, int(self.owner.max()) + 1))
        chosen = np.zeros(len(self.owner), dtype=bool)
        for side, room in ((self.in_reference, quota[0]), (~self.in_reference, quota[1])):
            order = np.flatnonzero(side)[np.argsort(rank[self.owner[side]])]
            chosen[order[np.cumsum(self.sizes[order]) <= room]] = True
        return np.flatnonzero(chosen[self.unit])

    def permutations(self, count: int, key: int) -> Floats:
        """Return (count + 1, U) 1 where a unit is in the reference, else 0; row 0 is as observed.

        Row i depends on (key, i) and the number of units alone.
        """
        sides = np.empty((count + 1, len(self.owner)))
        sides[0] = self.in_reference
        draws = keyed.uniform(key, np.arange(1, count + 1), len(self.owner))
        units_of_owner = np.bincount(self.owner)
        alone = np.flatnonzero(units_of_owner[self.owner] == 1)
        order = draws[:, alone].argsort(axis=1).argsort(axis=1)
        sides[1:, alone] = order < np.count_nonzero(self.in_reference[alone])
        # The two units of a patient are neighbours, the reference's first.
        first = np.flatnonzero((units_of_owner[self.owner] == 2) & self.in_reference)
        stays = draws[:, first] < 0.5
        sides[1:, first], sides[1:, first + 1] = stays, ~stays
        return sides


def units_of(counts: tuple[int, int], patients: tuple[Sequence[Any] | None, Sequence[Any] | None]) -> Units:
    """Return the units of two sets.

    Args:
        counts: images of the reference and of the target.
        patients: of each image, or None; equal names (as text) are the same patient, a missing one is
            nobody else.

    Raises:
        DataError: not one patient an image.
    """
    names: list[str] = []
    for count, given, what in zip(counts, patients, ("reference", "target"), strict=True):
        ids = np.full(count, None) if given is None else pd.Series(given, dtype=object).to_numpy()
        if len(ids) != count:
            raise DataError(
                f"shift: the {what} has {count} images and {len(ids)} patients; give one patient an image"
            )
        named = zip(ids, pd.isna(ids), strict=True)
        names += [f"{what} {row}" if alone else f"patient {who}" for row, (who, alone) in enumerate(named)]
    in_reference = np.arange(sum(counts)) < counts[0]
    return Units.of(np.unique(names, return_inverse=True)[1].astype(np.int64), in_reference)
