"""The training images that a run keeps something of: to tell what is unlike them, and to find what is similar.

Of each a feature vector, its labels and, where that is wanted, a thumbnail; never its name or patient.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from scanprior.blas import one_blas_thread
from scanprior.data.fitting import Pixels
from scanprior.engine.checkpoint import load_weights, replace_weights
from scanprior.evaluation import OutlierScore
from scanprior.files import replacing
from scanprior.run import Run

THUMBNAIL = 96
"""Longest side of a thumbnail in pixels."""

ARRAYS, TABLE = "reference.safetensors", "reference.parquet"
"""Files of a run."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What a run keeps of its training images.

    Attributes:
        outliers: how far an image is from them.
        pooled: (N, D) float32, each of length 1.
        table: one row each: the labels, and ``thumbnail``: a JPEG, or None.
    """

    outliers: OutlierScore
    pooled: Vectors
    table: pd.DataFrame

    def save(self, folder: Path) -> None:
        """Write both files into the folder of a run."""
        found = self.outliers
        arrays = {
            "mean": found.mean, "components": found.components, "variances": found.variances,
            "rest": np.array([found.rest]), "validation": found.validation,
        }  # fmt: skip
        tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in arrays.items()}
        replace_weights({**tensors, "pooled": torch.from_numpy(self.pooled).half()}, folder / ARRAYS)
        with replacing(folder / TABLE) as part:
            self.table.to_parquet(part, index=False)

    @classmethod
    def open(cls, run: Run) -> Reference | None:
        """Read what a run keeps; None where it keeps nothing."""
        arrays, table = run.path / ARRAYS, run.path / TABLE
        if not arrays.is_file() or not table.is_file():
            return None
        found = {name: tensor.float().numpy() for name, tensor in load_weights(arrays).items()}
        wide = {name: np.asarray(value, np.float64) for name, value in found.items()}
        score = OutlierScore(
            wide["mean"], wide["components"], wide["variances"], float(wide["rest"][0]), wide["validation"]
        )
        return cls(score, unit(found["pooled"]), pd.read_parquet(table))

    def similar(self, pooled: Vectors, count: int) -> tuple[NDArray[np.int64], Vectors]:
        """Return the nearest training images of images with features (B, D).

        Returns:
            (B, count) rows of ``table``, the most similar first, and (B, count) cosine similarities; fewer columns
            where there are fewer images.
        """
        with one_blas_thread():
            alike = unit(pooled) @ self.pooled.T
        count = min(count, alike.shape[1])
        rows = np.argsort(-alike, axis=1, kind="stable")[:, :count]
        return rows.astype(np.int64), np.take_along_axis(alike, rows, axis=1)


def unit(vectors: Vectors) -> Vectors:
    """Return vectors (N, D) at length 1; those of length 0 as they are."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1), dtype=np.float32)


def thumbnails(read: Callable[[NDArray[np.int64]], Pixels], rows: NDArray[np.int64]) -> list[bytes]:
    """Return a small JPEG of every stored image at ``rows``; ``read`` gives (B, C, S, S) uint8 or uint16."""
    made = []
    for start in range(0, len(rows), 64):
        made += [thumbnail(pixels) for pixels in read(rows[start : start + 64])]
    return made


def thumbnail(pixels: Pixels) -> bytes:
    """Return a small JPEG of a stored image (1 or 3, S, S)."""
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    image = Image.fromarray(eight[0] if len(eight) == 1 else np.moveaxis(eight, 0, 2))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()
