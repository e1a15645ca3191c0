"""How the encoders of a run see images, whatever the task: pooled features and descriptors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior.api.sources import Images
from scanprior.data.fitting import Pixels
from scanprior.data.readers import ImageData
from scanprior.data.transforms import Form, Preprocessing, prepare_image, to_input
from scanprior.encoders import Encoder, Features, descriptor

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Embeddings:
    """What one or several encoders make of B images.

    Attributes:
        pooled: (B, D) float32, what ``Embedder.pooled`` returns of the encoders' features, side by side.
        descriptors: (B, E) float32, the encoders' ``descriptor`` side by side.
    """

    pooled: NDArray[np.float32]
    descriptors: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Embeddings], axis: int) -> Embeddings:
        """Put together those of other images (axis 0), or of other encoders on the same images (axis 1)."""
        return Embeddings(
            np.concatenate([part.pooled for part in parts], axis),
            np.concatenate([part.descriptors for part in parts], axis),
        )


class Embedder:
    """One or several encoders, each with what it expects of an image: the base of whatever predicts.

    Args:
        encoders: with their preprocessing; most often one.
    """

    def __init__(self, encoders: Sequence[tuple[Encoder, Preprocessing]]) -> None:
        self.encoders = list(encoders)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the first encoder expects."""
        return self.encoders[0][1]

    @property
    def forms(self) -> dict[Form, Preprocessing]:
        """The forms in which the encoders need an image; most often one for all."""
        found: dict[Form, Preprocessing] = {}
        for _, preprocessing in self.encoders:
            found.setdefault(preprocessing.form, preprocessing)
        return found

    @property
    def further_forms(self) -> list[Form]:
        """The forms beside that of the first encoder."""
        return list(self.forms)[1:]

    def fitted(self, image: ImageData) -> dict[Form, Pixels]:
        """Return a decoded image in every form: (C, S, S)."""
        return {form: prepare_image(image, preprocessing) for form, preprocessing in self.forms.items()}

    def stored(self, images: Images, rows: Rows) -> dict[Form, Pixels]:
        """Return the stored images at ``rows`` in every form."""
        return {form: images.stored_as(form).read(rows) for form in self.forms}

    def pooled(self, features: Features) -> Tensor:
        """Return the pooled features (B, D), by which similar images are found: the encoder's own."""
        return features.pooled

    def embedded(self, features: Features) -> Embeddings:
        """Return what is kept of one encoder's features of B images."""
        return Embeddings(self.pooled(features).float().cpu().numpy(), descriptor(features).cpu().numpy())

    @torch.no_grad()
    def embeddings(self, pixels: Mapping[Form, Pixels]) -> Embeddings:
        """Return what the encoders, in evaluation mode, make of images, without predicting anything.

        Args:
            pixels: in every form, the same images (B, C, S, S) uint8 or uint16.
        """
        made = []
        for encoder, preprocessing in self.encoders:
            images = to_input(torch.from_numpy(pixels[preprocessing.form]), preprocessing)
            device = next(encoder.parameters()).device
            made.append(self.embedded(encoder.eval()(images.to(device))))
        return Embeddings.joined(made, axis=1)

    def embeddings_of_stored(self, images: Images, rows: Rows, batch_size: int = 64) -> Embeddings:
        """Return what the encoders make of the stored images at ``rows``, of which there is at least one."""
        starts = range(0, len(rows), batch_size)
        parts = [self.embeddings(self.stored(images, rows[at : at + batch_size])) for at in starts]
        return Embeddings.joined(parts, axis=0)
