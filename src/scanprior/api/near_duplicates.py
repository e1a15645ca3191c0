"""Divide a source so that images which look the same stay together, as do those of a patient.

What looks the same is measured on the images as they are, not on the stored ones: a pretraining at 64
pixels and a fine-tuning at 224 see the same division.
"""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
from numpy.typing import NDArray

from scanprior.api.settings import DataConfig
from scanprior.data.check import check
from scanprior.data.duplicates import NEAR_CORRELATION, NEAR_DISTANCE
from scanprior.data.manifest import Manifest, counted
from scanprior.data.split import assign_splits
from scanprior.data.store import Store
from scanprior.engine import Reporter
from scanprior.errors import DataError

NEAR_DUPLICATES = "near_duplicates"
"""The value of ``data.split.group`` for this division."""

_KEPT = "near_duplicates.json"
_LIMITS = {"distance": NEAR_DISTANCE, "correlation": NEAR_CORRELATION}


def split_near_duplicates(store: Store, data: DataConfig, reporter: Reporter) -> Manifest:
    """Return the manifest of a store with its split; images connected by patient or by looks are in one part.

    Raises:
        DataError: an image of the store is no longer where it was, so that its looks cannot be measured.
    """
    clusters = _clusters(store, data.workers, reporter)
    sizes = np.bincount(clusters)
    reporter.note(
        f"{store.name}: {counted(int(sizes[sizes > 1].sum()), 'image')} in {counted(int((sizes > 1).sum()), 'group')} "
        "of images that look the same stay together"
    )
    divided = assign_splits(
        store.manifest(), fractions=data.split.fractions, seed=data.split.seed, clusters=clusters
    )
    split = divided.frame["split"].to_numpy(dtype=object)
    across = int(((split == "train") & np.isin(clusters, clusters[split != "train"])).sum())
    if across:  # only where val or test were given
        reporter.note(
            f"warning: {counted(across, 'training image')} of {store.name} look like images of its own validation or "
            "test images"
        )
    return divided


def _clusters(store: Store, workers: int, reporter: Reporter) -> NDArray[np.int64]:
    """Return the cluster of every image of a store, (n,); kept beside the store once measured."""
    place = store.path / _KEPT
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        found = np.array(kept["clusters"], dtype=np.int64)
        if (
            kept["fingerprint"] == store.fingerprint
            and kept["limits"] == _LIMITS
            and len(found) == len(store)
        ):
            return found
    audit = check(
        store.manifest(), workers=workers,
        progress=lambda done, total: reporter.counted(done, total, "images compared by their looks"),
    )  # fmt: skip
    if audit.unreadable:
        first = audit.unreadable[0]
        raise DataError(
            f"{store.path}: near duplicates are looked for in the original images, of which {first['image']} in "
            f"{store.root} cannot be read ({first['reason']}; {counted(len(audit.unreadable), 'such image')}); put "
            "them back, or choose another data.split.group"
        )
    facts = {"fingerprint": store.fingerprint, "limits": _LIMITS, "clusters": audit.clusters.tolist()}
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):  # a store of someone else: measured again next time
        partial.write_text(json.dumps(facts), encoding="utf-8")
        partial.replace(place)
    return audit.clusters
