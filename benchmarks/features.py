"""Features of a frozen encoder: against the bare timm forward, and the second time against the first.

``StoredFeatures`` encodes a store's images block by block and keeps what comes out on the disk; the reference is the
same timm network on the same images, normalised and in memory already, in batches of the same size, keeping nothing.
Float32, one channel as the store is grey, evaluation mode; images/s, in turns. Once for all images ours hashes
the encoder's weights, which names the place.

A linear probe is what the features are for: ``scanprior.probe`` of one store and one encoder, with its evaluation and
intervals, once with nothing kept and then again with another label budget. The second time is nearly the same for
any number of images, as building, hashing and saving the network take most of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import Tensor

from benchmarks.made_images import phantom_store
from benchmarks.measure import Row, Settings, Side, in_turns, seconds, speed_row
from scanprior import api
from scanprior.api.features import BLOCK, StoredFeatures
from scanprior.data.store import Store
from scanprior.data.transforms import Preprocessing, to_input
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.engine import Reporter

NETWORKS = ("vit_small_patch16_224", "tf_efficientnet_lite0")


def run(settings: Settings) -> list[Row]:
    """Measure two networks, a slow one and a fast one, and a probe."""
    size, images = settings.of(224, 64), settings.of(6 * BLOCK, BLOCK)
    store = phantom_store(settings.folder, images, size)
    rows = [_against_bare(settings, store, name, tokens) for name in NETWORKS for tokens in (False, True)]
    return [*rows, _second_probe(settings)]


def _against_bare(settings: Settings, store: Store, name: str, tokens: bool) -> Row:
    pre = preprocessing(store)
    encoder = create_encoder(
        EncoderConfig(name=name), size=store.size, channels=store.channels, seed=0
    ).eval()
    batches = [to_input(torch.from_numpy(store.read(part)), pre) for part in parts(len(store))]
    net = timm.create_model(name, num_classes=0, in_chans=store.channels, **_size_of(name, store.size)).eval()
    net.load_state_dict(encoder.net.state_dict())
    if encoder.family == "conv":
        net, batches = (
            net.to(memory_format=torch.channels_last),
            [batch.contiguous(memory_format=torch.channels_last) for batch in batches],
        )
        encoder = encoder.to(memory_format=torch.channels_last)
    folder = settings.folder / "features"

    def ours() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        made = StoredFeatures(encoder, pre, store, tokens=tokens, reporter=Reporter(), folder=folder)
        made.ensure(np.arange(len(store)))

    def bare() -> Tensor:
        with torch.inference_mode():
            return torch.cat([net(batch) for batch in batches])

    ours()
    check_same(StoredFeatures(encoder, pre, store, tokens=tokens, reporter=Reporter(), folder=folder), bare())
    fast, slow = in_turns(ours, bare, settings.repeats)
    what = "pooled and tokens" if tokens else "pooled"
    return speed_row(
        f"features of {name}, {what}",
        Side("kept features", "images/s", [len(store) / s for s in fast]),
        Side("bare forward", "images/s", [len(store) / s for s in slow]),
        target=0.95,
        note=f"{store.size} px, batch {BLOCK}, float32",
    )


def check_same(features: StoredFeatures, bare: Tensor) -> None:
    """See that both sides compute the same.

    Raises:
        AssertionError: they do not.
    """
    found = features.read(np.arange(len(bare))).pooled
    if not torch.allclose(found, bare, rtol=1e-3, atol=1e-4):
        raise AssertionError(f"kept and bare features differ by {float((found - bare).abs().max()):.1e}")


def preprocessing(store: Store) -> Preprocessing:
    """Return the preprocessing of a network that takes the store's images as they are."""
    return Preprocessing(
        size=store.size, channels=store.channels, depth=store.depth, stored_size=store.size, mean=store.mean,
        std=store.std,
    )  # type: ignore[arg-type]  # fmt: skip


def parts(images: int) -> Iterator[np.ndarray]:
    """Yield the blocks of rows that are encoded together."""
    for first in range(0, images, BLOCK):
        yield np.arange(first, min(first + BLOCK, images), dtype=np.int64)


def _size_of(name: str, size: int) -> dict[str, int]:
    return {"img_size": size} if name.startswith("vit") else {}


def _second_probe(settings: Settings) -> Row:
    name, size = ("vit_tiny_patch16_224", 32) if settings.quick else ("vit_base_patch16_224", 224)
    store = phantom_store(settings.folder / "probe", settings.of(2048, 64), size)
    options = {
        "data.size": size, "encoder.name": name, "data.split.fractions": [0.6, 0.2, 0.2],
        "evaluation.resamples": 1000,
    }  # fmt: skip

    def probe(place: str, count: int) -> float:
        given = {**options, "labels.count": count}
        return seconds(lambda: api.probe(str(store.path), out=settings.folder / place, options=given))

    most = settings.of(400, 16)
    first = probe("first", most)
    again = [probe(f"again-{number}", most // 2 + number) for number in range(settings.repeats)]
    return speed_row(
        "linear probe, features kept against first time",
        Side("features kept", "s", again),
        Side("first time", "s", [first] * len(again)),
        target=50.0,
        note=f"{name}, {len(store)} images of {size} px, with evaluation and intervals; the first time once",
    )
