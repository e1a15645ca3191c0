"""Entropy-guided masks of a batch of 64 at 224 px: against a training step, and against scikit-image.

Ours: ``guided_patch_mask`` with its defaults (Shannon entropy of 32 classes in units of 32 px, Gumbel draw).
The step is one of ``masked_convnet`` with ConvNeXt-T on the faster path, without guidance. The reference of
the scores is a loop over the images with ``skimage.filters.rank.entropy`` in a window of the unit's size,
read at the units' centres: what one would write with that library, though it works out every pixel. A turn of
ours there is several batches in a row, as in training: one takes so little that waking the processor would count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bare import BareLoop
from benchmarks.masked_convnext import Loss, made_batches, masked
from benchmarks.measure import Row, Settings, Side, in_turns, speed_row
from scanprior.masking import Guidance, guided_patch_mask

UNIT, RATIO = 32, 0.75
IN_A_ROW = 10


def run(settings: Settings) -> list[Row]:
    """Measure the part of a step, and the speed against the loop."""
    batch, size = settings.of(64, 4), settings.of(224, 64)
    images = made_batches(batch, size, 1)[0]["views"][0]
    return [_part_of_step(settings, images), _against_loop(settings, images)]


def masks(images: Tensor) -> Tensor:
    """Return guided masks of images (B, C, H, W): bool (B, N)."""
    found = guided_patch_mask(
        images, UNIT, RATIO, Guidance(beta=1.0), seed=0, positions=np.arange(len(images), dtype=np.int64)
    )
    return found.mask.mask


def _part_of_step(settings: Settings, images: Tensor) -> Row:
    name = "convnext_atto" if settings.quick else "convnext_tiny"
    batches = made_batches(len(images), images.shape[-1], 1)
    loop = BareLoop(Loss(masked(name, images.shape[-1], "gathered")), batches, bf16=False)
    ours, step = in_turns(lambda: masks(images), lambda: loop.run(1), settings.repeats)
    parts = [a / b for a, b in zip(ours, step, strict=True)]
    return Row(
        "guided masks, part of a ConvNeXt step", sorted(parts)[len(parts) // 2], target=0.03, sense="<=",
        ours=Side("scores and masks", "s", ours), reference=Side(f"{name} step, float32", "s", step),
        spread=(min(parts), max(parts)), note=f"batch {len(images)}, {images.shape[-1]} px",
    )  # fmt: skip


def _against_loop(settings: Settings, images: Tensor) -> Row:
    name = "guided masks, against a scikit-image loop"
    try:
        from skimage.filters.rank import entropy
    except ImportError as error:
        return Row(name, None, target=20.0, note=f"skipped: {error}; pip install 'scikit-image>=0.24'")
    values = (255 * (images.mean(1) - images.amin()) / (images.amax() - images.amin())).byte().numpy()
    window = np.ones((UNIT, UNIT), dtype=np.uint8)
    centres = slice(UNIT // 2, None, UNIT)

    def loop() -> Any:
        scores = torch.tensor(
            np.stack([entropy(image, window)[centres, centres].ravel() for image in values])
        )
        hide = round(RATIO * scores.shape[1])
        noisy = scores - (-torch.rand(scores.shape).log()).log()
        return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, noisy.topk(hide, dim=1).indices, True)

    def in_a_row() -> None:
        for _ in range(IN_A_ROW):
            masks(images)

    ours, theirs = in_turns(in_a_row, loop, settings.repeats)
    each = [turn / IN_A_ROW for turn in ours]
    return speed_row(
        name, Side("scores and masks", "s", each), Side("rank.entropy, image by image", "s", theirs), target=20.0,
        note=f"batch {len(images)}, {images.shape[-1]} px, units of {UNIT} px; ours {IN_A_ROW} batches in a row",
    )  # fmt: skip
