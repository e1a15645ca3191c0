"""``pretrain`` from a store, against a bare loop on tensors that are in memory.

ViT-Ti/8 at 64 px, one channel, batch 64, bfloat16 where the machine computes it; ``gmml`` with one view and
``mae`` with a decoder of 128 x 2. Ours is ``scanprior.pretrain`` itself: reading the store, augmenting,
drawing masks, corrupting, the network, clipping where the method has it, AdamW, metrics; plus its share of
one checkpoint in every epoch of 6,000 images (timed apart). Reference: the same timm network, heads,
attention kernel, loss, clipping and fused AdamW, over batches that were augmented and corrupted beforehand.
Images/s, in turns within one training. Both losses are first checked to be equal for equal weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from benchmarks.bare import BareGmml, BareLoop, BareMae, Tensors, check_same
from benchmarks.interleaved import Interleaved
from benchmarks.made_images import phantom_store
from benchmarks.measure import Row, Settings, Side, seconds, speed_row
from scanprior import objectives
from scanprior.api import plan_pretraining, pretrain
from scanprior.api.settings import PretrainConfig
from scanprior.data.loader import TrainingSource
from scanprior.data.store import Store
from scanprior.data.transforms import Preprocessing
from scanprior.encoders import create_encoder
from scanprior.engine import use_plain_attention
from scanprior.engine.checkpoint import Checkpoints, Progress
from scanprior.engine.optimizer import make_optimizer
from scanprior.masking import random_patch_mask
from scanprior.objectives.guided import hidden_ids

SIZE, BATCH, EPOCH_IMAGES = 64, 64, 6000
_WORKERS = (0, 1)
_OWN = {
    "gmml": {"objective.views": 1},
    "mae": {"objective.decoder_dim": 128, "objective.decoder_depth": 2, "objective.decoder_heads": 4},
}


def run(settings: Settings) -> list[Row]:
    """Measure both objectives, with no loader worker and with one."""
    store = phantom_store(settings.folder, settings.of(2048, 128), SIZE)
    return [row for name in _OWN for row in _objective(settings, store, name)]


def options(name: str) -> dict[str, Any]:
    """Return the settings of an objective's training, but for its length."""
    depth = {"encoder.name": "vit_tiny_patch16_224", "encoder.patch_size": 8}
    return {"data.size": SIZE, "pictures": 0, "engine.batch_size": BATCH, **depth, **_OWN[name]}


def _objective(settings: Settings, store: Store, name: str) -> list[Row]:
    config = plan_pretraining(str(store.path), objective=name, options=options(name))
    module, source = build(config, store)
    bare, batches = bare_of(module, source, config, settings.of(8, 2))
    clip = config.engine.clip if config.engine.clip_mode == "per_tensor" else None
    bf16 = config.engine.precision == "bf16"
    saved = _checkpoint_seconds(settings, module, config, name)
    rows = []
    for workers in _WORKERS:
        reporter = Interleaved(settings, BareLoop(bare, batches, bf16=bf16, clip=clip))
        pretrain(
            str(store.path), out=settings.folder / f"pretrain-{name}-{workers}", objective=name, reporter=reporter,
            options={**options(name), **reporter.options(), "engine.workers": workers},
        )  # fmt: skip
        rows.append(_row(name, workers, reporter, saved, config.engine.precision))
    return rows


def build(config: PretrainConfig, store: Store) -> tuple[objectives.Objective, TrainingSource]:
    """Build the objective of a configuration and a source of its batches over the whole store."""
    preprocessing = Preprocessing(size=SIZE, channels=store.channels, mean=store.mean, std=store.std)
    encoder = create_encoder(config.encoder, size=SIZE, channels=store.channels)
    method = objectives.get(config.objective.name)  # type: ignore[attr-defined]
    chosen = method.Config.model_validate(config.objective.model_dump(exclude={"name"}))
    module = method(encoder, chosen, seed=config.engine.seed)
    rows = np.arange(len(store), dtype=np.int64)
    source = TrainingSource(
        store, rows, augmentation=config.augment, preprocessing=preprocessing, seed=config.engine.seed,
        views=module.views, donors=module.needs_donors,
    )  # fmt: skip
    return module, source


def bare_of(
    module: Any, source: TrainingSource, config: PretrainConfig, count: int
) -> tuple[BareGmml | BareMae, list[Tensors]]:
    """Return a bare loss with the weights of an objective, and its batches, made beforehand.

    Raises:
        AssertionError: its loss is not the objective's.
    """
    net = timm.create_model(
        config.encoder.name, img_size=SIZE, num_classes=0, in_chans=module.encoder.channels,
        drop_path_rate=config.encoder.drop_path, **config.encoder.overrides(),
    )  # fmt: skip
    net.load_state_dict(module.encoder.net.state_dict())
    if config.engine.precision == "bf16" and not torch.cuda.is_available():
        use_plain_attention(net)  # as the training loop does: the bare loop is not to lose by timm's default
    bare: BareGmml | BareMae
    if module.name == "gmml":
        bare = BareGmml(net, module.head, module.blocks)
    else:
        bare = BareMae(net, module.decoder, module.encoder.stride)
    positions = np.arange(count * BATCH, dtype=np.int64).reshape(count, BATCH)
    made = [source.batch(places, places) for places in positions]
    ready = [_ready(module, batch) for batch in made]
    module.eval(), bare.eval()
    check_same(module.name, lambda: module(made[0])["loss"], lambda: bare(ready[0]))
    module.train(), bare.train()
    return bare, ready


def _ready(module: Any, batch: Tensors) -> Tensors:
    """Corrupt a batch, or choose its patches, as the objective will do."""
    if module.name == "gmml":
        clean, corrupted, mask, _ = module.corrupt_views(batch, 1)
        return {"clean": clean, "corrupted": corrupted, "mask": mask}
    ratio, patches = module.config.mask_ratio, module.encoder.grid**2
    mask = random_patch_mask(patches, ratio, seed=module.seed, positions=batch["position"], purpose="mae")
    return {
        "images": batch["views"][0],
        "keep": mask.ids_keep,
        "restore": mask.ids_restore,
        "hidden": hidden_ids(mask.mask),
    }


def _checkpoint_seconds(settings: Settings, module: Any, config: PretrainConfig, name: str) -> Side:
    """Time the writing of a checkpoint with all of AdamW's state."""
    optimizer = make_optimizer(module, config.engine)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    saving = Checkpoints(Path(settings.folder) / f"checkpoint-{name}")
    taken = [
        seconds(lambda step=step: saving.save(Progress(step=step), module, optimizer, None))
        for step in range(1 + settings.repeats)
    ]
    return Side("one checkpoint", "s", taken[1:])


def _row(name: str, workers: int, timed: Interleaved, saved: Side, precision: str) -> Row:
    share = saved.median * timed.steps * BATCH / EPOCH_IMAGES
    images = timed.steps * BATCH
    bare = Side("bare loop", "images/s", [images / s for s in timed.bare])
    ours = Side("pretrain", "images/s", [images / (s + share) for s in timed.ours])
    plain = replace(ours, repeats=[images / s for s in timed.ours])
    return speed_row(
        f"pretrain {name}, workers={workers}", ours, bare, target=0.95,
        note=f"ViT-Ti/8, 64 px, batch {BATCH}, {precision}",
        details={"without_checkpoints": speed_row("", plain, bare).value, "checkpoint_seconds": saved.repeats},
    )  # fmt: skip
