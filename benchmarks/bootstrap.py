"""A 95 % bootstrap interval of AUROC, against a loop over ``sklearn.metrics.roc_auc_score``.

n = 5,000 images, 1,000 resamples. Ours: ``resample_weights`` and ``Ranking.auroc`` as in ``evaluate``.
Reference: for every resample, the same keyed draws turned into image numbers, and scikit-learn's score of
those images. Both times include the draws. The AUROC of every resample is compared as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.measure import Row, Settings, Side, in_turns, speed_row
from scanprior import keyed
from scanprior.evaluation.bootstrap import percentile_interval, resample_weights
from scanprior.evaluation.ranking import Ranking

Floats = NDArray[np.float64]


def run(settings: Settings) -> list[Row]:
    """Measure the time, and how far the two are apart."""
    images, resamples, seed = settings.of(5000, 200), settings.of(1000, 20), 0
    draw = np.random.default_rng(0)
    truth = (draw.random(images) < 0.3).astype(np.float64)
    score = np.round(draw.normal(truth, 1.5), 3)  # rounded, so that there are ties
    every = np.arange(images, dtype=np.int64)

    def ours() -> Floats:
        ranking = Ranking(truth, score)
        found = np.concatenate([ranking.auroc(w) for w in resample_weights(every, resamples, seed)])
        percentile_interval(found, images, 0.95)
        return found

    def reference() -> Floats:
        key, found = keyed.key(seed, "bootstrap"), np.empty(resamples)
        for number in range(resamples):
            chosen = (keyed.uniform(key, [number], images)[0] * images).astype(np.int64)
            found[number] = roc_auc_score(truth[chosen], score[chosen])
        percentile_interval(found, images, 0.95)
        return found

    apart = float(np.abs(ours() - reference()).max())
    fast, slow = in_turns(ours, reference, settings.repeats, warm_up=0)
    sides = Side("vectorised", "s", fast), Side("loop over scikit-learn", "s", slow)
    what = f"n={images:,}, {resamples:,} resamples"
    return [
        speed_row("AUROC bootstrap interval", *sides, target=20.0, note=what),
        Row("AUROC of the same resamples: greatest difference", apart, "", 1e-12, "<=", note=what),
    ]
