"""Fine-tuning for lung masks from a store, against a bare loop on tensors that are in memory.

ViT-Ti/8 with a UNETR decoder at 64 px, one channel, batch 64. Ours is ``scanprior.finetune`` itself: reading
images and masks, augmenting both alike, the network, Dice and cross-entropy, AdamW with layer decay, metrics.
Reference: the same network and losses and fused AdamW, over batches that were augmented beforehand. Images/s,
in turns within one training; validation is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bare import BareLoop
from benchmarks.interleaved import Interleaved
from benchmarks.measure import Row, Settings, Side, speed_row
from scanprior.api import finetune, plan_finetuning
from scanprior.api.segmentation import Segmentation
from scanprior.api.settings import FinetuneConfig
from scanprior.api.sources import load
from scanprior.data.phantom import PhantomConfig, write_phantoms
from scanprior.encoders import create_encoder, sample_positions
from scanprior.engine import Reporter, use_plain_attention

SIZE, BATCH = 64, 64
OPTIONS = {
    "data.size": SIZE,
    "encoder.name": "vit_tiny_patch16_224",
    "encoder.patch_size": 8,
    "encoder.depth": 6,
    "task.name": "segment",
    "selection.metric": "last",
    "evaluation.resamples": 100,
}


class BareSegmenter(nn.Module):
    """The loss of a segmenter on a batch that was made beforehand."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        with sample_positions(batch["position"]):
            loss: Tensor = self.model(batch)["loss"]
        return loss


def run(settings: Settings) -> list[Row]:
    """Measure with no loader worker."""
    folder = settings.folder / "lungs"
    write_phantoms(folder, PhantomConfig(patients=settings.of(700, 60), size=SIZE), workers=2)
    config = plan_finetuning(str(folder), options=OPTIONS)
    bare, batches = bare_of(str(folder), config, settings.of(8, 2))
    bf16 = config.engine.precision == "bf16"
    reporter = Interleaved(settings, BareLoop(bare, batches, bf16=bf16))
    finetune(
        str(folder),
        out=settings.folder / "segment",
        reporter=reporter,
        options={**OPTIONS, **reporter.options()},
    )
    images = reporter.steps * BATCH
    return [
        speed_row(
            "finetune masks, workers=0",
            Side("finetune", "images/s", [images / s for s in reporter.ours]),
            Side("bare loop", "images/s", [images / s for s in reporter.bare]),
            target=0.9,
            note=f"ViT-Ti/8 and UNETR, {SIZE} px, batch {BATCH}, {'bfloat16' if bf16 else 'float32'}",
        )
    ]


def bare_of(source: str, config: FinetuneConfig, count: int) -> tuple[BareSegmenter, list[dict[str, Any]]]:
    """Return a bare segmenter, and its batches, made beforehand."""
    images = load([source], config.data, Reporter(), learn="masks")
    work = Segmentation(images, config)
    preprocessing = images.preprocessing(config.data, images.rows("train"))
    encoder = create_encoder(config.encoder, size=SIZE, channels=images.store.channels)
    model = work.network(encoder)
    if config.engine.precision == "bf16" and not torch.cuda.is_available():
        use_plain_attention(model)
    training = work.source(preprocessing)
    positions = np.arange(count * BATCH, dtype=np.int64).reshape(count, BATCH)
    return BareSegmenter(model).train(), [training.batch(places, places) for places in positions]
