"""The audit of a manifest: what was found, whether it is leakage, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEVERITIES = ("leakage", "warning", "note")


@dataclass(frozen=True)
class Problem:
    """One thing that the user should know: ``severity`` is "leakage", "warning" or "note"; one sentence."""

    kind: str
    severity: str
    message: str
    count: int


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything that ``check`` found. Images are named as in the manifest; lists are in its order.

    Attributes:
        name, found: of the manifest.
        summary: {images, readable, patients (None if unknown), splits: {split: images}, channels:
            {count: images}, source_bits: {bits: images}, median_size: [rows, columns]}.
        unreadable: [{image, reason}].
        blank: [{image}] with next to no structure.
        depth: [{image, severity, reason}] of files whose depth does not fit what is in them.
        sizes: [{image, rows, columns}] four times larger or smaller than the median.
        exact: groups of images with equal pixels: [{images, splits, patients, labels,
            across_splits, several_patients, conflicting_labels}].
        near: pairs that look the same: the same keys, and distance (of 256 bits), correlation, inverted.
        patients_in_splits: [{patient, splits: {split: images}}] of patients in two splits or more.
        labels: [{label, split, images, patients, negative, uncertain, missing}].
        clusters: (n,) int64, equal for images connected by duplicates, exact or near.
        limits: what "near" meant.
    """

    name: str
    found: str
    summary: dict[str, Any]
    unreadable: list[dict[str, Any]]
    blank: list[dict[str, Any]]
    depth: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    exact: list[dict[str, Any]]
    near: list[dict[str, Any]]
    patients_in_splits: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    clusters: NDArray[np.int64]
    limits: dict[str, Any]

    @cached_property
    def problems(self) -> list[Problem]:
        """All of it in sentences, the gravest first."""
        found = [
            *_leaks(self),
            *_broken(self),
            *_doubled(self),
            *_patient_problems(self),
            *_label_problems(self),
        ]
        return sorted(found, key=lambda problem: SEVERITIES.index(problem.severity))

    @property
    def leakage(self) -> bool:
        """Whether a patient is in two splits or equal images are in two splits.

        Near duplicates across splits are a warning: that they are the same is a judgement, which
        the list of pairs lets the user make.
        """
        return any(problem.severity == "leakage" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole audit for JSON: the attributes, ``leakage``, and ``clusters`` as a list."""
        names = ("name", "found", "summary", "unreadable", "blank", "depth", "sizes", "exact", "near",
                 "patients_in_splits", "labels", "limits")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "leakage": self.leakage,
            "problems": [vars(problem) for problem in self.problems],
            "clusters": self.clusters.tolist(),
        }


def _leaks(audit: Audit) -> Iterator[Problem]:
    if audit.patients_in_splits:
        some = [f"{entry['patient']} ({', '.join(entry['splits'])})" for entry in audit.patients_in_splits]
        yield Problem(
            "patients_in_splits",
            "leakage",
            f"{_many(some, 'patient is', 'patients are')} in more than one split: {_first(some)}; split by patient",
            len(some),
        )
    crossing = [group for group in audit.exact if group["across_splits"]]
    if crossing:
        yield Problem(
            "exact_across_splits",
            "leakage",
            f"{_many(crossing, 'group', 'groups')} of equal images lie across splits: {_examples(crossing)}; "
            "keep one of each, or split with data.split.group=cluster",
            len(crossing),
        )
    near = [pair for pair in audit.near if pair["across_splits"]]
    if near:
        yield Problem(
            "near_across_splits",
            "warning",
            f"{_many(near, 'pair', 'pairs')} of images that look the same lie across splits: {_examples(near)}; "
            "look at them, and split with data.split.group=near_duplicates if they are the same",
            len(near),
        )


def _broken(audit: Audit) -> Iterator[Problem]:
    if audit.unreadable:
        some = [f"{entry['image']} ({entry['reason']})" for entry in audit.unreadable]
        message = f"{_many(some, 'image', 'images')} cannot be read and will be left out: {_first(some)}"
        yield Problem("unreadable", "warning", message, len(some))
    if audit.blank:
        some = [str(entry["image"]) for entry in audit.blank]
        yield Problem(
            "blank", "warning", f"{_many(some, 'image is', 'images are')} blank: {_first(some)}", len(some)
        )
    for severity, grave in (("warning", True), ("note", False)):
        some = [f"{e['image']} ({e['reason']})" for e in audit.depth if (e["severity"] == "warning") == grave]
        if some:
            message = f"{_many(some, 'image has', 'images have')} an odd depth: {_first(some)}"
            yield Problem("depth", severity, message, len(some))
    if audit.sizes:
        some = [f"{entry['image']} ({entry['rows']}x{entry['columns']})" for entry in audit.sizes]
        message = (
            f"{_many(some, 'image is', 'images are')} four times larger or smaller than usual: {_first(some)}"
        )
        yield Problem("sizes", "note", message, len(some))


def _doubled(audit: Audit) -> Iterator[Problem]:
    if audit.exact:
        files = sum(len(group["images"]) for group in audit.exact)
        message = f"{_many(audit.exact, 'group', 'groups')} of equal images ({files} files): {_examples(audit.exact)}"
        yield Problem("exact", "warning", message, len(audit.exact))
    if audit.near:
        message = (
            f"{_many(audit.near, 'pair', 'pairs')} of images look the same: {_examples(audit.near)}; a division keeps "
            "them together with data.split.group=near_duplicates"
        )
        yield Problem("near", "note", message, len(audit.near))
    for kind, words in (("exact", "equal images"), ("near", "images that look the same")):
        groups = audit.exact if kind == "exact" else audit.near
        conflicts = [group for group in groups if group["conflicting_labels"]]
        if conflicts:
            message = f"{_many(conflicts, 'set', 'sets')} of {words} have conflicting labels: {_examples(conflicts)}"
            yield Problem(f"{kind}_conflicting_labels", "warning", message, len(conflicts))
        several = [group for group in groups if group["several_patients"]]
        if several:
            message = (
                f"{_many(several, 'set', 'sets')} of {words} belong to several patients: {_examples(several)}"
            )
            yield Problem(f"{kind}_several_patients", "warning", message, len(several))


def _patient_problems(audit: Audit) -> Iterator[Problem]:
    images, without = audit.summary["images"], audit.summary["without_patient"]
    if not without:
        return
    told = "no image has a" if without == images else f"{without:,} of {images:,} images have no"
    yield Problem(
        "without_patient",
        "note",
        f"{told} patient, so each of them counts as a patient of its own and images of one person can come into "
        "several splits; name the column with data.patient_column, or fill it",
        without,
    )


def _label_problems(audit: Audit) -> Iterator[Problem]:
    whole = [entry for entry in audit.labels if entry["split"] == "all"]
    single = [
        entry["label"] for entry in whole if entry["images"] and (entry["patients"] or entry["images"]) == 1
    ]
    if single:
        message = f"{_many(single, 'label has', 'labels have')} one patient only and cannot be split: {_first(single)}"
        yield Problem("single_patient", "warning", message, len(single))
    never = [entry["label"] for entry in whole if not entry["images"]]
    if never:
        message = f"{_many(never, 'finding is', 'findings are')} never present: {_first(never)}"
        yield Problem("never_present", "warning", message, len(never))
    for what in ("missing", "uncertain"):
        count = max((entry[what] for entry in whole), default=0)
        if count:
            message = f"up to {count:,} of {audit.summary['images']:,} images have a label that is {what}"
            yield Problem(f"{what}_labels", "note", message, count)


def _many(things: Sequence[object], one: str, more: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else more}"


def _first(names: Sequence[object], shown: int = 3) -> str:
    return ", ".join(map(str, names[:shown])) + (
        f" and {len(names) - shown:,} more" if len(names) > shown else ""
    )


def _examples(groups: Sequence[dict[str, Any]]) -> str:
    return _first([" = ".join(map(str, group["images"][:3])) for group in groups], 2)
