"""How the images of a source are divided into train, val and test, and what a card says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pandas as pd

from scanprior.api.near_duplicates import warn_of_looks, with_near_duplicates
from scanprior.api.settings import DataConfig
from scanprior.data.manifest import Manifest
from scanprior.data.masks import mask_columns
from scanprior.data.split import NEAR_DUPLICATES, assign_splits, split_fingerprint
from scanprior.data.store import Store
from scanprior.engine import Reporter
from scanprior.errors import DataError

Learn = Literal["nothing", "labels", "masks"]
"""What of the sources is learned from."""


def divided(store: Store, data: DataConfig, learn: Learn, training: bool, reporter: Reporter) -> pd.DataFrame:
    """Return the rows of a store with their split: its own, completed by ``data.split``, or that of ``data.split``.

    Args:
        store: of one source.
        data: names the division.
        learn: what is learned from it.
        training: whether folds are an error of a source with val or test images of its own; else it keeps them.
        reporter: is told of near duplicates in several splits.

    Raises:
        DataError: there are no labels to learn from.
        SplitError: it cannot be divided so.
    """
    manifest = store.manifest()
    has_split = "split" in manifest.frame and manifest.frame["split"].notna().any()
    supervised = manifest.label_columns or mask_columns(manifest.frame)
    if not supervised and not has_split:
        if learn == "labels":
            raise DataError(
                f"{store.name}: there are no labels; give a table with a label column, or class folders"
            )
        return manifest.frame.assign(split="train")
    manifest = _manifest(store, data, reporter)
    given = set(manifest.frame["split"].dropna()) if has_split else set()
    fold = data.split.chosen_fold if training or not given & {"val", "test"} else None
    complete = {"train", "val"} <= given or (has_split and "train" not in given)
    if not complete or fold is not None:
        manifest = _assigned(manifest, data, fold)
    if NEAR_DUPLICATES in manifest.frame:
        warn_of_looks(manifest.frame, store.name, reporter)
    return manifest.frame


def as_it_is(store: Store, data: DataConfig, reporter: Reporter) -> pd.DataFrame:
    """Return the rows of a store, with its own split or none."""
    frame = _manifest(store, data, reporter).frame
    return frame if "split" in frame else frame.assign(split=pd.Series(pd.NA, index=frame.index, dtype="str"))


def _manifest(store: Store, data: DataConfig, reporter: Reporter) -> Manifest:
    """Return the manifest of a store, with its near duplicates where they are to stay together, and only then."""
    if data.split.group == NEAR_DUPLICATES:
        return with_near_duplicates(store, data.workers, reporter)
    manifest = store.manifest()
    kept = manifest.frame.rename(columns={NEAR_DUPLICATES: f"{NEAR_DUPLICATES} (table)"})
    return replace(manifest, frame=kept)


def _assigned(manifest: Manifest, data: DataConfig, fold: tuple[int, int] | None) -> Manifest:
    group, split = data.split.group, data.split
    return assign_splits(
        manifest, fractions=split.fractions, seed=split.seed, group=None if group == "none" else group,
        clusters=pd.factorize(manifest.frame["pixels"])[0] if group == "cluster" else None,
        fold=fold,
    )  # fmt: skip


def leakage_across(frame: pd.DataFrame) -> dict[str, object]:
    """Count patients, identical images and (where known) near duplicates that stand in more than one split."""
    divided = frame[frame["split"].notna()]
    patients = 0
    if "patient" in divided and divided["patient"].notna().any():
        who = divided[divided["patient"].notna()].groupby(["source", "patient"])["split"].nunique()
        patients = int((who > 1).sum())
    exact = int((divided.groupby("pixels")["split"].nunique() > 1).sum())
    near = None
    if NEAR_DUPLICATES in divided:
        near = int((divided.groupby(NEAR_DUPLICATES)["split"].nunique() > 1).sum())
    found = patients + exact > 0
    summary = (
        f"{patients} patients and {exact} identical images stand in more than one split"
        if found
        else "No patient and no identical image stands in more than one split"
    )
    return {
        "checked": True,
        "leakage": found,
        "patients_across": patients,
        "exact_across": exact,
        "near_across": near,
        "summary": summary,
    }


def split_card(frame: pd.DataFrame, data: DataConfig) -> dict[str, object]:
    """Return what the card says of a split: fingerprint, seed and counts."""
    counts = {}
    for name in ("train", "val", "test"):
        part = frame[frame["split"] == name]
        labels = part["label"].value_counts().to_dict() if "label" in part else {}
        counts[name] = {
            "images": len(part),
            "patients": int(part["patient"].nunique()) if "patient" in part else None,
            "labels": {str(k): int(v) for k, v in labels.items()},
        }
    return {
        "fingerprint": split_fingerprint(frame),
        "seed": data.split.seed,
        "group": data.split.group,
        "folds": data.split.folds,
        "fold": data.split.fold,
        "counts": counts,
    }
