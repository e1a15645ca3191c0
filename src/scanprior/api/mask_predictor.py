"""What predicts masks: a segmenter with its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior.api.embeddings import Embedder, Embeddings
from scanprior.data.fitting import Pixels
from scanprior.data.transforms import Augmentation, Form, Preprocessing, augment, to_input
from scanprior.encoders import Features
from scanprior.tasks.segment import Segmenter

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class MaskAnswers(Embeddings):
    """What a segmenter says of B images, and what its encoder makes of them.

    Attributes:
        maps: (B, channels, S, S) float32 probabilities.
    """

    maps: Maps


class MaskPredictor(Embedder):
    """A segmenter with what it expects of an image.

    Args:
        model: the segmenter.
        preprocessing: what it expects.
        augmentation: how views may differ, brightness and mirroring alone; needed for views.
    """

    def __init__(
        self, model: Segmenter, preprocessing: Preprocessing, augmentation: Augmentation | None = None
    ) -> None:
        super().__init__([(model.encoder, preprocessing)])
        self.model, self.augmentation = model, augmentation

    def pooled(self, features: Features) -> Tensor:
        """Return the mean (B, D) of the last map, which the masks are made of.

        The encoder's own may be that of a class token, which no mask is made of and a training on masks leaves as it
        was.
        """
        return features.pyramid[-1].mean(dim=(2, 3))

    def answers(self, pixels: Mapping[Form, Pixels], views: int = 0) -> MaskAnswers:
        """Return the probabilities of images, and the features they are made of, from one pass of the encoder.

        Args:
            pixels: in the segmenter's form, (B, C, S, S) uint8 or uint16.
            views: so many augmented views of every image are predicted too, mirrored back, and the probabilities
                averaged. The features are those of the images themselves.
        """
        stored = pixels[self.preprocessing.form]
        maps, features = self.model.answer(to_input(torch.from_numpy(stored), self.preprocessing))
        for view in range(1, views + 1):
            maps = maps + self._view(stored, view)
        seen = self.embedded(features)
        return MaskAnswers(seen.pooled, seen.descriptors, np.asarray(maps / (views + 1)))

    def _view(self, stored: Pixels, view: int) -> Maps:
        """Return the probabilities of a view of the images, mirrored back; views take turns in mirroring."""
        assert self.augmentation is not None
        mirrored = tuple(
            axis
            for axis, share in ((3, self.augmentation.hflip), (2, self.augmentation.vflip))
            if share > 0 and (view if axis == 3 else view // 2) % 2
        )
        upright = self.augmentation.model_copy(update={"hflip": 0.0, "vflip": 0.0})
        turned = np.ascontiguousarray(np.flip(stored, mirrored))
        places = np.full(len(stored), view, dtype=np.int64)
        images = augment(
            turned, upright, self.preprocessing, seed=0, purpose="test-time views", positions=places
        )
        return np.flip(next(self.model.predict([images])).numpy(), mirrored)
