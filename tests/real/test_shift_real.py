"""The shift score on real images, with the encoder in the box: another hospital is flagged, one's own is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from scanprior import api

RealData = Callable[[str], Path]


@pytest.fixture(scope="module")
def halves(real_data: RealData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two halves of 300 patients of kermany, one image each."""
    source, folder = real_data("kermany"), tmp_path_factory.mktemp("halves")
    table = pd.read_csv(source / "labels.csv", dtype=str).drop_duplicates("patient")
    table = table.sample(300, random_state=0)
    made = folder / "first", folder / "second"
    for half, part in zip(made, (table[:150], table[150:]), strict=True):
        for image in part["image"]:
            (half / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / image, half / image)
        part.to_csv(half / "labels.csv", index=False)
    return made


def test_another_hospital_is_flagged(halves: tuple[Path, Path], real_data: RealData) -> None:
    found = api.shift("scanprior:cxr-tiny", halves[0], real_data("nih_half"), permutations=200)
    assert found["flag"] is True and found["p"] <= 0.01
    assert found["classifier"]["auroc"] > 0.95


def test_other_children_of_the_same_hospital_are_not(halves: tuple[Path, Path]) -> None:
    found = api.shift("scanprior:cxr-tiny", *halves, permutations=200)
    assert found["flag"] is False and found["p"] > 0.05
    assert found["patients"] == {"reference": 150, "target": 150} and found["identical_images"] == 0
