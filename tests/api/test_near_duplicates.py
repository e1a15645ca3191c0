"""Images that look the same stay in one part of a split, at every size of the network's input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from api.conftest import FINETUNING
from scanprior import api
from scanprior.api.settings import DataConfig
from scanprior.api.sources import Images, load
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, SplitError

COPIES = 4


class Notes(Reporter):
    """Keeps what is said and counts the images that are looked at."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.compared = 0

    def counted(self, done: int, total: int, what: str) -> None:
        self.compared += 1

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two classes of ten scenes, each as four frames that differ by light, noise and JPEG; no patients."""
    random = np.random.default_rng(0)
    for scene in range(20):
        small = random.uniform(30, 190, (20, 20)).astype(np.uint8)
        view = np.asarray(Image.fromarray(small).resize((80, 80), Image.Resampling.BICUBIC), dtype=float)
        for frame in range(COPIES):
            pixels = np.clip(view * (1 + 0.05 * frame) + random.normal(0, 1, view.shape), 0, 255)
            path = tmp_path / "frames" / "ab"[scene % 2] / f"{random.integers(10**9)}_{scene}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=80)
    return tmp_path / "frames"


def divided(source: Path, reporter: Reporter, **options: Any) -> Images:
    data = DataConfig.model_validate({"size": 32, "workers": 0, **options})
    return load([source], data, reporter, learn="labels")


def parts_of_a_scene(images: Images) -> pd.Series:
    scene = images.frame["image"].str.extract(r"_(\d+)\.jpg$")[0]
    return images.frame.groupby(scene)["split"].nunique()


def test_frames_of_a_scene_stay_together(frames: Path) -> None:
    assert parts_of_a_scene(divided(frames, Reporter())).max() > 1, "without being asked, each image is alone"
    notes = Notes()
    near = {"split": {"group": "near_duplicates"}}
    first = divided(frames, notes, **near)
    assert parts_of_a_scene(first).max() == 1 and set(first.frame["split"]) == {"train", "val", "test"}
    assert (
        f"frames: {20 * COPIES} images in 20 groups of images that look the same stay together" in notes.said
    )
    assert notes.compared == 20 * COPIES
    larger = divided(frames, Reporter(), size=64, fit="crop", **near)
    assert larger.split["fingerprint"] == first.split["fingerprint"], "another size is the same division"


def test_looks_are_measured_once_and_on_the_original_images(frames: Path) -> None:
    near = {"split": {"group": "near_duplicates"}}
    first, again = Notes(), Notes()
    images = divided(frames, first, **near)
    assert divided(frames, again, **near).split == images.split and again.compared == 0
    store = images.store.path  # type: ignore[attr-defined]
    kept = store / "near_duplicates.json"
    for spoilt in ("{", "[]", json.dumps(json.loads(kept.read_text()) | {"fingerprint": "of another store"})):
        kept.write_text(spoilt)
        measured = Notes()
        assert divided(frames, measured, **near).split == images.split and measured.compared
    kept.unlink()
    moved = shutil.copytree(store, frames.parent / "prepared")
    next(frames.rglob("*.jpg")).unlink()
    with pytest.raises(
        DataError, match=r"looked for in the original images, of which .*\.jpg in .*frames cannot"
    ):
        divided(moved, Reporter(), **near)


def test_patients_and_looks_are_joined(frames: Path) -> None:
    files = sorted(path.relative_to(frames).as_posix() for path in frames.rglob("*.jpg"))
    table = pd.DataFrame({"image": files})
    table["label"] = table["image"].str[0]
    scene = table["image"].str.extract(r"_(\d+)\.jpg$")[0].astype(int)
    table["patient"] = "p" + (scene // 4 * 2 + scene % 2).astype(str)  # two scenes of a class each
    table.to_csv(frames / "labels.csv", index=False)
    frame = divided(frames, Reporter(), split={"group": "near_duplicates"}).frame
    assert frame.groupby("patient")["split"].nunique().max() == 1


def test_an_official_test_set_is_kept_and_its_likes_are_told(frames: Path) -> None:
    files = sorted(path.relative_to(frames).as_posix() for path in frames.rglob("*.jpg"))
    table = pd.DataFrame({"image": files})
    table["label"] = table["image"].str[0]
    scene = table["image"].str.extract(r"_(\d+)\.jpg$")[0].astype(int)
    first = ~scene.duplicated()
    table["split"] = np.where((scene < 4) & first, "test", "train")  # one frame of four scenes
    table.to_csv(frames / "labels.csv", index=False)
    notes = Notes()
    frame = divided(frames, notes, split={"group": "near_duplicates"}).frame
    assert set(frame.loc[table["split"] == "test", "split"]) == {"test"}
    told = [text for text in notes.said if text.startswith("warning:")]
    held = int((frame.loc[(scene < 4) & ~first, "split"] == "train").sum())
    assert held and told == [
        f"warning: {held} training images of frames look like images of its own validation or test images"
    ]


def test_groups_are_the_units_of_budgets_and_intervals(frames: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, "data.split.group": "near_duplicates", "labels.count": 10}
    run = api.finetune(frames, out=tmp_path / "run", options=options)
    data = pd.read_parquet(run.path / "data.parquet")
    data["scene"] = data["image"].str.extract(r"_(\d+)\.jpg$")[0]
    assert (data.groupby("near_duplicates")["scene"].nunique() == 1).all() and data[
        "near_duplicates"
    ].nunique() == 20
    trained = data[data["used"] == "train"]
    assert len(trained) == 10 and trained["scene"].nunique() == 10, "one image of a scene before any second"
    predictions = pd.read_parquet(run.path / "predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    found = json.loads((run.path / "evaluations" / "test.json").read_text())
    assert (found["unit"], found["units"]) == ("near-duplicate group", test["near_duplicates"].nunique())
    assert found["n"] == COPIES * found["units"] and found["patients"] is None
    again = api.evaluate(run.path, data=frames, name="again")
    assert (again["unit"], again["units"], again["n"]) == ("near-duplicate group", 20, 20 * COPIES)
    page = api.report(run.path).read_text()
    assert "intervals treat near-duplicate groups as independent" in page


def test_masks_are_not_looked_at(frames: Path, tmp_path: Path) -> None:
    """Every image has the same mask beside it; that makes nothing of them alike."""
    for image in list(frames.rglob("*.jpg")):
        mask = np.zeros((80, 80), dtype=np.uint8)
        mask[20:60, 20:60] = 255
        Image.fromarray(mask).save(image.with_name(f"{image.stem}_mask.png"))
    images = divided(frames, Reporter(), split={"group": "near_duplicates"})
    assert images.frame["mask"].notna().all() and len(images.frame) == 20 * COPIES
    assert images.frame["near_duplicates"].nunique() == 20
    options = {"task.name": "segment", "task.width": 4, "data.split.group": "near_duplicates"}
    run = api.finetune(frames, out=tmp_path / "run", options={**FINETUNING, **options})
    found = json.loads((run.path / "evaluations" / "test.json").read_text())
    assert (found["unit"], COPIES * found["units"]) == ("near-duplicate group", found["n"])


def test_a_column_of_the_table_is_kept(frames: Path) -> None:
    table = pd.DataFrame(
        {"image": sorted(path.relative_to(frames).as_posix() for path in frames.rglob("*.jpg"))}
    )
    table["label"] = table["image"].str[0]
    table["near_duplicates"] = [f"seen {n % 16 // 2}" for n in range(len(table))]
    table.to_csv(frames / "labels.csv", index=False)
    notes = Notes()
    frame = divided(frames, notes, split={"group": "near_duplicates"}).frame
    plain = divided(frames, Reporter()).frame
    assert "near_duplicates" not in plain and "near_duplicates (table)" in plain, "nobody asked for it"
    assert notes.compared == 0 and frame["near_duplicates"].tolist() == table["near_duplicates"].tolist()
    assert frame.groupby("near_duplicates")["split"].nunique().max() == 1


def test_folds_keep_scenes_together_and_test_all_of_them(frames: Path) -> None:
    tested: list[str] = []
    for fold in range(1, 6):
        images = divided(frames, Reporter(), split={"group": "near_duplicates", "folds": 5, "fold": fold})
        assert parts_of_a_scene(images).max() == 1 and len(images.rows("val"))
        assert (images.split["fold"], images.split["folds"]) == (fold, 5)
        test = images.frame[images.frame["split"] == "test"]
        assert test["label"].value_counts().to_dict() == {"a": 2 * COPIES, "b": 2 * COPIES}
        tested += test["image"].tolist()
    assert sorted(tested) == sorted(images.frame["image"])


def test_folds_are_refused_where_the_source_names_its_test_images(frames: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, "data.split.folds": 5, "data.split.fold": 2}
    run = api.finetune(frames, out=tmp_path / "run", options=options)
    official = shutil.copytree(frames, tmp_path / "official")
    table = pd.DataFrame(
        {"image": sorted(path.relative_to(official).as_posix() for path in official.rglob("*.jpg"))}
    )
    table["label"] = table["image"].str[0]
    table["split"] = ["test" if number % 4 == 0 else "train" for number in range(len(table))]
    table.to_csv(official / "labels.csv", index=False)
    with pytest.raises(
        SplitError, match=r"20 images are val or test by its own split, which data\.split\.folds=5"
    ):
        api.finetune(official, out=tmp_path / "refused", options=options)
    assert api.evaluate(run.path, data=official, split="test")["n"] == 20, (
        "an evaluation takes them as they are"
    )
    for wrong, said in (
        (
            {"data.split.folds": 5},
            "data.split: .*give folds and fold, or neither, found folds=5 and fold=None",
        ),
        ({"data.split.folds": 5, "data.split.fold": 6}, "data.split: .*fold is 1 to 5 of folds=5, found 6"),
    ):
        with pytest.raises(ConfigError, match=said):
            api.finetune(frames, out=tmp_path / "wrong", options={**FINETUNING, **wrong})
