"""Divide images into train, val and test by patient; draw nested label budgets.

All choices are functions of (seed, names in the table): the order of the rows does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scanprior import keyed
from scanprior.data.manifest import Manifest
from scanprior.data.tables import SPLITS, suggestion
from scanprior.errors import SplitError

Group = str | None
"""What must stay together: "auto", "patient", "cluster", a column, or None for single images."""

NEAR_DUPLICATES = "near_duplicates"
"""The column that joins images which look the same and those of a patient, where it was asked for."""


def assign_splits(
    manifest: Manifest,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    group: Group = "auto",
    clusters: NDArray[np.int64] | None = None,
    stratify: bool = True,
    keep_test: bool = True,
    fold: tuple[int, int] | None = None,
) -> Manifest:
    """Return the manifest with a complete ``split`` column of train, val and test.

    Groups are dealt out whole, label by label from the rarest on, each to the split that still
    lacks most of that label (iterative stratification, Sechidis et al. 2011, over groups in place
    of single samples); the last groups of a label go where there is none of it yet.

    Args:
        manifest: what to divide.
        fractions: wanted shares of the images, in the order train, val, test; 0 makes no such split.
        seed: another seed is another division.
        group: what stays together. "auto" joins patients and, where given, ``clusters``: images
            connected through either are one group. "patient", "cluster" or the name of a column
            takes only that; None takes each image alone. Rows without a value are alone.
        clusters: (n,) int64, equal numbers for images that are duplicates (``Audit.clusters``).
        stratify: whether labels are spread evenly; without it only the sizes count.
        keep_test: keep val and test rows that the manifest already names (an official split) and
            divide the rest; False divides everything anew.
        fold: (k, folds), k from 1: test is the k-th of as many parts of one size, in place of its share;
            train and val divide the rest, in the proportion of theirs. The test images of all k are all
            images, each once.

    Raises:
        SplitError: a class has fewer groups than splits, there are too few groups, folds of a source that
            names its own val or test images, or an argument is wrong.
    """
    shares = _shares(fractions)
    frame = manifest.frame
    given = frame.get("split", pd.Series([None] * len(frame), dtype="str")).to_numpy(dtype=object)
    kept = np.isin(given.astype(str), ["val", "test"]) & keep_test
    wanted = {
        name: share for name, share in shares.items() if name == "train" or not (given[kept] == name).any()
    }
    groups = _groups(frame, group, clusters)
    open_rows = np.flatnonzero(~kept)
    if fold is not None and kept.any():
        raise SplitError(
            f"{manifest.name}: {int(kept.sum())} images are val or test by its own split, which data.split.folds="
            f"{fold[1]} would divide anew; set data.split.folds and data.split.fold to null, or give a table "
            "without a split column"
        )
    if not len(open_rows):
        raise SplitError(
            f"{manifest.name}: every image is already val or test, so nothing is left to train on"
        )
    split = given.copy()
    if fold is not None:
        tested = _fold(manifest, groups, fold, seed, stratify)
        split[tested] = "test"
        open_rows = np.flatnonzero(~tested)
        wanted.pop("test", None)
    if len(wanted) == 1:
        split[open_rows] = "train"
    else:
        purpose = "split" if fold is None else f"split, fold {fold[0]} of {fold[1]}"
        split[open_rows] = _deal(manifest, open_rows, groups[open_rows], wanted, seed, stratify, purpose)
    made = frame.assign(split=pd.Series(split, index=frame.index, dtype="str"))
    return replace(manifest, frame=made)


def split_fingerprint(frame: pd.DataFrame) -> str:
    """Return 16 hex digits of the pairs (image, split), sorted; equal for equal divisions in any row order.

    Raises:
        SplitError: the frame has no split column.
    """
    if "split" not in frame.columns:
        raise SplitError("the table has no split column to take the fingerprint of; assign splits first")
    pairs = sorted(zip(frame["image"].astype(str), frame["split"].fillna("").astype(str), strict=True))
    return hashlib.sha256("\n".join(f"{image}\t{split}" for image, split in pairs).encode()).hexdigest()[:16]


def label_budget(
    frame: pd.DataFrame,
    label_columns: Sequence[str],
    *,
    count: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    group: Group = "auto",
) -> NDArray[np.int64]:
    """Return the row positions of the images whose labels are used, in the order in which they are drawn.

    A smaller budget is the beginning of a larger one with the same seed. Classes take turns
    (findings, and "none of them"; a class that runs out is passed over), patients come in keyed
    order, and each gives one image before any gives a second. With a ``split`` column only train
    rows are drawn.

    Args:
        frame: manifest rows.
        label_columns: as in the manifest.
        count: number of labelled images; or
        fraction: share of the labelled images, in (0, 1].
        seed: another seed is another draw.
        group: column that says which images belong together; without it, or with None, each image is alone;
            "auto" is `owners_of`.

    Returns:
        int64 positions in ``frame``, shape (count,).

    Raises:
        SplitError: neither or both of count and fraction, more than there are, or fewer than there are classes.
    """
    if (count is None) == (fraction is None):
        raise SplitError("a label budget is either a count or a fraction; give one of the two")
    values = frame[list(label_columns)]
    usable = (values.notna() & (values != -1)).any(axis=1).to_numpy(dtype=bool)  # -1 is uncertain
    if "split" in frame.columns:
        usable = usable & (frame["split"] == "train").to_numpy(dtype=bool)
    rows = np.flatnonzero(usable)
    wanted = _wanted(count, fraction, len(rows))
    classes = _classes(frame.iloc[rows], label_columns)
    names = sorted(set().union(*classes))
    if list(label_columns) == ["label"] and wanted < len(names):
        raise SplitError(
            f"{wanted} labels cannot cover the {len(names)} classes; ask for at least {len(names)}"
        )
    ordered = _draw_order(frame.iloc[rows], seed, group)
    queues = {name: [place for place in ordered if name in classes[place]] for name in names}
    starts = dict.fromkeys(names, 0)
    drawn: dict[int, None] = {}
    while len(drawn) < wanted:
        for name in names:
            queue = queues[name]
            while starts[name] < len(queue) and queue[starts[name]] in drawn:
                starts[name] += 1
            if starts[name] < len(queue):
                drawn[queue[starts[name]]] = None
    return rows[np.fromiter(drawn, dtype=np.int64)[:wanted]]


def joined_groups(frame: pd.DataFrame, clusters: NDArray[np.int64]) -> pd.Series:
    """Return a name for every row, equal for images that a patient or a cluster connects: their least image's.

    Args:
        frame: manifest rows.
        clusters: (n,) int64, equal numbers for images that are duplicates.
    """
    names = frame["image"].astype(str)
    return names.groupby(_groups(frame, "auto", clusters)).transform("min")


def owners_of(frame: pd.DataFrame) -> pd.Series:
    """Return whose each image is: its near duplicates' where they are known, else its patient's, else its own."""
    owners = pd.Series(pd.NA, index=frame.index, dtype="str")
    for column in (NEAR_DUPLICATES, "patient", "image"):
        if column in frame.columns:
            owners = owners.fillna(frame[column].astype("str"))
    return owners


def _shares(fractions: Sequence[float]) -> dict[str, float]:
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or not np.isclose(sum(fractions), 1):
        raise SplitError(
            f"fractions {tuple(fractions)} are not three shares for train, val and test that sum to 1"
        )
    return {name: share for name, share in zip(SPLITS, fractions, strict=True) if share > 0}


def _wanted(count: int | None, fraction: float | None, there: int) -> int:
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise SplitError(f"the label fraction {fraction} is not in (0, 1]; 0.1 is a tenth of the labels")
        count = max(1, round(fraction * there))
    assert count is not None
    if not 0 < count <= there:
        raise SplitError(
            f"{count} labels asked for and {there} labelled training images are there; ask for 1 to {there}"
        )
    return count


def _keyed_order(names: Sequence[Hashable], seed: int, purpose: str) -> NDArray[np.float64]:
    """Return one number in [0, 1) a name; it depends on nothing but the seed, the purpose and the name."""
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names]
    positions = np.frombuffer(b"".join(digests), dtype="<i8")
    return keyed.uniform(keyed.key(seed, purpose), positions, 1)[:, 0]


def _groups(frame: pd.DataFrame, group: Group, clusters: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return a group number for each row, (n,); the numbers say only who belongs together."""
    if clusters is not None and len(clusters) != len(frame):
        raise SplitError(
            f"{len(clusters)} cluster numbers for {len(frame)} images; take them from a check of this manifest"
        )
    columns: list[NDArray[np.int64]] = []
    if group == "auto":
        columns += [_codes(frame["patient"])] if "patient" in frame.columns else []
        columns += [clusters] if clusters is not None else []
    elif group == "cluster":
        if clusters is None:
            raise SplitError(
                "grouping by duplicate cluster needs the clusters of a check; give them or another group"
            )
        columns.append(clusters)
    elif group is not None:
        if group not in frame.columns:
            raise SplitError(
                f"there is no column '{group}' to group by{suggestion(group, map(str, frame.columns))}"
            )
        columns.append(_codes(frame[group]))
    together = np.arange(len(frame), dtype=np.int64)
    for codes in columns:
        together = _joined(together, codes)
    return together


def _codes(column: pd.Series) -> NDArray[np.int64]:
    """Number the values; every missing one is a value of its own."""
    codes = np.asarray(pd.factorize(column)[0], dtype=np.int64)
    alone = codes < 0
    codes[alone] = codes.max(initial=0) + 1 + np.arange(alone.sum())
    return codes


def _joined(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the connected components of rows that share a number in either array."""
    left = np.unique(one, return_inverse=True)[1]
    right = np.unique(other, return_inverse=True)[1] + left.max(initial=0) + 1
    size = int(right.max(initial=0)) + 1
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels[left]


def _classes(frame: pd.DataFrame, label_columns: Sequence[str]) -> list[set[str]]:
    """Return what each row counts for: its class, its present findings, or {""} without any."""
    if list(label_columns) == ["label"]:
        return [{str(value)} if pd.notna(value) else {""} for value in frame["label"]]
    present = (frame[list(label_columns)] == 1).to_numpy(dtype=bool)
    names = np.array(list(label_columns), dtype=object)
    return [set(names[row]) or {""} for row in present]


def _draw_order(frame: pd.DataFrame, seed: int, group: Group) -> list[int]:
    """Return row places in keyed order of patients; every patient's first image before any second one."""
    images = frame["image"].astype(str).tolist()
    if group == "auto":
        owners = owners_of(frame).tolist()
    elif group is None or group not in frame.columns:
        owners = images
    else:
        owners = frame[group].astype("str").fillna(frame["image"].astype("str")).tolist()
    order = pd.DataFrame(
        {
            "owner": owners,
            "owner_key": _keyed_order(owners, seed, "label budget, patient"),
            "image_key": _keyed_order(images, seed, "label budget, image"),
        }
    )
    order["turn"] = order.sort_values("image_key").groupby("owner").cumcount()
    ranked: list[int] = order.sort_values(["turn", "owner_key", "image_key"]).index.tolist()
    return ranked


def _fold(
    manifest: Manifest, groups: NDArray[np.int64], fold: tuple[int, int], seed: int, stratify: bool
) -> NDArray[np.bool_]:
    """Return whether each row is in fold k of ``folds``, (n,)."""
    number, folds = fold
    if not (folds >= 2 and 1 <= number <= folds):
        raise SplitError(f"fold {number} of {folds} is none; take 1 to {folds} of at least 2 folds")
    equal = {f"fold {k}": 1.0 for k in range(1, folds + 1)}
    rows = np.arange(len(groups), dtype=np.int64)
    return np.asarray(_deal(manifest, rows, groups, equal, seed, stratify, "folds") == f"fold {number}")


def _deal(
    manifest: Manifest,
    rows: NDArray[np.int64],
    groups: NDArray[np.int64],
    wanted: dict[str, float],
    seed: int,
    stratify: bool,
    purpose: str,
) -> NDArray[np.object_]:
    """Return the split of each of ``rows``, dealing out whole ``groups`` in an order keyed by ``purpose``."""
    frame = manifest.frame.iloc[rows]
    numbers, members = np.unique(groups, return_inverse=True)
    splits = list(wanted)
    if len(numbers) < len(splits):
        raise SplitError(
            f"{manifest.name}: {len(numbers)} patient(s) or group(s) cannot be divided into {', '.join(splits)}; "
            "more are needed, or give a group column"
        )
    labels = manifest.label_columns if stratify else []
    counts, names = _counts(frame, labels, members, len(numbers))
    if manifest.task == "multiclass" and stratify:
        _check_classes(counts, names, splits, manifest.name)
    # A group is known by the least of its images' patients, whatever the order of rows.
    owners = (
        frame["patient"].fillna(frame["image"]) if "patient" in frame.columns else frame["image"]
    ).astype(str)
    first = owners.groupby(members).min()
    order = np.lexsort(
        (first.to_numpy(dtype=object).astype(str), _keyed_order(first.tolist(), seed, purpose))
    )
    share = np.array([wanted[name] for name in splits])
    placed = _stratified(counts[order], share / share.sum())
    split_of = np.empty(len(numbers), dtype=object)
    split_of[order] = np.array(splits, dtype=object)[placed]
    return split_of[members]


def _counts(
    frame: pd.DataFrame, labels: Sequence[str], members: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Return ((groups, labels + 1) images of each label, the last column all images; the label names)."""
    classes = _classes(frame, labels) if labels else [set()] * len(frame)
    names = sorted(set().union(*classes) - {""})
    place = {name: column for column, name in enumerate(names)}
    counts = np.zeros((size, len(names) + 1), dtype=np.int64)
    counts[:, -1] = np.bincount(members, minlength=size)
    for member, row in zip(members, classes, strict=True):
        for name in row - {""}:
            counts[member, place[name]] += 1
    return counts, names


def _check_classes(
    counts: NDArray[np.int64], names: Sequence[str], splits: Sequence[str], source: str
) -> None:
    for column, name in enumerate(names):
        there = int(np.count_nonzero(counts[:, column]))
        if there < len(splits):
            raise SplitError(
                f"{source}: the class '{name}' has {there} patient{'s' if there != 1 else ''} or group"
                f"{'s' if there != 1 else ''} to divide and cannot be in all of {', '.join(splits)}; leave the class "
                "out, join it with another, or do not stratify"
            )


def _stratified(counts: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.int64]:
    """Place groups (in the given order) label by label, the rarest first; return a split number a group.

    Args:
        counts: (groups, labels + 1), the last column all images.
        share: (splits,) wanted shares, summing to 1.
    """
    lacking = share[:, None] * counts.sum(axis=0)  # (splits, labels + 1), images still wanted
    placed = np.full(len(counts), -1, dtype=np.int64)
    members = np.zeros((len(share), counts.shape[1]), dtype=np.int64)  # groups of a label in a split
    while (open_groups := placed < 0).any():
        waiting = np.count_nonzero(counts[open_groups, :-1] > 0, axis=0)
        labels = np.flatnonzero(waiting)
        label = int(labels[np.argmin(waiting[labels])]) if len(labels) else -1  # groups without a label last
        todo = np.flatnonzero(open_groups & (counts[:, label] > 0))
        for done, number in enumerate(todo):
            choice = _neediest(lacking, label)
            empty = np.flatnonzero(members[:, label] == 0)
            if len(todo) - done <= len(empty) and members[choice, label]:
                choice = int(empty[np.argmax(lacking[empty, label])])  # the last chance of these splits
            placed[number] = choice
            lacking[choice] -= counts[number]
            members[choice] += counts[number] > 0
    return placed


def _neediest(lacking: NDArray[np.float64], label: int) -> int:
    """Return the split that lacks most images of a label, and among equals most images at all."""
    most = lacking[:, label] >= lacking[:, label].max() - 1e-9
    return int(np.argmax(np.where(most, lacking[:, -1], -np.inf)))
