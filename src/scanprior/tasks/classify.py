"""Classification: multi-class and multi-label, linear and nearest-neighbour heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from scanprior.config import Config
from scanprior.encoders import Encoder, Features, layers_of, sample_positions
from scanprior.errors import DataError
from scanprior.evaluation import are_rising
from scanprior.tasks.balance import Weighting
from scanprior.tasks.heads import Kind, LinearHead, NeighbourHead, OrdinalHead
from scanprior.tasks.losses import focal_binary_cross_entropy, focal_cross_entropy
from scanprior.tasks.pooling import Pooling, make_pooling

Uncertain = Literal["ignore", "zeros", "ones", "soft"]


class ClassifyConfig(Config):
    """The classification task."""

    head: Literal["linear", "ordinal", "knn"] = Field(
        "linear",
        description="linear layer; ordinal, the same for classes in an order; or nearest neighbours",
    )
    pooling: Pooling = Field(
        "encoder",
        description="what the head classifies: the encoder's own pooled vector; attention, a learned query over its "
        "tokens; transformer, a whole one over them",
    )
    transformer: str = Field(
        "deit_base_patch16_224", description="pooling=transformer: a plain vision transformer of timm's"
    )
    transformer_weights: str | None = Field(
        None, description="pooling=transformer: local file of its weights; empty = from scratch"
    )
    classes: list[str] | None = Field(
        None, min_length=2, description="the labels in their order, from least to most; empty = as sorted"
    )
    normalise: bool | None = Field(
        None,
        description="before the linear layer, bring the features of an image to mean 0 and variance 1; false = as "
        "timm's own networks do it, not; empty = true",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="before the linear head")
    loss: Literal["cross_entropy", "focal"] = Field(
        "cross_entropy", description="focal: what is classified well already counts for little"
    )
    focal_gamma: float = Field(2.0, ge=0, description="loss=focal: how little; 0 is the cross-entropy")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label spread over all classes")
    balance: Literal["none", "loss", "sampling"] = Field(
        "loss", description="rare classes: weighted in the loss, drawn more often, or left as they are"
    )
    class_weights: Literal["none", "balanced", "effective"] | None = Field(
        None,
        description="balance=loss: weights by one over the number of images of a class (balanced), or over their "
        "effective number, or none; empty = balanced",
    )
    uncertain: Uncertain | None = Field(
        None, description="labels of -1: left out, taken as 0, as 1, or as soft; empty = refused"
    )
    soft_range: tuple[float, float] = Field((0.55, 0.85), description="uncertain=soft draws the target here")
    neighbours: int = Field(20, gt=0, description="head=knn: neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="head=knn: softmax temperature of their similarity")

    @field_validator("classes")
    @classmethod
    def _once(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if value is not None and value.count(name) > 1:
                raise ValueError(f"{name!r} is given twice")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.loss == "focal" and self.head != "linear":
            why = "it has a loss of its own" if self.head == "ordinal" else "it has no loss"
            raise ValueError(f"loss: 'focal' is not for head={self.head}, {why}; set loss=cross_entropy")
        if self.head == "knn" and self.pooling != "encoder":
            raise ValueError(
                f"pooling: {self.pooling!r} has to be trained, and head=knn is not; use pooling=encoder"
            )
        if self.transformer_weights is not None and self.pooling != "transformer":
            raise ValueError(
                "transformer_weights: they are of pooling=transformer; set it, or leave them out"
            )
        if self.class_weights in ("balanced", "effective") and self.balance != "loss":
            raise ValueError(
                f"class_weights: {self.class_weights!r} weighs the loss, and balance={self.balance} does not; set "
                "balance=loss, or class_weights=none"
            )
        return self

    @property
    def weighting(self) -> Weighting | None:
        """How the classes are weighted in the loss; None = alike."""
        if self.balance != "loss" or self.class_weights == "none":
            return None
        return self.class_weights or "balanced"

    def ordered(self, classes: Sequence[str], kind: Kind) -> bool:
        """Return whether the classes are in an order: one that was given, or that of rising numbers."""
        return kind == "multiclass" and (self.classes is not None or are_rising(classes))


class Classifier(nn.Module):
    """An encoder with a head.

    Args:
        encoder: image to features.
        classes: names, in the order of the logits.
        kind: one class an image, or every finding by itself.
        config: the task's settings.
        class_weights: (classes,) loss weights: of the class, or of the positives of a finding.
        bank_images: size of the bank of a nearest-neighbour head.
        seed: of dropout in the head.
    """

    class_weights: Tensor

    def __init__(
        self,
        encoder: Encoder,
        classes: list[str],
        kind: Kind,
        config: ClassifyConfig,
        class_weights: Tensor | None = None,
        bank_images: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.classes, self.kind, self.config = encoder, classes, kind, config
        self._layers: dict[str, int] | None = None
        self.pooling = make_pooling(config.pooling, encoder, config.transformer, config.transformer_weights)
        width = self.pooling.dim
        self.head: nn.Module
        if config.head == "knn":
            self.head = NeighbourHead(
                width, len(classes), bank_images, kind, config.neighbours, config.temperature
            )
        else:
            made = OrdinalHead if config.head == "ordinal" else LinearHead
            self.head = made(width, len(classes), config.dropout, seed, config.normalise is not False)
        weights = torch.ones(len(classes)) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights)

    @property
    def ordered(self) -> bool:
        """Whether the classes are in an order, from least to most."""
        return self.config.ordered(self.classes, self.kind)

    def logits(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map normalised images (B, C, S, S) to logits (B, classes)."""
        return self.logits_of(self.encoder(images), positions)

    def logits_of(self, features: Features, positions: Tensor | None = None) -> Tensor:
        """Map an encoder's features to logits (B, classes)."""
        return self.head(self.pooling(features), positions)  # type: ignore[no-any-return]

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return ``loss`` over the labelled entries of the batch and their ``weight``.

        ``batch``: ``views`` (1, B, C, S, S), or ``pooled`` (B, D) and ``tokens`` (B, N, D) of a frozen encoder;
        ``position`` (B,), ``target`` (B,) int64 class numbers, or (B, findings) float in [0, 1] with NaN where missing.
        """
        with sample_positions(batch["position"]):
            logits = self._batch_logits(batch).float()
        if self.kind == "multiclass":
            return self._cross_entropy(logits, batch["target"])
        return self._binary(logits, batch["target"])

    def _batch_logits(self, batch: dict[str, Any]) -> Tensor:
        if "pooled" in batch:
            return self.logits_of(Features(batch["tokens"], [], batch["pooled"]), batch["position"])
        return self.logits(batch["views"][0], batch["position"])

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        smooth = self.config.label_smoothing
        weight = self.class_weights[target].sum()
        if self.config.loss == "focal":
            each = focal_cross_entropy(logits, target, self.class_weights, smooth, self.config.focal_gamma)
            loss = each.sum() / weight
        else:
            loss = F.cross_entropy(logits, target, self.class_weights, label_smoothing=smooth)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == target).float().mean()
        return {"loss": loss, "weight": weight, "accuracy": accuracy}

    def _binary(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        known = ~target.isnan()
        smooth = self.config.label_smoothing
        wanted = target.nan_to_num() * (1 - smooth) + 0.5 * smooth
        if self.config.loss == "focal":
            each = focal_binary_cross_entropy(logits, wanted, self.class_weights, self.config.focal_gamma)
        else:
            each = F.binary_cross_entropy_with_logits(
                logits, wanted, pos_weight=self.class_weights, reduction="none"
            )
        count = known.sum()
        return {"loss": (each * known).sum() / count.clamp(min=1), "weight": count.float()}

    def layer_depth(self, name: str) -> int:
        """Return how far a parameter is from the head, for layer decay; the head is 0."""
        if not name.startswith("encoder.net."):
            return 0
        if self._layers is None:
            self._layers = layers_of(self.encoder.net)
        return 1 + max(self._layers.values()) - self._layers[name.removeprefix("encoder.net.")]

    @torch.no_grad()
    def predict(self, batches: Any) -> NDArray[np.float32]:
        """Return probabilities (N, classes) of batches of normalised images, in evaluation mode."""
        device = next(self.parameters()).device
        self.eval()
        return self._probabilities(self.logits(images.to(device)) for images in batches)

    @torch.inference_mode()
    def answer(self, images: Tensor) -> tuple[NDArray[np.float32], Features]:
        """Return probabilities (B, classes) of normalised images, and the features they are made of."""
        self.eval()
        features = self.encoder(images.to(self.class_weights.device))
        return self._probabilities([self.logits_of(features)]), features

    @torch.no_grad()
    def predict_features(self, batches: Iterable[Features]) -> NDArray[np.float32]:
        """Return probabilities (N, classes) of batches of the encoder's features, in evaluation mode."""
        device = self.class_weights.device
        self.eval()
        return self._probabilities(
            self.logits_of(Features(made.tokens.to(device), [], made.pooled.to(device))) for made in batches
        )

    def _probabilities(self, logits: Iterable[Tensor]) -> NDArray[np.float32]:
        made = [probabilities(part, self.kind).cpu() for part in logits]
        return torch.cat(made).numpy() if made else np.zeros((0, len(self.classes)), np.float32)


def probabilities(logits: Tensor, kind: Kind) -> Tensor:
    """Turn logits (B, classes) into probabilities; the one place where that is done."""
    logits = logits.float()
    return logits.softmax(dim=1) if kind == "multiclass" else logits.sigmoid()


def check_uncertain(values: NDArray[np.float64], findings: Sequence[str], config: ClassifyConfig) -> None:
    """Refuse uncertain labels for which no policy is named: each of them makes another task.

    Args:
        values: (N, findings) of the training and validation images.
        findings: their names.
        config: names the policy.

    Raises:
        DataError: labels of -1, and no policy; the sentence names the findings and the policies.
    """
    counts = (values == -1).sum(axis=0)
    if config.uncertain is None and counts.any():
        unsure = [f"{name} {count:,}" for name, count in zip(findings, counts, strict=True) if count]
        more = f" and {len(unsure) - 3} more findings" if len(unsure) > 3 else ""
        raise DataError(
            f"task.uncertain: training and validation images have labels of -1, which is uncertain "
            f"({', '.join(unsure[:3])}{more}); say what they count as: ignore (left out), zeros (absent), ones "
            "(present) or soft (in between), as in --set task.uncertain=ignore"
        )


def resolve_uncertain(
    values: NDArray[np.float64], config: ClassifyConfig, draws: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Apply the policy for uncertain labels.

    Args:
        values: (N, findings) with 1, 0, -1 (uncertain) and NaN (missing).
        config: names the policy; without one they take no part.
        draws: (N, findings) in [0, 1), used by ``soft`` (Pham et al. 2021, label smoothing regularisation).

    Returns:
        (N, findings) in [0, 1] with NaN where a label takes no part.
    """
    low, high = config.soft_range
    fixed = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
    substitute = (
        low + (high - low) * draws if config.uncertain == "soft" else fixed[config.uncertain or "ignore"]
    )
    return np.where(values == -1, substitute, values)
