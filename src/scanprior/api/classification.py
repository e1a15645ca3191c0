"""Fine-tuning for classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scanprior import keyed
from scanprior.api.evaluation import evaluate_tables, keep_predictions
from scanprior.api.features import FeatureSource, StoredFeatures
from scanprior.api.prediction_tables import predictions_table
from scanprior.api.predictor import Predictor
from scanprior.api.settings import FinetuneConfig
from scanprior.api.sources import Images
from scanprior.api.trust import assess, remember
from scanprior.api.work import Rows, Work
from scanprior.data.loader import TrainingSource, evaluation_batches
from scanprior.data.manifest import LABEL_ORDER, Manifest
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import Encoder
from scanprior.engine import BatchSource, Reporter
from scanprior.errors import ConfigError, DataError
from scanprior.evaluation import why_not
from scanprior.run import Run
from scanprior.tasks.balance import balance_weights, sampling_weights
from scanprior.tasks.classify import Classifier, ClassifyConfig, check_uncertain, resolve_uncertain
from scanprior.tasks.heads import Kind
from scanprior.tasks.measure import measure
from scanprior.tasks.ordinal import class_order
from scanprior.tasks.probe import fit_linear_probe, fit_neighbours


class Classification(Work):
    """Multi-class or multi-label classification from the label columns of the sources.

    Attributes:
        task_kind: multi-class or multi-label.
        classes: names in the order of the logits.
        targets: (N,) class numbers or (N, findings) values, for every row of the store.
        weights: (classes,) loss weights, of the training images alone; None = all alike.
        features: those of a frozen encoder; None = images are encoded as they come.

    Raises:
        DataError: no labels, fewer than two classes, no labelled training or validation image, uncertain
            labels without a policy.
        ConfigError: classes in an order that is not known, or a metric that they do not have.
    """

    kind = "classify"
    learns = "labels"
    metric = "auroc"
    metrics = (
        "auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1", "kappa", "quadratic_kappa",
        "loss",
    )  # fmt: skip
    settings: ClassifyConfig
    task_kind: Kind
    classes: list[str]
    ordered: bool
    targets: NDArray[np.float64]
    weights: Tensor | None
    features: StoredFeatures | None = None

    def __init__(self, images: Images, config: FinetuneConfig) -> None:
        super().__init__(images, config)
        assert isinstance(config.task, ClassifyConfig)
        frame, columns = images.frame, images.store.label_columns
        self.settings = _with_known_order(config.task, frame, columns)
        if not columns:
            raise DataError("the sources hold no labels; give a table with a label column, or class folders")
        self.task_kind = "multiclass" if columns == ["label"] else "multilabel"
        if self.task_kind == "multiclass":
            trained = Manifest(frame[frame["split"] == "train"], Path(), columns).classes
            if len(trained) < 2:
                raise DataError(
                    f"the training images have {len(trained)} class ({', '.join(trained)}); two are needed"
                )
            labels = set(frame["label"].dropna())
            ordinal = self.settings.head == "ordinal"
            self.classes = class_order(trained, labels, self.settings.classes, ordinal=ordinal)
            numbers = {name: number for number, name in enumerate(self.classes)}
            self.targets = np.asarray(frame["label"].map(numbers), dtype=np.float64)
            known = ~np.isnan(self.targets)
        else:
            self._refuse_order()
            self.classes = columns
            values = frame[columns].to_numpy(np.float64)
            check_uncertain(values[frame["split"].isin(["train", "val"])], columns, self.settings)
            draws = keyed.uniform(
                keyed.key(config.engine.seed, "uncertain"), frame["row"].to_numpy(), len(columns)
            )
            self.targets = resolve_uncertain(values, self.settings, draws)
            known = np.asarray((~np.isnan(self.targets)).any(axis=1))
        self.ordered = self.settings.ordered(self.classes, self.task_kind)
        self._check_metric()
        self.divide(known, frame, columns, "labelled image", "label")
        self.weights = self._weights()

    def _refuse_order(self) -> None:
        """Refuse settings for classes in an order where there are findings."""
        given = {"head": self.settings.head, "classes": self.settings.classes}
        wrong = [name for name, value in given.items() if value not in ("linear", "knn", None)]
        if wrong:
            raise ConfigError(
                f"task.{wrong[0]}: {given[wrong[0]]!r} is for the classes of one label column, and these are findings "
                f"({', '.join(self.images.store.label_columns)}), each by itself; leave it out"
            )

    def _check_metric(self) -> None:
        chosen = self.config.selection.metric
        reason = why_not(chosen, self.task_kind, self.classes, self.ordered)
        if reason is not None and chosen != "accuracy":  # which validation has of findings too
            raise ConfigError(f"selection.metric: {chosen!r} cannot be measured; {reason}")

    def _weights(self) -> Tensor | None:
        weighting = self.settings.weighting
        if weighting is None:
            return None
        return balance_weights(self.targets[self.train], self.task_kind, len(self.classes), weighting)

    def keep_features(
        self, encoder: Encoder, preprocessing: Preprocessing, device: torch.device, reporter: Reporter
    ) -> None:
        """Compute the features of a frozen encoder once, where every view of an image is the image."""
        frozen = self.config.adapt.train == "none" and self.config.adapt.keep_features
        if not frozen or (self.config.command != "probe" and not self.config.augment.is_off):
            return
        self.features = StoredFeatures(
            encoder.to(device),
            preprocessing,
            self.images.store,
            tokens=self.settings.pooling != "encoder",
            descriptors=self.config.trust.reference_images > 0,
            reporter=reporter,
        )
        rows = [self.train, self.val, self.images.rows("val"), self.images.rows("test")]
        self.features.ensure(np.concatenate(rows))

    def network(self, encoder: Encoder) -> Classifier:
        """Return the encoder with a head."""
        return Classifier(
            encoder, self.classes, self.task_kind, self.settings, self.weights, len(self.train),
            self.config.engine.seed,
        )  # fmt: skip

    def source(self, preprocessing: Preprocessing) -> BatchSource:
        """Return the training batches."""
        targets = self.targets[self.train]
        balanced = self.settings.balance == "sampling"
        tensor = torch.from_numpy(targets)
        tensor = tensor.long() if self.task_kind == "multiclass" else tensor.float()
        weights = sampling_weights(targets, self.task_kind, len(self.classes)) if balanced else None
        if self.features is not None:
            return FeatureSource(
                self.features, self.train, seed=self.config.engine.seed, targets=tensor, weights=weights
            )
        return TrainingSource(
            self.images.store,
            self.train,
            augmentation=self.config.augment,
            preprocessing=preprocessing,
            seed=self.config.engine.seed,
            targets=tensor,
            weights=weights,
        )

    def validate(self, module: nn.Module, preprocessing: Preprocessing) -> dict[str, float]:
        """Measure loss, AUROC, average precision, accuracy and so on, on the validation images."""
        assert isinstance(module, Classifier)
        found = (
            module.predict(self._batches(self.val, preprocessing))
            if self.features is None
            else module.predict_features(self.features.batches(self.val, self.config.evaluation.batch_size))
        )
        values = measure(found.astype(np.float64), self.targets[self.val], self.task_kind)
        if not self.ordered:
            values.pop("quadratic_kappa", None)
        return values

    def probe(self, model: Classifier, preprocessing: Preprocessing) -> dict[str, Any]:
        """Fit the head on frozen features, without the loop."""

        def features(rows: Rows) -> Tensor:
            if self.features is not None:
                return self.features.read(rows).pooled
            with torch.no_grad():
                made = [model.encoder(batch).pooled.float() for batch in self._batches(rows, preprocessing)]
            return torch.cat(made) if made else torch.zeros(0, model.encoder.dim)

        model.eval()
        train, targets = features(self.train), self.targets[self.train]
        if self.settings.head == "knn":
            return fit_neighbours(model, train, targets)
        return fit_linear_probe(model, train, targets, features(self.val), self.targets[self.val], measure)

    def _batches(self, rows: Rows, preprocessing: Preprocessing) -> Any:
        return evaluation_batches(self.images.store, rows, preprocessing, self.config.evaluation.batch_size)

    def card(self) -> dict[str, Any]:
        """Return kind and classes, and the weights of these in the loss where they have any."""
        made = {"kind": self.task_kind, "classes": self.classes, "ordered": self.ordered}
        if self.weights is None or self.config.command == "probe":  # which scikit-learn weighs
            return made
        return {**made, "class_weights": dict(zip(self.classes, self.weights.tolist(), strict=True))}

    def write_results(
        self, run: Run, module: nn.Module, preprocessing: Preprocessing, reporter: Reporter
    ) -> None:
        """Predict validation and test images, evaluate, and fit what says when not to rely on the run."""
        assert isinstance(module, Classifier)
        predictor = Predictor.of(module, preprocessing, self.features)
        config, images = self.config.evaluation, self.images
        detector = remember(run, images, predictor, self.train, self.config.trust)
        val = predictions_table(images, images.rows("val"), predictor, config.batch_size)  # set its threshold
        test = predictions_table(images, images.rows("test"), predictor, config.batch_size, detector)
        keep_predictions(run, images, (val, test))
        assess(run, predictor, self.config.trust)
        evaluate_tables(run, images, (val, test), predictor, config, reporter)


def _with_known_order(settings: ClassifyConfig, frame: pd.DataFrame, columns: list[str]) -> ClassifyConfig:
    """Take the order of the classes from the table of the images, where that has one and the user gives none."""
    if settings.classes is not None or columns != ["label"] or LABEL_ORDER not in frame.columns:
        return settings
    return settings.model_copy(update={"classes": Manifest(frame, Path(), columns).classes})
