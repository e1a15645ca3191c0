"""How unlike the training images an image is: the distance of its descriptor from theirs, and when that is too far.

The distribution of the training images' descriptors is a Gaussian whose covariance is that of its leading principal
components and even in all other directions (probabilistic PCA, Tipping and Bishop 1999); the score of an image is the
squared Mahalanobis distance under it. From which score on an image is called an outlier is chosen on validation images,
which were not trained on: as a conformal p-value (Vovk et al. 2005; Bates et al. 2023), it holds for any distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scanprior.blas import one_blas_thread
from scanprior.evaluation.labels import groups_of
from scanprior.evaluation.shares import by_site, share_interval

Floats = NDArray[np.float64]

COMPONENTS = 128
"""Principal components at most; a quarter of the number of images where these are fewer."""


@dataclass(frozen=True)
class OutlierScore:
    """The fitted distribution, and the scores of images that were not fitted on.

    Attributes:
        mean: (D,).
        components: (R, D), orthonormal.
        variances: (R,) along them.
        rest: variance in every other direction.
        validation: (M,) sorted scores of validation images; empty where there are none.
    """

    mean: Floats
    components: Floats
    variances: Floats
    rest: float
    validation: Floats

    @classmethod
    def fit(
        cls, descriptors: NDArray[np.floating[Any]], validation: NDArray[np.floating[Any]]
    ) -> OutlierScore:
        """Fit to the descriptors of training images (N, D), N at least 8, and score those of validation images (M, D).

        Raises:
            ValueError: fewer than eight training images.
        """
        if len(descriptors) < 8:
            raise ValueError(f"{len(descriptors)} images are too few to fit a distribution to; 8 are needed")
        wanted = min(COMPONENTS, len(descriptors) // 4, descriptors.shape[1] - 1)
        pca = PCA(max(1, wanted), svd_solver="randomized", random_state=0, power_iteration_normalizer="QR")
        with np.errstate(
            invalid="ignore"
        ):  # of images that are all alike it divides 0 by 0 for a share unused here
            pca.fit(np.asarray(descriptors, dtype=np.float64))
        least = 1e-12 + 1e-6 * float(pca.explained_variance_.max())  # of images that are all alike
        # scikit-learn's noise is the mean over the directions that so few images can fill, not over all that are left
        directions, rank = descriptors.shape[1], len(pca.components_)
        rest = float(pca.noise_variance_) * (min(descriptors.shape) - rank) / (directions - rank)
        found = cls(
            pca.mean_, pca.components_, pca.explained_variance_.clip(least), max(rest, least), np.zeros(0)
        )
        return cls(
            found.mean, found.components, found.variances, found.rest, np.sort(found.scores(validation))
        )

    def scores(self, descriptors: NDArray[np.floating[Any]]) -> Floats:
        """Return (B,) squared distances of descriptors (B, D), divided by D: 1 on average over the training images."""
        away = np.asarray(descriptors, dtype=np.float64) - self.mean
        with one_blas_thread():  # every batch that is predicted is scored
            along = away @ self.components.T
        outside = (away**2).sum(axis=1) - (along**2).sum(axis=1)
        whole = (along**2 / self.variances).sum(axis=1) + outside.clip(0) / self.rest
        return np.asarray(whole / len(self.mean))

    def p_values(self, scores: Floats) -> Floats:
        """Return (B,): how many validation images, this one counted among them, lie as far out; NaN without any."""
        if not len(self.validation):
            return np.full(len(scores), np.nan)
        as_far = len(self.validation) - np.searchsorted(self.validation, scores, side="left")
        return np.asarray((as_far + 1) / (len(self.validation) + 1))

    def threshold(self, false_alarms: float) -> float:
        """Return the score above which the p-value is at most the wanted rate of false alarms.

        Infinite where there are too few validation images for that rate: 1 / rate - 1 are needed.
        """
        # of n + 1 ranks the highest floor(rate (n + 1)) are outliers: one of them is the image's own
        allowed = int(np.floor(false_alarms * (len(self.validation) + 1) + 1e-9))
        return float("inf") if allowed < 1 else float(self.validation[len(self.validation) - allowed])


def flagged_shares(
    table: pd.DataFrame, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure which share of images is called an outlier.

    Args:
        table: one row an image: ``outlier``, true or false; ``site`` where it is known, and what ``groups_of`` looks
            for. Rows with an ``error`` take no part.
        level, resamples, seed: of the intervals, see ``share_interval``.

    Returns:
        JSON values, of all images and of those of each site: ``site`` (None = all), ``share`` with ``low``, ``high``,
        ``interval`` (how it was made), ``n``, and ``reason`` (why there is no interval). [] without images.
    """
    if "error" in table:
        table = table[table["error"].isna()]
    if not len(table):
        return []
    groups, unit = groups_of(table)
    flagged = table["outlier"].to_numpy(np.bool_)
    rows = []
    for site, here in by_site(table):
        found = share_interval(flagged[here], groups[here], unit, level=level, resamples=resamples, seed=seed)
        rows.append(
            {
                "site": site,
                "share": float(flagged[here].mean()),
                "low": found.low,
                "high": found.high,
                "interval": found.how,
                "n": int(here.sum()),
                "reason": found.reason,
            }
        )
    return rows
