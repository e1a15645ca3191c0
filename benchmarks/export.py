"""Inference of an exported file: ONNX Runtime against eager PyTorch, on the CPU.

Both sides take the same 8-bit images of the network's size and give probabilities: PyTorch by ``to_input`` and
``Classifier.predict``, as ``scanprior predict`` does once the images are decoded, ONNX Runtime by the file that
``scanprior export`` writes. Float32, the same number of threads, images/s, in turns; the outputs are compared first.
Freed memory is kept for the next batch on both sides, as ``predict`` and ONNX Runtime do by themselves.
The networks are ConvNets, whose chains of small operators a compiled graph can join; batch 1 is one image that
someone waits for, batch 16 a folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, Settings, Side, in_turns, speed_row
from scanprior.allocation import keep_freed_memory
from scanprior.data.inputs import to_input
from scanprior.data.preprocessing import Preprocessing
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.exporting import ClassifierGraph, open_file, write_file
from scanprior.exporting.written import Opened
from scanprior.tasks.classify import Classifier, ClassifyConfig

NETWORKS = ("convnext_atto", "convnext_tiny", "tf_efficientnet_lite0")
BATCHES = (1, 16)
_CLOSE = 1e-4


def run(settings: Settings) -> list[Row]:
    """Measure every network with every batch."""
    keep_freed_memory()
    size = settings.of(224, 64)
    networks = ("test_convnext.r160_in1k",) if settings.quick else NETWORKS
    return [row for name in networks for row in _network(settings, name, size)]


def classifier(name: str, size: int) -> tuple[Classifier, Preprocessing]:
    """Return a grey classifier of two classes with the same weights every time, and its preprocessing."""
    encoder = create_encoder(EncoderConfig(name=name), size=size, channels=1, seed=0)
    model = Classifier(encoder, ["no", "yes"], "multiclass", ClassifyConfig()).eval()
    return model, Preprocessing(size=size, channels=1, mean=[0.5], std=[0.25])


def _network(settings: Settings, name: str, size: int) -> list[Row]:
    model, preprocessing = classifier(name, size)
    path = Path(settings.folder) / f"{name}.onnx"
    write_file(ClassifierGraph([(model, preprocessing)], model.classes, None), path, "onnx", {})
    compute = open_file(path, "onnx", threads=settings.threads)

    def eager(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return model.predict([to_input(pixels, preprocessing)])

    rows = []
    for batch in BATCHES:
        draws = np.random.default_rng(batch)
        pixels = draws.integers(0, 256, (batch, 1, size, size), dtype=np.uint8)
        difference = float(np.abs(compute(pixels) - eager(pixels)).max())
        if not difference <= _CLOSE:
            raise AssertionError(
                f"{name}: the outputs differ by {difference:.1e}, so times cannot be compared"
            )
        rounds = settings.of(max(1, 32 // batch), 1)

        fast, slow = in_turns(
            partial(_repeated, compute, pixels, rounds),
            partial(_repeated, eager, pixels, rounds),
            settings.repeats,
        )
        rows.append(
            speed_row(
                f"inference of {name}, ONNX Runtime against PyTorch, batch {batch}",
                Side("ONNX Runtime", "images/s", [batch * rounds / s for s in fast]),
                Side("eager PyTorch", "images/s", [batch * rounds / s for s in slow]),
                target=1.2,
                note=f"{size} px, float32, {settings.threads} threads each",
                details={"largest_difference": difference},
            )
        )
    return rows


def _repeated(side: Opened, pixels: NDArray[np.uint8], rounds: int) -> None:
    for _ in range(rounds):
        side(pixels)
