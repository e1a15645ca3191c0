"""Check images and table before anything is trained: what is broken, doubled, leaking or mislabelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.data.audit import Audit
from scanprior.data.duplicates import (
    NEAR_CORRELATION,
    NEAR_DISTANCE,
    NearPairs,
    clusters,
    exact_groups,
    near_pairs,
)
from scanprior.data.manifest import Manifest
from scanprior.data.measure import HASH_BITS, THUMBNAIL, Measurement, measure
from scanprior.data.parallel import ordered_map
from scanprior.data.tables import SPLITS

__all__ = ["Audit", "check", "label_table"]

_OUTLIER = 4.0  # times larger or smaller than the median image


def check(
    manifest: Manifest,
    *,
    workers: int = 2,
    near: bool = True,
    near_distance: int = NEAR_DISTANCE,
    near_correlation: float = NEAR_CORRELATION,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read every image once and audit the manifest. Broken images are findings, not errors.

    Args:
        manifest: what to check.
        workers: processes that decode; 0 decodes in this one. The result does not depend on it.
        near: whether to look for near duplicates.
        near_distance: most differing bits (of 256) of a near duplicate.
        near_correlation: least correlation of its 16 x 16 thumbnail.
        progress: called with (images done, images in all).
    """
    measured = _measure_all(manifest, workers, progress)
    exact = exact_groups(measured.digests)
    pairs = _near(measured, exact, near_distance, near_correlation) if near else None
    frame = manifest.frame
    view = _View(frame, manifest.label_columns)
    return Audit(
        name=manifest.name,
        found=manifest.found,
        summary=_summary(frame, measured.table),
        unreadable=_listed(frame, measured.table, measured.table["error"].notna(), error="reason"),
        blank=_listed(frame, measured.table, measured.table["blank"]),
        depth=_depth(frame, measured.table),
        sizes=_sizes(frame, measured.table),
        exact=[view.together(group) for group in exact],
        near=[] if pairs is None else view.pairs(pairs),
        patients_in_splits=_patients_in_splits(frame),
        labels=label_table(manifest),
        clusters=clusters(len(frame), exact, pairs),
        limits={"near": near, "distance": near_distance, "bits": HASH_BITS, "correlation": near_correlation},
    )


@dataclass(frozen=True)
class _Measured:
    """What was measured, by row: a small table, digests, and the arrays for the search of near duplicates."""

    table: pd.DataFrame
    digests: list[bytes]
    hashes: NDArray[np.uint8]
    thumbnails: NDArray[np.int8]


def _measure_all(manifest: Manifest, workers: int, progress: Callable[[int, int], None] | None) -> _Measured:
    images = manifest.frame["image"].astype(str).tolist()
    hashes = np.zeros((len(images), HASH_BITS // 8), dtype=np.uint8)
    thumbnails = np.zeros((len(images), THUMBNAIL**2), dtype=np.int8)
    digests: list[bytes] = []
    rows: list[tuple[object, ...]] = []
    for place, one in enumerate(ordered_map(partial(measure, root=manifest.root), images, workers)):
        digests.append(one.sha256)
        rows.append(tuple(getattr(one, name) for name in _MEASURED))
        if one.hash:
            hashes[place] = np.frombuffer(one.hash, dtype=np.uint8)
            thumbnails[place] = np.frombuffer(one.thumbnail, dtype=np.int8)
        if progress is not None:
            progress(place + 1, len(images))
    return _Measured(pd.DataFrame(rows, columns=list(_MEASURED)), digests, hashes, thumbnails)


_MEASURED = tuple(
    name for name in Measurement.__dataclass_fields__ if name not in ("sha256", "hash", "thumbnail")
)


def _near(
    measured: _Measured, exact: list[NDArray[np.int64]], distance: int, correlation: float
) -> NearPairs:
    """Search among one image of each exact group, blank and unreadable ones left out."""
    alone = np.any(measured.thumbnails, axis=1)
    for group in exact:
        alone[group[1:]] = False
    rows = np.flatnonzero(alone)
    pairs = near_pairs(
        measured.hashes[rows], measured.thumbnails[rows], distance=distance, correlation=correlation
    )
    return NearPairs(rows[pairs.first], rows[pairs.second], pairs.distance, pairs.correlation, pairs.inverted)


def _text(frame: pd.DataFrame, column: str) -> list[str | None]:
    if column not in frame.columns:
        return [None] * len(frame)
    return [None if pd.isna(value) else str(value) for value in frame[column]]


class _View:
    """Describes duplicates by what the table says of their images."""

    def __init__(self, frame: pd.DataFrame, label_columns: list[str]) -> None:
        self.images = _text(frame, "image")
        self.splits = _text(frame, "split")
        self.patients = _text(frame, "patient")
        self.multiclass = label_columns == ["label"]
        self.labels = frame[label_columns].to_numpy(dtype=object if self.multiclass else np.float64)

    def together(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        splits = [self.splits[row] for row in rows]
        patients = [self.patients[row] for row in rows]
        return {
            "images": [self.images[row] for row in rows],
            "splits": splits,
            "patients": patients,
            "labels": [self._label(row) for row in rows],
            "across_splits": len({split for split in splits if split in SPLITS}) > 1,
            "several_patients": len({patient for patient in patients if patient is not None}) > 1,
            "conflicting_labels": self._conflict(rows),
        }

    def pairs(self, pairs: NearPairs) -> list[dict[str, Any]]:
        return [
            {
                **self.together(np.array([first, second])),
                "distance": int(pairs.distance[place]),
                "correlation": round(float(pairs.correlation[place]), 5),
                "inverted": bool(pairs.inverted[place]),
            }
            for place, (first, second) in enumerate(zip(pairs.first, pairs.second, strict=True))
        ]

    def _label(self, row: int) -> Any:
        values = self.labels[row]
        if not len(values):
            return None
        known = [None if pd.isna(value) else value for value in values]
        return known[0] if self.multiclass else known

    def _conflict(self, rows: NDArray[np.int64]) -> bool:
        """Whether two images of a group are labelled differently; missing and uncertain agree with all."""
        for column in self.labels[rows].T:
            known = {value for value in column if not pd.isna(value) and value != -1.0}
            if len(known) > 1:
                return True
        return False


def _summary(frame: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    fine = table[table["error"].isna()]
    median = fine[["rows", "columns"]].median() if len(fine) else None
    return {
        "images": len(frame),
        "readable": len(fine),
        "patients": int(frame["patient"].nunique()) if "patient" in frame.columns else None,
        "without_patient": int(frame["patient"].isna().sum()) if "patient" in frame.columns else len(frame),
        "splits": {name: int((frame["split"] == name).sum()) for name in SPLITS}
        if "split" in frame.columns
        else {},
        "channels": {
            str(key): int(count) for key, count in fine["channels"].value_counts().sort_index().items()
        },
        "source_bits": {
            str(key): int(count) for key, count in fine["source_bits"].value_counts().sort_index().items()
        },
        "median_size": None if median is None else [float(median["rows"]), float(median["columns"])],
    }


def _listed(
    frame: pd.DataFrame, table: pd.DataFrame, which: pd.Series, **columns: str
) -> list[dict[str, Any]]:
    """Return [{image, …}] of the rows ``which``; ``columns`` maps columns of the measurements to keys."""
    rows = np.flatnonzero(which.to_numpy(dtype=bool))
    return [
        {"image": frame["image"].iloc[row], **{key: table[name].iloc[row] for name, key in columns.items()}}
        for row in rows
    ]


def _depth(frame: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Name images whose depth does not fit: nearly black 16-bit files, unused bits, masks among images."""
    deep, bits = table["dtype"] == "uint16", table["used_bits"]
    dark, part = deep & (bits <= 8), deep & (bits > 8) & (bits < 16) & ~table["blank"]
    two = (table["levels"] == 2) & ~table["blank"]
    found = []
    for row in np.flatnonzero((dark | part | two).to_numpy(dtype=bool)):
        if two[row]:
            severity, reason = "warning", "only two grey levels: a mask rather than an image?"
        elif dark[row]:
            severity, reason = (
                "warning",
                f"16 bits a value of which {bits[row]} are used, so it is nearly black",
            )
        else:
            severity, reason = "note", f"16 bits a value of which {bits[row]} are used"
        found.append({"image": frame["image"].iloc[row], "severity": severity, "reason": reason})
    return found


def _sizes(frame: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Name images whose rows or columns are four times more or less than the median."""
    sizes = table.loc[table["error"].isna(), ["rows", "columns"]]
    if not len(sizes):
        return []
    ratio = table[["rows", "columns"]] / sizes.median()
    far = table["error"].isna() & ((ratio > _OUTLIER) | (ratio < 1 / _OUTLIER)).any(axis=1)
    return [
        {"image": one["image"], "rows": int(one["rows"]), "columns": int(one["columns"])}
        for one in _listed(frame, table, far, rows="rows", columns="columns")
    ]


def _patients_in_splits(frame: pd.DataFrame) -> list[dict[str, Any]]:
    if "patient" not in frame.columns or "split" not in frame.columns:
        return []
    known = frame[frame["patient"].notna() & frame["split"].isin(SPLITS)]
    counts = known.groupby("patient")["split"].value_counts().unstack(fill_value=0)
    leaking = counts[(counts > 0).sum(axis=1) > 1]
    return [
        {"patient": str(patient), "splits": {name: int(row[name]) for name in SPLITS if row.get(name, 0)}}
        for patient, row in leaking.iterrows()
    ]


def label_table(manifest: Manifest) -> list[dict[str, Any]]:
    """Return one entry a label and split: images and patients that have it, negative, uncertain, missing images.

    ``split`` is "all", then "train", "val", "test" and "none" (rows without a split) as far as they
    occur. For classes, "negative" are images of another class.
    """
    frame = manifest.frame
    parts = {"all": pd.Series(True, index=frame.index)}
    if "split" in frame.columns:
        parts |= {name: frame["split"] == name for name in SPLITS} | {"none": frame["split"].isna()}
    entries = []
    for label in manifest.classes:
        values = frame["label"] if manifest.task == "multiclass" else frame[label]
        has = values == (label if manifest.task == "multiclass" else 1)
        missing, uncertain = values.isna(), values == -1
        for split, here in parts.items():
            if not here.any():
                continue
            patients = frame.loc[has & here, "patient"].nunique() if "patient" in frame.columns else None
            entries.append(
                {
                    "label": label,
                    "split": split,
                    "images": int((has & here).sum()),
                    "patients": None if patients is None else int(patients),
                    "negative": int((here & ~has & ~missing & ~uncertain).sum()),
                    "uncertain": int((here & uncertain).sum()),
                    "missing": int((here & missing).sum()),
                }
            )
    return entries
