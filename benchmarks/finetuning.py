"""Fine-tuning ``convnext_atto`` from a store, against a bare loop on tensors that are in memory.

64 px, one channel, batch 64, float32, two classes. Ours is ``scanprior.finetune`` itself with its published
defaults (chest X-ray augmentation, layer decay, drop path, weighted loss). Reference: the same timm
network with weights and images in channels-last order, the same head and loss, fused AdamW in two groups.
Images/s, in turns within one training; validation is off. The losses are first checked to be equal.
"""

from __future__ import annotations

import numpy as np
import timm
import torch

from benchmarks.bare import BareClassifier, BareLoop, Tensors, check_same
from benchmarks.interleaved import Interleaved
from benchmarks.made_images import phantom_store
from benchmarks.measure import Row, Settings, Side, speed_row
from scanprior.api import finetune, plan_finetuning
from scanprior.api.settings import FinetuneConfig
from scanprior.data.store import Store
from scanprior.data.transforms import Preprocessing, to_input
from scanprior.encoders import create_encoder, sample_positions
from scanprior.tasks.classify import Classifier

SIZE, BATCH, NETWORK = 64, 64, "convnext_atto"
OPTIONS = {
    "data.size": SIZE,
    "data.split.fractions": [0.9, 0.05, 0.05],
    "encoder.name": NETWORK,
    "engine.precision": "32",
    "selection.metric": "last",
    "evaluation.resamples": 100,
}


def run(settings: Settings) -> list[Row]:
    """Measure with no loader worker."""
    store = phantom_store(settings.folder, settings.of(2048, 128), SIZE)
    config = plan_finetuning(str(store.path), options=OPTIONS)
    bare, batches = bare_of(store, config, settings.of(8, 2))
    reporter = Interleaved(settings, BareLoop(bare, batches, bf16=False))
    finetune(
        str(store.path), out=settings.folder / "finetune", reporter=reporter,
        options={**OPTIONS, **reporter.options()},
    )  # fmt: skip
    images = reporter.steps * BATCH
    return [
        speed_row(
            f"finetune {NETWORK}, workers=0",
            Side("finetune", "images/s", [images / s for s in reporter.ours]),
            Side("bare loop", "images/s", [images / s for s in reporter.bare]),
            target=0.85,
            note=f"{SIZE} px, batch {BATCH}, float32, channels-last",
        )
    ]


def bare_of(store: Store, config: FinetuneConfig, count: int) -> tuple[BareClassifier, list[Tensors]]:
    """Return a bare classifier in channels-last order, and its batches, made beforehand.

    Raises:
        AssertionError: its loss is not that of scanprior's classifier with the same weights.
    """
    encoder = create_encoder(config.encoder, size=SIZE, channels=store.channels)
    weights = torch.tensor([0.8, 1.2])
    model = Classifier(encoder, ["a", "b"], "multiclass", config.task, weights)
    net = timm.create_model(
        NETWORK, num_classes=0, in_chans=store.channels, drop_path_rate=config.encoder.drop_path
    )
    net.load_state_dict(encoder.net.state_dict())  # type: ignore[operator, union-attr]
    bare = BareClassifier(net, model.head, weights).to(memory_format=torch.channels_last)
    preprocessing = Preprocessing(size=SIZE, channels=store.channels, mean=store.mean, std=store.std)
    batches = []
    for number in range(count):
        rows = np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.int64) % len(store)
        images = to_input(store.read(rows), preprocessing).contiguous(memory_format=torch.channels_last)
        batches.append({"images": images, "target": torch.from_numpy(rows % 2)})
    model.eval(), bare.eval()
    first = batches[0]
    ours = {"views": first["images"][None], "target": first["target"], "position": torch.arange(BATCH)}
    with sample_positions(ours["position"]):
        check_same(NETWORK, lambda: model(ours)["loss"], lambda: bare(first))
    bare.train()
    return bare, batches
