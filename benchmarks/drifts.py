"""All synthetic drifts of a set of images, against one evaluation pass over the set.

Ours: ``apply_drift`` for the 8 kinds at 5 severities, so 40 drifted sets of grey uint8 phantoms of 224 px.
Reference: one forward pass of timm's ``vit_small_patch16_224`` over the set once, in bfloat16, batches of 64.
A drift test has to pay for 40 such passes; what the drifts add to them should be less than one.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import timm
import torch

from benchmarks.made_images import phantom_images
from benchmarks.measure import Row, Settings, Side, in_turns, seconds, speed_row
from scanprior.data.drifts import DRIFTS, SEVERITIES, apply_drift

BATCH = 64


def run(settings: Settings) -> list[Row]:
    """Measure all kinds together; the details give milliseconds an image for each."""
    count = settings.of(256, 2)
    images = torch.from_numpy(phantom_images(count, 224))[:, None]
    places = np.arange(count, dtype=np.int64)
    network = timm.create_model("vit_small_patch16_224", in_chans=1, num_classes=0).eval().to(torch.bfloat16)

    def drift(kind: str) -> None:
        for severity in SEVERITIES[1:]:
            apply_drift(images, kind, severity, seed=0, positions=places)

    def ours() -> None:
        for kind in DRIFTS:
            drift(kind)

    def reference() -> None:
        with torch.inference_mode():
            for batch in images.split(BATCH):
                network(batch.to(torch.bfloat16).div_(255))

    fast, slow = in_turns(ours, reference, settings.repeats)
    drawn = 1000 * count * (len(SEVERITIES) - 1)
    each = {kind: median(seconds(lambda k=kind: drift(k)) for _ in range(3)) for kind in DRIFTS}  # type: ignore[misc]
    return [
        speed_row(
            f"40 drifts of {count} x 1 x 224 x 224 within one ViT-S pass",
            Side("8 kinds x 5 severities", "s", fast),
            Side("vit_small_patch16_224, bfloat16, one pass", "s", slow),
            target=1.0,
            details={
                "milliseconds an image": {kind: 1e6 * spent / drawn for kind, spent in each.items()},
                "images/s of the network": count / median(slow),
            },
        )
    ]
