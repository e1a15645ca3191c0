"""Name the images of a source that look the same, so that they stay together as the images of a patient do.

What looks the same is measured on the images as they are, not on the stored ones: a pretraining at 64
pixels and a fine-tuning at 224 see the same groups.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.data.check import check
from scanprior.data.duplicates import NEAR_CORRELATION, NEAR_DISTANCE
from scanprior.data.manifest import Manifest, counted
from scanprior.data.split import NEAR_DUPLICATES, joined_groups
from scanprior.data.store import Store
from scanprior.engine import Reporter
from scanprior.errors import DataError
from scanprior.files import write_text

_KEPT = "near_duplicates.json"
_LIMITS = {"distance": NEAR_DISTANCE, "correlation": NEAR_CORRELATION}


def with_near_duplicates(store: Store, workers: int, reporter: Reporter) -> Manifest:
    """Return the manifest of a store with the column ``near_duplicates``: equal text for what stays together.

    Images are together that are connected by looks or by patient. Masks are not looked at. A table that brings
    the column keeps its own.

    Raises:
        DataError: an image of the store is no longer where it was, so that its looks cannot be measured.
    """
    manifest = store.manifest()
    if NEAR_DUPLICATES in manifest.frame:
        return manifest
    clusters = _clusters(store, workers, reporter)
    sizes = np.bincount(clusters)
    reporter.note(
        f"{store.name}: {counted(int(sizes[sizes > 1].sum()), 'image')} in {counted(int((sizes > 1).sum()), 'group')} "
        "of images that look the same stay together"
    )
    names = f"{store.name}/" + joined_groups(manifest.frame, clusters)
    return replace(manifest, frame=manifest.frame.assign(**{NEAR_DUPLICATES: names}))


def warn_of_looks(frame: pd.DataFrame, source: str, reporter: Reporter) -> None:
    """Say how many training images look like held-out ones; only where a source names its own val or test."""
    held_out = frame.loc[frame["split"].isin(["val", "test"]), NEAR_DUPLICATES].dropna()
    across = int(((frame["split"] == "train") & frame[NEAR_DUPLICATES].isin(held_out)).sum())
    if across:
        reporter.note(
            f"warning: {counted(across, 'training image')} of {source} {'look' if across > 1 else 'looks'} like images "
            "of its own validation or test images"
        )


def _clusters(store: Store, workers: int, reporter: Reporter) -> NDArray[np.int64]:
    """Return the cluster of every image of a store, (n,); kept beside the store once measured."""
    place = store.path / _KEPT
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        found = np.array(kept["clusters"], dtype=np.int64)
        if (
            kept["fingerprint"] == store.fingerprint
            and kept["limits"] == _LIMITS
            and found.shape == (len(store),)
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
    with contextlib.suppress(OSError):  # a store of someone else: measured again next time
        write_text(place, json.dumps(facts))
    return audit.clusters
