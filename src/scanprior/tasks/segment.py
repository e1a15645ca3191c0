"""Segmentation: a decoder on an encoder's features, Dice and cross-entropy, masks out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from scanprior.config import Config
from scanprior.data.masks import MaskValues, shown_values
from scanprior.encoders import Encoder, Features, layers_of, sample_positions
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
    def find(cls, found: Sequence[MaskValues], config: SegmentConfig) -> MaskClasses:
        """Find the classes in the values that occur.

        Several values are taken for as many classes only where most masks hold two or more of them. Where most
        hold one, the others are more likely faults of some files, such as a mask that was saved as JPEG, or
        another way to write the same class; then the user has to say what they mean.

        Args:
            found: the values of the column ``mask``, or of ``mask:NAME`` for each structure.
            config: names the classes, or a threshold.

        Raises:
            DataError: values that no class has, or that are not clearly classes.
        """
        if [each.column for each in found] != ["mask"]:
            table = np.stack([_binary(each, config) for each in found])
            return cls([each.column.partition(":")[2] for each in found], "multilabel", table)
        (only,) = found
        values = only.values
        if config.classes:
            return cls._named(only, config)
        if config.mask_threshold is not None or len(values) <= 1:
            return cls(["foreground"], "binary", _binary(only, config)[None])
        if len(values) > 32:
            raise DataError(_too_many(only))
        filled, mixed = int((only.counts > 0).sum()), int((only.counts > 1).sum())
        if 2 * mixed <= filled:
            raise DataError(
                f"mask: {mixed} of {filled} masks hold more than one value besides 0, such as {only.fullest()}; all "
                f"values are {shown_values(values)}; {_ADVICE}"
            )
        table = np.zeros((1, 256), dtype=np.int64)
        table[0, values] = np.arange(1, len(values) + 1)
        return cls([f"value {value}" for value in values], "multiclass", table)

    @classmethod
    def _named(cls, found: MaskValues, config: SegmentConfig) -> MaskClasses:
        for value in found.values:
            if value not in config.classes.values():
                raise DataError(
                    f"{found.file_with(value)}: the mask holds the value {value}, which is no class of task.classes "
                    f"({config.classes}); add it"
                )
        table = np.zeros((1, 256), dtype=np.int64)
        for number, value in enumerate(config.classes.values(), 1):
            if not 0 < value < 256:
                raise ConfigError(
                    f"task.classes: the value {value} is not possible; masks hold 0 (background) to 255"
                )
            table[0, value] = number
        return cls(list(config.classes), "binary" if len(config.classes) == 1 else "multiclass", table)

    def unknown(self, number: int, found: MaskValues, config: SegmentConfig) -> str | None:
        """Return what is wrong with masks that hold values without a meaning here; None where all have one.

        Args:
            number: of the mask column.
            found: the values of some masks of it.
            config: with which the classes were found.
        """
        if config.mask_threshold is not None:
            return None
        known = np.flatnonzero(self.table[number])
        for value in found.values:
            if value not in known:
                return (
                    f"{found.file_with(value)}: the mask holds the value {value}, the run knows 0 and "
                    f"{shown_values(known)}"
                )
        if len(known) == 255 and (found.counts > 1).any():  # any value means the one class, but one to a mask
            return f"{found.fullest()}: the mask holds more than one value besides 0, the run knows one class"
        return None

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


_ADVICE = (
    "name the values that are classes with task.classes, as {lung: 255}, or, for masks that a lossy format has "
    "blurred, set task.mask_threshold=128"
)


def _binary(found: MaskValues, config: SegmentConfig) -> NDArray[np.int64]:
    if config.mask_threshold is None and len(found.values) > 1:
        raise DataError(_too_many(found))
    return (np.arange(256) >= (config.mask_threshold or 1)).astype(np.int64)


def _too_many(found: MaskValues) -> str:
    return (
        f"{found.column}: the masks hold {len(found.values)} values besides 0 ({shown_values(found.values)}), most of "
        f"them {found.fullest()}; {_ADVICE}"
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

    def logits(self, images: Tensor) -> Tensor:
        """Map normalised images (B, C, S, S) to logits (B, channels, S, S)."""
        return self.logits_of(images, self.encoder(images))

    def logits_of(self, images: Tensor, features: Features) -> Tensor:
        """Map images (B, C, S, S) and what the encoder makes of them to logits (B, channels, S, S)."""
        return self.head(self.decoder(images, features))  # type: ignore[no-any-return]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, channels, S, S) into probabilities float32."""
        logits = logits.float()
        return logits.softmax(1) if self.classes.kind == "multiclass" else logits.sigmoid()

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
            self._layers = layers_of(self.encoder.net)
        return 1 + max(self._layers.values()) - self._layers[name.removeprefix("encoder.net.")]

    @torch.no_grad()
    def predict(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield probabilities (B, channels, S, S) float32 of batches of normalised images, in evaluation mode."""
        device = next(self.parameters()).device
        self.eval()
        for images in batches:
            yield self.probabilities(self.logits(images.to(device))).cpu()

    @torch.inference_mode()
    def answer(self, images: Tensor) -> tuple[NDArray[np.float32], Features]:
        """Return probabilities (B, channels, S, S) of normalised images, and the features they are made of."""
        self.eval()
        images = images.to(self.table.device)
        features = self.encoder(images)
        return self.probabilities(self.logits_of(images, features)).cpu().numpy(), features
