"""Made tables of predictions, and worlds whose true metrics are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


def multiclass(draw: np.random.Generator, n: int, classes: Sequence[str], digits: int = 2) -> pd.DataFrame:
    """Random probabilities, rounded so that there are ties; labels that have something to do with them."""
    count = len(classes)
    label = draw.integers(0, count, n)
    found = draw.dirichlet(np.ones(count), n) + 0.3 * np.eye(count)[label]
    found = np.round(found / found.sum(axis=1, keepdims=True), digits)
    table = pd.DataFrame({"image": [f"{i:04d}.png" for i in range(n)], "label": np.array(classes)[label]})
    table["patient"] = [f"p{i // 2}" for i in range(n)]
    for number, name in enumerate(classes):
        table[f"prob:{name}"] = found[:, number]
    return table


def multilabel(draw: np.random.Generator, n: int, findings: Sequence[str], missing: float) -> pd.DataFrame:
    table = pd.DataFrame({"image": [f"{i:04d}.png" for i in range(n)], "patient": None})
    for name in findings:
        truth = (draw.random(n) < 0.4).astype(np.float64)
        table[f"prob:{name}"] = np.round((draw.random(n) + 0.4 * truth) / 1.4, 2)
        table[f"label:{name}"] = np.where(draw.random(n) < missing, np.nan, truth)
    return table


@dataclass(frozen=True)
class World:
    """Patients with 1 to ``images`` images whose scores are normal and correlated within the patient.

    Attributes:
        mixed: labels by image, correlated within the patient; else one label a patient.
    """

    patients: int
    prevalence: float
    auroc: float
    images: int = 3
    mixed: bool = False

    @property
    def shift(self) -> float:
        return float(np.sqrt(2) * stats.norm.ppf(self.auroc))

    @property
    def hit_rate(self) -> float:
        """Sensitivity, specificity and so accuracy at the middle between the two kinds."""
        return float(stats.norm.cdf(self.shift / 2))

    def draw(self, draw: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_], Floats]:
        groups = np.repeat(np.arange(self.patients), draw.integers(1, self.images + 1, self.patients))
        return groups, *self.of(draw, groups)

    def of(self, draw: np.random.Generator, groups: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Floats]:
        def correlated() -> Floats:
            return np.sqrt(0.5) * (draw.normal(size=self.patients)[groups] + draw.normal(size=len(groups)))

        trait = correlated() if self.mixed else draw.normal(size=self.patients)[groups]
        truth = trait < stats.norm.ppf(self.prevalence)
        return truth, correlated() + self.shift * truth

    def table(self, groups: NDArray[np.int64], truth: NDArray[np.bool_], score: Floats) -> pd.DataFrame:
        """Predictions whose threshold 0.5 is the middle between the two kinds."""
        sick = 1 / (1 + np.exp(-(score - self.shift / 2)))
        return pd.DataFrame(
            {
                "image": np.char.mod("%05d", np.arange(len(truth))),
                "patient": np.char.mod("p%05d", groups),
                "label": np.where(truth, "sick", "normal"),
                "prob:normal": 1 - sick,
                "prob:sick": sick,
            }
        )
