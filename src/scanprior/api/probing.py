"""Whether pretraining still helps: a cheap classifier on frozen features, again and again while it runs.

It looks at labelled images of the training split alone, each predicted by a classifier that has seen no
image of its patient. Nothing is selected by it, and no held-out image takes part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scanprior import keyed
from scanprior.api.settings import ProbeConfig
from scanprior.api.sources import Images
from scanprior.data.loader import evaluation_batches
from scanprior.data.split import label_budget, owners_of
from scanprior.data.transforms import Preprocessing
from scanprior.errors import ConfigError, DataError
from scanprior.tasks.measure import measure

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""As DINO weighs neighbours (Caron et al. 2021, arXiv 2104.14294, appendix F)."""
FOLDS = 5


class TrainingProbe:
    """Measures an objective's encoder on labelled training images of one source.

    Args:
        images: of the pretraining.
        rows: (n,) the training rows.
        config: how, and on how many.
        preprocessing: of the encoder.
        seed: key of which images, and of the folds.

    Raises:
        ConfigError: no source of the name that is asked for.
        DataError: no source with one label column and two classes in its training images.
    """

    def __init__(
        self,
        images: Images,
        rows: NDArray[np.int64],
        config: ProbeConfig,
        preprocessing: Preprocessing,
        seed: int,
    ) -> None:
        self.config, self.preprocessing, self.store = config, preprocessing, images.store
        frame = images.frame.iloc[rows].drop(columns="split")  # the rows are those of training already
        if "label" not in frame:
            raise DataError("probe.every: the sources have no column of labels to probe with; set it to null")
        labelled = frame[frame["label"].notna()]
        sources = [
            name for name, part in labelled.groupby("source", sort=False) if part["label"].nunique() > 1
        ]
        if config.source is not None and config.source not in sources:
            raise ConfigError(
                f"probe.source: {config.source!r} is no source with two classes in its training images; these are: "
                f"{', '.join(map(str, sources)) or 'none'}"
            )
        if not sources:
            raise DataError(
                "probe.every: no source has labels of two classes in its training images; set it to null"
            )
        self.source = config.source or str(sources[0])
        part = labelled[labelled["source"] == self.source].reset_index()
        count = min(config.images, len(part))
        chosen = np.sort(label_budget(part, ["label"], count=count, seed=seed))
        part = part.iloc[chosen]
        self.rows = part["index"].to_numpy(np.int64)
        self.classes = sorted(part["label"].unique())
        self.targets = (
            part["label"].map({name: n for n, name in enumerate(self.classes)}).to_numpy(np.float64)
        )
        self.patients = np.unique(owners_of(part), return_inverse=True)[1]
        self.folds = _folds(self.patients, seed)

    def __call__(self, module: nn.Module, step: int) -> dict[str, Any]:
        """Return the AUROC and the accuracy of the encoder at this step."""
        encoder = module.exported_encoder()  # type: ignore[operator]
        was_training = encoder.training
        encoder.eval()
        device = next(encoder.parameters()).device
        with torch.no_grad():
            made = [
                encoder(batch.to(device)).pooled.float().cpu()
                for batch in evaluation_batches(self.store, self.rows, self.preprocessing, 128)
            ]
        encoder.train(was_training)
        features = torch.cat(made).double().numpy()
        found = self._neighbours(features) if self.config.method == "knn" else self._linear(features)
        values = measure(found, self.targets, "multiclass")
        return {
            "split": "probe",
            "probe_auroc": values["auroc"],
            "probe_accuracy": values["accuracy"],
        }

    def _neighbours(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, classes): the weighted vote of the nearest images of other patients, by cosine."""
        centred = features - features.mean(axis=0)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        near = unit @ unit.T
        near[self.patients[:, None] == self.patients] = -np.inf
        kept = min(NEIGHBOURS, near.shape[1] - 1)
        order = np.argsort(-near, axis=1, kind="stable")[:, :kept]
        weights = np.exp(np.take_along_axis(near, order, axis=1) / TEMPERATURE)
        votes = np.zeros((len(features), len(self.classes)))
        for number in range(len(self.classes)):
            votes[:, number] = (weights * (self.targets[order] == number)).sum(axis=1)
        return np.asarray(votes / np.maximum(votes.sum(axis=1, keepdims=True), 1e-300))

    def _linear(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, classes): cross-validated logistic regression, patients kept together."""
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        found = np.zeros((len(features), len(self.classes)))
        for fold in range(FOLDS):
            train, test = self.folds != fold, self.folds == fold
            if not test.any() or len(np.unique(self.targets[train])) < 2:
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(features[train], self.targets[train])
            found[np.ix_(test, model.classes_.astype(int))] = model.predict_proba(features[test])
        return found


def _folds(patients: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return (n,) fold numbers; the images of a patient are in one."""
    draws = keyed.uniform(keyed.key(seed, "probe folds"), np.arange(patients.max() + 1, dtype=np.int64), 1)[
        :, 0
    ]
    return (draws.argsort(kind="stable").argsort(kind="stable") % FOLDS)[patients]
