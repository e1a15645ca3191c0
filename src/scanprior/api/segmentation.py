"""Fine-tuning for segmentation: masks in, a segmenter, its predictions and their measures out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scanprior.api.mask_predictor import MaskPredictor
from scanprior.api.mask_results import evaluate_stored_masks, predicted_maps
from scanprior.api.outlier_detection import keep_reference
from scanprior.api.settings import FinetuneConfig
from scanprior.api.sources import Images
from scanprior.api.work import Rows, Work
from scanprior.data.loader import TrainingSource
from scanprior.data.masks import Masks
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import Encoder
from scanprior.engine import Reporter
from scanprior.run import Run
from scanprior.tasks.segment import MaskClasses, SegmentConfig, Segmenter


class Segmentation(Work):
    """Segmentation of what the masks of the sources show.

    Attributes:
        masks: of the images.
        classes: what the values of the masks mean.

    Raises:
        DataError: no mask in training or validation, or values that are no classes.
    """

    kind = "segment"
    learns = "masks"
    metric = "dice"
    metrics = ("dice",)
    settings: SegmentConfig

    def __init__(self, images: Images, config: FinetuneConfig) -> None:
        super().__init__(images, config)
        assert isinstance(config.task, SegmentConfig) and images.masks is not None
        self.settings, self.masks = config.task, images.masks
        labels = images.store.label_columns
        frame = images.frame if labels else images.frame.assign(label="mask")
        self.divide(self.masks.has, frame, labels or ["label"], "image with a mask", "mask")
        found = self.masks.values(np.flatnonzero(self.masks.has))
        self.classes = MaskClasses.find(found, self.settings)

    def network(self, encoder: Encoder) -> Segmenter:
        """Return the encoder with a decoder."""
        return Segmenter(encoder, self.classes, self.settings)

    def keep_features(
        self, encoder: Encoder, preprocessing: Preprocessing, device: torch.device, reporter: Reporter
    ) -> None:
        """Do nothing: decoders need whole pyramids, which are many times as large as the images."""

    def source(self, preprocessing: Preprocessing) -> TrainingSource:
        """Return the training batches, masks among them."""
        return TrainingSource(
            self.images.store,
            self.train,
            augmentation=self.config.augment,
            preprocessing=preprocessing,
            seed=self.config.engine.seed,
            masks=self.masks,
        )

    def validate(self, module: nn.Module, preprocessing: Preprocessing) -> dict[str, float]:
        """Measure the mean Dice over validation images and classes, at the network's size."""
        assert isinstance(module, Segmenter)
        found = []
        for rows, maps in predicted_maps(
            module, self.images.store, self.val, preprocessing, self.config.evaluation.batch_size
        ):
            truth = self.classes.truth(_at_size(self.masks, rows, preprocessing.size))
            chosen = module.chosen_of(maps)
            both = 2 * (chosen & truth).sum((2, 3))
            total = chosen.sum((2, 3)) + truth.sum((2, 3))
            found.append(np.where(total > 0, both / np.maximum(total, 1), 1.0).mean(axis=1))
        return {"dice": round(float(np.concatenate(found).mean()), 6)}

    def card(self) -> dict[str, Any]:
        """Return the kind of masks and the classes, with the values that mean them."""
        kept = self.classes.to_dict()
        return {"kind": kept["kind"], "classes": kept["names"], "mask_values": kept["table"]}

    def write_results(
        self, run: Run, module: nn.Module, preprocessing: Preprocessing, reporter: Reporter
    ) -> None:
        """Evaluate the masks of the test images, without any of the validation images; keep what tells outliers."""
        assert isinstance(module, Segmenter)
        self._evaluate(run, module, preprocessing, reporter)
        notes: list[str] = []
        predictor = MaskPredictor(module, preprocessing)
        outliers = keep_reference(run, self.images, predictor, self.train, [], self.config.trust, notes)
        run.card["trust"] = {"outliers": outliers, "notes": notes}

    def _evaluate(
        self, run: Run, module: Segmenter, preprocessing: Preprocessing, reporter: Reporter
    ) -> None:
        """Measure and evaluate the masks of the test images; without any, of the validation images, and named so."""
        split = "test" if self.masks.has[self.images.rows("test")].any() else "val"
        if not self.masks.has[self.images.rows(split)].any():
            return
        evaluate_stored_masks(
            run, module, preprocessing, self.images, self.images.rows(split),
            "test" if split == "test" else "validation", self.config.evaluation, reporter,
        )  # fmt: skip


def _at_size(masks: Masks, rows: Rows, size: int) -> NDArray[np.uint8]:
    """Return the masks of rows at the network's size, (B, columns, size, size)."""
    made = torch.from_numpy(masks.read(rows))
    if made.shape[-1] == size:
        return np.asarray(made.numpy())
    return np.asarray(nn.functional.interpolate(made, size=(size, size), mode="nearest-exact").numpy())
