"""The index and the check on real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scanprior.data.check import check
from scanprior.data.index import index
from scanprior.data.split import assign_splits

RealData = Callable[[str], Path]


def test_kermany_holds_thirty_groups_of_equal_images(real_data: RealData) -> None:
    audit = check(index(real_data("kermany")), workers=0)
    assert len(audit.exact) == 30 and sum(len(group["images"]) for group in audit.exact) == 62
    assert audit.summary["readable"] == 5840 and not audit.unreadable and not audit.blank
    assert not audit.near, "chest radiographs of different children are not taken for copies"
    assert sum(group["several_patients"] for group in audit.exact) == 1


def test_kermany_file_names_say_what_its_table_says(real_data: RealData) -> None:
    table = index(real_data("kermany"))
    folder = index(real_data("kermany") / "images", layout="kermany")
    left = table.frame.assign(image=table.frame["image"].str.removeprefix("images/"))[
        list(folder.frame.columns)
    ]
    pd.testing.assert_frame_equal(
        left.sort_values("image", ignore_index=True), folder.frame.sort_values("image", ignore_index=True)
    )
    split = assign_splits(folder, seed=1).frame
    assert (split.groupby("patient")["split"].nunique() == 1).all() and (split["split"] == "val").sum() > 850


def test_busi_near_copies_are_found_with_their_conflicts_and_stay_in_one_fold(real_data: RealData) -> None:
    manifest = index(real_data("busi"))
    audit = check(manifest, workers=0)
    # Each pair was looked at and shows one scene; a few may come or go with another JPEG decoder.
    assert 175 <= len(audit.near) <= 195 and 7 <= sum(pair["conflicting_labels"] for pair in audit.near) <= 9
    assert len(audit.exact) == 1 and audit.exact[0]["conflicting_labels"]
    assert not any(pair["inverted"] for pair in audit.near)
    tested: list[str] = []
    for k in range(1, 6):
        frame = assign_splits(manifest, clusters=audit.clusters, fold=(k, 5)).frame
        assert (frame.groupby(audit.clusters)["split"].nunique() == 1).all()
        test = frame[frame["split"] == "test"]
        for label, share in test["label"].value_counts(normalize=True).items():
            assert abs(share - (frame["label"] == label).mean()) < 0.02, (k, label)
        tested += test["image"].tolist()
    assert sorted(tested) == sorted(manifest.frame["image"])


def test_dermoscopic_images_of_different_lesions_are_not_copies(real_data: RealData) -> None:
    assert not check(index(real_data("ham10000")), workers=0).near


def test_radiographs_of_different_adults_are_not_copies(real_data: RealData) -> None:
    for name in ("nih_half", "shenzhen"):
        audit = check(index(real_data(name)), workers=0)
        assert not audit.near and not audit.exact and not audit.unreadable


def test_dicom_tree(real_data: RealData) -> None:
    made = index(real_data("dicom") / "images")
    assert made.layout == "dicom" and len(made) == 7 and made.frame["patient"].nunique() == 4
    audit = check(made, workers=0)
    assert not audit.unreadable
    # One file is a copy of another whose header alone was set to MONOCHROME1, so it reads as its negative.
    assert any(pair["inverted"] and "images" in pair for pair in audit.near)
