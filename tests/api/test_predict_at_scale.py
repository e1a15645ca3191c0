"""Long predictions: stopped and gone on with, read in other processes, averaged over views, in every form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from api.conftest import FINETUNING
from scanprior import api
from scanprior.api import prediction, prediction_rows
from scanprior.api.batches import worked
from scanprior.api.models import load_classifier
from scanprior.api.reading import Reading, read_all
from scanprior.data.readers import read_reference
from scanprior.data.transforms import prepare_image, to_input
from scanprior.engine import Reporter
from scanprior.errors import DataError
from scanprior.run import Run

PROBABILITIES = ["prob:abnormal", "prob:normal"]


@pytest.fixture(scope="module")
def files(phantoms: Path) -> list[Path]:
    return sorted((phantoms / "images").iterdir())[:10]


def test_a_stopped_prediction_goes_on_where_it_was(
    finetuned: Run,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(prediction_rows, "PART", 3)
    whole = api.predict(finetuned.path, files, batch_size=4)
    out, count = tmp_path / "p.csv", 0
    work = prediction._Classifying.__call__

    def stopping(self: object, readings: list[Reading]) -> object:
        nonlocal count
        count += len(readings)
        if count > 7:
            raise KeyboardInterrupt
        return work(self, readings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prediction._Classifying, "__call__", stopping)
        api.predict(finetuned.path, files, out=out, batch_size=4, features=tmp_path / "f.npy")
    assert not out.exists() and len(list((tmp_path / "p.csv.parts").glob("*.parquet"))) == 1
    said = refused("predict", finetuned.path, files[0], "--out", out, "--resume")
    assert "parts of a prediction of other images" in said
    seen = []
    monkeypatch.setattr(
        prediction,
        "read_all",
        lambda references, *a, **k: seen.extend(references) or read_all(references, *a, **k),
    )
    api.predict(finetuned.path, files, out=out, batch_size=4, resume=True, features=tmp_path / "f.npy")
    assert seen == [str(file) for file in files[4:]] and not (tmp_path / "p.csv.parts").exists()
    written = pd.read_csv(out)
    assert written["image"].tolist() == [str(file) for file in files]
    np.testing.assert_allclose(written[PROBABILITIES], whole[PROBABILITIES], rtol=0, atol=1e-6)
    assert np.load(tmp_path / "f.npy").shape[0] == 10


def test_features_are_those_the_classes_are_predicted_from(
    finetuned: Run, files: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    api.predict(finetuned.path, [*files[:3], broken], features=tmp_path / "f.npy")
    table = api.predict(finetuned.path, [broken, *files[:3]], batch_size=1, features=tmp_path / "f.parquet")
    model, pre = load_classifier(finetuned)
    pixels = np.stack([prepare_image(read_reference(str(file)), pre) for file in files[:3]])
    expected = model.encoder(to_input(pixels, pre)).pooled.detach().numpy()
    found = np.load(tmp_path / "f.npy")
    np.testing.assert_allclose(found[:3], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(found[3]).all()
    kept = pd.read_parquet(tmp_path / "f.parquet")
    assert kept["image"].tolist() == table["image"].tolist()
    np.testing.assert_allclose(np.stack(kept["features"])[1:], expected, rtol=1e-4, atol=1e-5)
    said = refused("predict", finetuned.path, files[0], "--out", tmp_path / "p.csv", "--features", "f.txt")
    assert "use .npy or .parquet" in said


def test_reading_in_other_processes_changes_nothing(finetuned: Run, phantoms: Path) -> None:
    folder = [str(path) for path in sorted((phantoms / "images").iterdir())]
    _, pre = load_classifier(finetuned)
    many = (folder * 10)[:300]
    here, there = (list(read_all(many, {pre.form: pre}, workers=n)) for n in (0, 2))
    assert [each.reference for each in there] == many
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.fitted[pre.form], other.fitted[pre.form])


def test_tables_patterns_and_lines_of_json(
    finetuned: Run, phantoms: Path, files: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(phantoms / "images", tmp_path / "images")
    rows = pd.DataFrame({"image": [f"images/{file.name}" for file in files[::-1]]})
    rows.to_csv(tmp_path / "list.csv", index=False)
    table = api.predict(finetuned.path, tmp_path / "list.csv", out=tmp_path / "p.jsonl")
    assert [Path(name).name for name in table["image"]] == [file.name for file in files[::-1]]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["prob:normal"] for line in lines] == table["prob:normal"].tolist() and lines[0][
        "error"
    ] is None
    found = api.predict(finetuned.path, f"{tmp_path}/*/{files[0].stem[:-1]}*.png")
    assert 0 < len(found) < len(list((tmp_path / "images").iterdir()))
    said = refused("predict", finetuned.path, f"{tmp_path}/*.none", "--out", tmp_path / "q.csv")
    assert said.endswith("no file fits this pattern")


def test_views_are_averaged_and_the_same_for_every_image(
    phantoms: Path, finetuned: Run, files: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    options = {**FINETUNING, "augment.preset": "chest_xray"}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    together = api.predict(run.path, files, tta=3)
    alone = pd.concat([api.predict(run.path, file, tta=3) for file in files[:3]])
    np.testing.assert_allclose(together[PROBABILITIES][:3], alone[PROBABILITIES], rtol=0, atol=1e-6)
    plain, one = (api.predict(run.path, files, tta=n)[PROBABILITIES].to_numpy() for n in (0, 1))
    assert np.abs(plain - together[PROBABILITIES]).to_numpy().max() > 1e-4
    np.testing.assert_allclose(together[PROBABILITIES].sum(axis=1), 1, atol=1e-6)
    assert not np.allclose(one, together[PROBABILITIES])
    said = refused("predict", finetuned.path, files[0], "--out", tmp_path / "p.csv", "--tta", 2)
    assert "was trained without augmentation" in said


def numbered(count: int) -> Iterator[Reading]:
    yield from (Reading(str(number), {}) for number in range(count))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 64])
def test_work_side_by_side_keeps_the_order_and_holds_few_images(size: int) -> None:
    read, done = 0, 0

    def readings() -> Iterator[Reading]:
        nonlocal read
        for reading in numbered(37):
            read += 1
            assert read - done <= max(size, 2)  # with a size of 1 one is computed, and the next read
            yield reading

    def names(batch: Sequence[Reading]) -> list[str]:
        assert len(batch) <= max(1, size // 2)
        return [reading.reference for reading in batch]

    found = []
    for parts in worked(readings(), names, size, Reporter()):
        found += [name for part in parts for name in part]
        done = len(found)
    assert found == [str(number) for number in range(37)]


def test_images_before_a_failure_are_done_and_the_failure_is_raised() -> None:
    def work(batch: Sequence[Reading]) -> int:
        if any(reading.reference == "9" for reading in batch):
            raise ValueError("the ninth")
        return len(batch)

    made = worked(numbered(20), work, 8, Reporter())
    assert [sum(next(made)), sum(next(made))] == [4, 4]
    with pytest.raises(ValueError, match="the ninth"):
        next(made)


def test_fewer_images_at_a_time_where_memory_runs_out() -> None:
    found: list[str] = []
    said: list[str] = []

    class Noting(Reporter):
        def note(self, text: str) -> None:
            said.append(text)

    def work(batch: Sequence[Reading]) -> list[str]:
        if len(batch) > 3 or (len(batch) > 1 and any(one.reference == "16" for one in batch)):
            raise MemoryError
        return [reading.reference for reading in batch]

    for parts in worked(numbered(41), work, 24, Noting()):
        found += [name for part in parts for name in part]
    assert found == [str(number) for number in range(41)]
    assert said == [f"memory ran out: going on with {size} images at a time" for size in (6, 3, 1)]

    def never(batch: Sequence[Reading]) -> int:
        raise MemoryError

    with pytest.raises(DataError, match="memory ran out with this image alone"):
        list(worked(numbered(10), never, 4, Reporter()))
