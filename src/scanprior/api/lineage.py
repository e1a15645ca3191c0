"""Where a run comes from: its parents, and which images they have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from scanprior.config import Tree
from scanprior.errors import ScanpriorError
from scanprior.run import Run, located


def inherited_settings(parent: str | Path | None) -> Tree:
    """Return the settings that the children of a run take over: encoder and preprocessing.

    Raises:
        RunError: the parent is no finished run, or an ensemble.
    """
    if parent is None:
        return {}
    run = Run.open(parent)
    run.refuse_ensemble()
    pre = run.card["preprocessing"]
    data = {name: pre[name] for name in ("size", "channels", "depth", "fit", "standardize")}
    encoder = {
        name: value
        for name, value in run.card["encoder"].items()
        if name not in ("weights", "pretrained", "revision", "sha256", "drop_path")
    }
    store_size = run.config().get("data", {}).get("store_size")
    return {"data": {**data, "store_size": store_size}, "encoder": encoder}


def parent_card(parent: str | Path | None) -> dict[str, Any] | None:
    """Return what a card says of its parent, with the parent's own parents."""
    if parent is None:
        return None
    run = Run.open(parent)
    objective = run.card.get("objective") or {}
    return {
        "path": str(parent),
        "fingerprint": run.fingerprint(),
        "kind": run.card["kind"],
        "objective": objective.get("name"),
        "images": run.card["data"].get("images_used"),
        "transductive": run.card["data"].get("transductive", False),
        "parent": run.card.get("parent"),
    }


def seen_in_pretraining(parent: str | None, frame: pd.DataFrame) -> tuple[int, list[str]]:
    """Count the held-out images that the pretraining saw, through all its stages; say so in a note."""
    held_out = frame[frame["split"].isin(["val", "test"])]
    seen: set[str] = set()
    while parent is not None:
        table = located(parent) / "data.parquet"
        if not table.exists():
            break
        rows = pd.read_parquet(table)
        seen |= set(rows.loc[rows["used"].isin(["pretrain", "train"]), "pixels"])
        try:
            before = Run.open(parent).card.get("parent")
        except ScanpriorError:
            break
        parent = before["path"] if before else None
    both = int(held_out["pixels"].isin(seen).sum())
    if not both:
        return 0, []
    test = int(held_out.loc[held_out["split"] == "test", "pixels"].isin(seen).sum())
    return both, [
        f"transductive: the pretraining saw {test} of the test images and {both - test} of the validation images "
        "(without their labels)"
    ]
