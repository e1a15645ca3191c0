"""Segmentation: a decoder on an encoder's features, Dice and cross-entropy, masks out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from timm.models import group_parameters
from torch import Tensor, nn

from scanprior.config import Config
from scanprior.encoders import Encoder, sample_positions
from scanprior.errors import ConfigError, DataError
from scanprior.tasks.decoders import make_decoder

MaskKind = Literal["binary", "multiclass", "multilabel"]


class SegmentConfig(Config):
    """The segmentation task."""

    decoder: Literal["auto", "unetr", "unet"] = Field(
        "auto", description="unetr for ViTs, unet for networks with a pyramid"
    )
    width: int = Field(32, ge=4, description="the decoder's channels at full resolution")
    classes: dict[str, int] = Field(
        {}, description="name of a class: its value in the masks, as lung: 255; empty = found out"
    )
    mask_threshold: int | None = Field(
        None, ge=1, le=255, description="mask values from this on are the one class; for masks saved as JPEG"
    )
    dice_weight: float = Field(1.0, ge=0, description="of the Dice loss")
    ce_weight: float = Field(1.0, ge=0, description="of the (binary) cross-entropy")
    freeze: bool = Field(False, description="train the decoder only")


class MaskClasses:
    """Which values of the masks mean which class.

    Args:
        names: the classes without background, in the order of the predicted channels.
        kind: one class, several that exclude one another, or several that may overlap (one mask each).
        table: (columns, 256) int64: for each mask column the number of every value, 0 background.
    """

    def __init__(self, names: list[str], kind: MaskKind, table: NDArray[np.int64]) -> None:
        self.names, self.kind, self.table = names, kind, table

    @classmethod
    def find(cls, columns: list[str], counts: list[NDArray[np.int64]], config: SegmentConfig) -> MaskClasses:
        """Find the classes in the values that occur.

        Args:
            columns: ``["mask"]``, or ``mask:NAME`` for each structure.
            counts: for each, the pixels of every value 0..255.
            config: names the classes, or a threshold.

        Raises:
            DataError: values that no class has, or so many that they cannot be classes.
        """
        if columns != ["mask"]:
            table = np.stack(
                [_binary(name, found, config) for name, found in zip(columns, counts, strict=True)]
            )
            return cls([name.partition(":")[2] for name in columns], "multilabel", table)
        values = [int(value) for value in np.flatnonzero(counts[0]) if value]
        if config.classes:
            return cls._named(values, config)
        if config.mask_threshold is not None or len(values) <= 1:
            return cls(["foreground"], "binary", _binary("mask", counts[0], config)[None])
        if len(values) > 32:
            raise DataError(_too_many("mask", values))
        table = np.zeros((1, 256), dtype=np.int64)
        table[0, values] = np.arange(1, len(values) + 1)
        return cls([f"value {value}" for value in values], "multiclass", table)

    @classmethod
    def _named(cls, values: list[int], config: SegmentConfig) -> MaskClasses:
        for value in values:
            if value not in config.classes.values():
                raise DataError(
                    f"a mask holds the value {value}, which is no class of task.classes ({config.classes}); add it"
                )
        table = np.zeros((1, 256), dtype=np.int64)
        for number, value in enumerate(config.classes.values(), 1):
            if not 0 < value < 256:
                raise ConfigError(
                    f"task.classes: the value {value} is not possible; masks hold 0 (background) to 255"
                )
            table[0, value] = number
        return cls(list(config.classes), "binary" if len(config.classes) == 1 else "multiclass", table)

    @property
    def channels(self) -> int:
        """Channels that a network predicts: with the background where classes exclude one another."""
        return len(self.names) + (self.kind == "multiclass")

    def truth(self, masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return (..., classes, H, W) bool of mask values (..., columns, H, W)."""
        numbers = np.stack([row[masks[..., n, :, :]] for n, row in enumerate(self.table)], axis=-3)
        if self.kind == "multiclass":
            return np.asarray(numbers == np.arange(1, len(self.names) + 1)[:, None, None])
        return numbers > 0

    def to_dict(self) -> dict[str, Any]:
        """Return what a card keeps."""
        return {"names": self.names, "kind": self.kind, "table": self.table.tolist()}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> MaskClasses:
        """Undo ``to_dict``."""
        return cls(list(kept["names"]), kept["kind"], np.asarray(kept["table"], dtype=np.int64))


def _binary(column: str, counts: NDArray[np.int64], config: SegmentConfig) -> NDArray[np.int64]:
    values = [int(value) for value in np.flatnonzero(counts) if value]
    if config.mask_threshold is None and len(values) > 1:
        raise DataError(_too_many(column, values))
    return (np.arange(256) >= (config.mask_threshold or 1)).astype(np.int64)


def _too_many(column: str, values: list[int]) -> str:
    shown = ", ".join(map(str, values[:6])) + (" ..." if len(values) > 6 else "")
    return (
        f"{column}: the masks hold {len(values)} values besides 0 ({shown}); name those that are classes with "
        "task.classes, or, for masks that a lossy format has blurred, set task.mask_threshold=128"
    )


class Segmenter(nn.Module):
    """An encoder with a decoder and a 1x1 convolution to the classes.

    Args:
        encoder: image to features.
        classes: what to segment.
        config: the task's settings.
    """

    table: Tensor

    def __init__(self, encoder: Encoder, classes: MaskClasses, config: SegmentConfig) -> None:
        super().__init__()
        try:
            from monai.losses.dice import DiceCELoss
        except ImportError:
            raise ConfigError(
                "task.name: segment needs monai; pip install 'scanprior[segmentation]'"
            ) from None
        self.encoder, self.classes, self.config = encoder, classes, config
        self.decoder = make_decoder(encoder, config.decoder, config.width)
        self.head = nn.Conv2d(self.decoder.out_channels, classes.channels, kernel_size=1)
        self.register_buffer("table", torch.from_numpy(classes.table), persistent=False)
        exclusive = classes.kind == "multiclass"
        self.criterion = DiceCELoss(
            include_background=not exclusive, to_onehot_y=exclusive, softmax=exclusive, sigmoid=not exclusive,
            lambda_dice=config.dice_weight, lambda_ce=config.ce_weight,
        )  # fmt: skip
        self._layers: dict[str, int] | None = None
        if config.freeze:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze:
            self.encoder.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Map normalised images (B, C, S, S) to logits (B, channels, S, S)."""
        return self.head(self.decoder(images, self.encoder(images)))  # type: ignore[no-any-return]

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return ``loss``, the mean over images of Dice loss and cross-entropy, and the mean Dice of the batch.

        ``batch``: ``views`` (1, B, C, S, S), ``position`` (B,), ``mask`` (B, columns, S, S) uint8 values.
        """
        with sample_positions(batch["position"]):
            logits = self.logits(batch["views"][0]).float()
        target = self.target(batch["mask"])
        with torch.no_grad():
            found = self.chosen(logits)
            overlap = 2 * (found & (self.truth(target))).sum((2, 3)).float()
            total = (found.sum((2, 3)) + self.truth(target).sum((2, 3))).float()
            dice = torch.where(total > 0, overlap / total.clamp(min=1), 1.0).mean()
        return {"loss": self.criterion(logits, target.to(logits.dtype)), "dice": dice}

    def target(self, masks: Tensor) -> Tensor:
        """Return class numbers (B, 1, S, S), or 0 and 1 (B, columns, S, S), of mask values."""
        return torch.stack([row[masks[:, n].long()] for n, row in enumerate(self.table)], dim=1)

    def truth(self, target: Tensor) -> Tensor:
        """Return bool (B, classes, S, S) of ``target``."""
        if self.classes.kind != "multiclass":
            return target > 0
        numbers = torch.arange(1, len(self.classes.names) + 1, device=target.device)
        return target == numbers[:, None, None]

    def chosen(self, logits: Tensor) -> Tensor:
        """Return which pixels belong to each class: bool (B, classes, H, W) of logits (B, channels, H, W)."""
        if self.classes.kind != "multiclass":
            return logits > 0
        numbers = torch.arange(1, len(self.classes.names) + 1, device=logits.device)
        return logits.argmax(1, keepdim=True) == numbers[:, None, None]

    def chosen_of(self, maps: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which pixels belong to each class: (B, classes, H, W) of probabilities (B, channels, H, W)."""
        if self.classes.kind != "multiclass":
            return np.asarray(maps > 0.5)
        numbers = np.arange(1, len(self.classes.names) + 1)
        return np.asarray(maps.argmax(axis=1, keepdims=True) == numbers[:, None, None])

    def layer_depth(self, name: str) -> int:
        """Return how far a parameter is from the decoder, for layer decay; decoder and head are 0."""
        if not name.startswith("encoder.net."):
            return 0
        if self._layers is None:
            net: Any = self.encoder.net
            self._layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
        return 1 + max(self._layers.values()) - self._layers[name.removeprefix("encoder.net.")]

    @torch.no_grad()
    def predict(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield probabilities (B, channels, S, S) float32 of batches of normalised images, in evaluation mode."""
        device = next(self.parameters()).device
        self.eval()
        for images in batches:
            logits = self.logits(images.to(device)).float()
            yield (logits.softmax(1) if self.classes.kind == "multiclass" else logits.sigmoid()).cpu()
