"""What a segmentation run knows of its training images, in its card, its files and its predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from api.conftest import FINETUNING
from scanprior import api
from scanprior.api import mask_prediction, prediction_rows
from scanprior.api.mask_predictor import MaskPredictor
from scanprior.api.models import load_segmenter
from scanprior.api.outlier_detection import COLUMNS, OutlierDetector, chosen_rows
from scanprior.api.reading import Reading, read_all
from scanprior.api.reference import Reference
from scanprior.data.readers import read_reference
from scanprior.data.transforms import to_input
from scanprior.encoders import Encoder
from scanprior.run import Run
from scanprior.serving.served import open_served

OPTIONS = {
    **FINETUNING, "task.name": "segment", "task.width": 4, "data.split.fractions": [0.4, 0.4, 0.2],
    "trust.reference_images": 30,
}  # fmt: skip
UNLIKE = list(COLUMNS)


@pytest.fixture(scope="module")
def segmented(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A segmenter whose training varied brightness and mirrored."""
    out = tmp_path_factory.mktemp("segmented") / "run"
    varied = {"augment.hflip": 0.5, "augment.brightness": 0.2}
    return api.finetune(phantoms, out=out, options={**OPTIONS, **varied})


@pytest.fixture
def strange(tmp_path: Path) -> list[Path]:
    """An image of another kind, and a file that is none."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    return [tmp_path / "noise.png", tmp_path / "broken.png"]


def of_split(run: Run, phantoms: Path, used: str) -> list[Path]:
    table = pd.read_parquet(run.path / "data.parquet")
    return [phantoms / name for name in table.loc[table["used"] == used, "image"]]


@contextmanager
def encoder_passes() -> Iterator[list[int]]:
    """Count the images of every forward pass of an encoder."""
    seen: list[int] = []

    def count(module: object, inputs: tuple[np.ndarray, ...], output: object) -> None:
        if isinstance(module, Encoder):
            seen.append(len(inputs[0]))

    hook = register_module_forward_hook(count)
    try:
        yield seen
    finally:
        hook.remove()


def test_the_section_holds_outliers_alone(segmented: Run) -> None:
    kept = segmented.card["trust"]
    assert set(kept) == {"outliers", "notes"} and kept["notes"] == []
    assert kept["outliers"]["reference_images"] == 30 and kept["outliers"]["false_alarms"] == 0.05


def test_predictions_say_what_is_unlike_the_training_images(
    segmented: Run, phantoms: Path, strange: list[Path], tmp_path: Path
) -> None:
    said = api.predict(segmented.path, of_split(segmented, phantoms, "val"))
    assert said["outlier"].mean() <= 0.05 and said["outlier_p"].min() > 0
    detector = OutlierDetector.open(segmented)
    assert detector is not None and detector.threshold == segmented.card["trust"]["outliers"]["threshold"]
    fitted = detector.reference.outliers.validation  # read from files here, from the store there
    np.testing.assert_allclose(np.sort(said["outlier_score"]), fitted, rtol=1e-3)
    api.predict(segmented.path, strange, out=tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert written.columns.tolist()[-5:] == ["area:foreground", *UNLIKE, "error"]
    noise, broken = written.iloc[0], written.iloc[1]
    assert noise["outlier"] == True and noise["outlier_p"] == pytest.approx(1 / (len(fitted) + 1))  # noqa: E712
    assert noise["outlier_score"] > detector.threshold and noise["height"] == 48
    assert broken[UNLIKE].isna().all() and isinstance(broken["error"], str)
    alone = api.predict(segmented.path, strange[1])
    assert alone.columns.tolist() == written.columns.tolist() and alone[UNLIKE].isna().all(axis=None)


def test_maps_and_features_are_of_one_pass_of_the_encoder(segmented: Run, phantoms: Path) -> None:
    files = of_split(segmented, phantoms, "test")[:5]
    with encoder_passes() as passes:
        plain = api.predict(segmented.path, files, batch_size=3, workers=0)
    assert sum(passes) == 5
    with encoder_passes() as passes:
        views = api.predict(segmented.path, files, batch_size=3, workers=0, tta=2)
    assert sum(passes) == 15
    pd.testing.assert_frame_equal(views[UNLIKE], plain[UNLIKE])  # of the images, not of their views
    model, preprocessing = load_segmenter(segmented)
    pixels = MaskPredictor(model, preprocessing).fitted(read_reference(str(files[0])))
    batch = {form: one[None].copy() for form, one in pixels.items()}
    one, three = (
        MaskPredictor(model, preprocessing, mask_prediction.view_augmentation(segmented, n)).answers(batch, n)
        for n in (0, 2)
    )
    assert np.abs(one.maps - three.maps).max() > 1e-4
    np.testing.assert_array_equal(one.descriptors, three.descriptors)


def test_features_are_of_the_map_that_masks_are_made_of(segmented: Run, phantoms: Path) -> None:
    """Not of the class token: no loss of a segmenter reaches what it alone is made of."""
    model, preprocessing = load_segmenter(segmented)
    predictor = MaskPredictor(model, preprocessing)
    (reading,) = read_all([str(of_split(segmented, phantoms, "test")[0])], predictor.forms, workers=0)
    pixels = {form: np.stack([fitted]) for form, fitted in reading.fitted.items()}
    with torch.no_grad():
        features = model.encoder(to_input(pixels[preprocessing.form], preprocessing))
    expected = features.pyramid[-1].numpy().mean(axis=(2, 3))
    np.testing.assert_allclose(predictor.answers(pixels).pooled, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        predictor.embeddings(pixels).descriptors, predictor.answers(pixels).descriptors
    )
    assert not np.allclose(features.pooled.numpy(), expected, atol=1e-2)


def test_similar_training_images_have_pictures_but_no_labels(segmented: Run, phantoms: Path) -> None:
    reference = Reference.open(segmented)
    assert reference is not None
    assert list(reference.table.columns) == ["thumbnail"] and len(reference.table) == 30
    assert reference.table["thumbnail"].iloc[0][:2] == b"\xff\xd8"
    table = pd.read_parquet(segmented.path / "data.parquet")
    rows = chosen_rows(np.flatnonzero(table["used"] == "train"), 30)
    predictor = MaskPredictor(*load_segmenter(segmented))
    files = [str(phantoms / table["image"].iloc[row]) for row in rows[[4, 17]]]
    readings = list(read_all(files, predictor.forms, workers=0))
    pixels = {form: np.stack([each.fitted[form] for each in readings]) for form in predictor.forms}
    found, alike = reference.similar(predictor.answers(pixels).pooled, 3)
    assert found[:, 0].tolist() == [4, 17] and alike[:, 0] == pytest.approx(1, abs=1e-3)
    answer = open_served(segmented.path, "lungs")(readings)[0]
    assert answer.said["outlier"]["flagged"] is False and answer.drawn is not None
    assert set(answer.drawn()["masks"]) == {"foreground"}


def test_a_served_run_says_it_too(segmented: Run, phantoms: Path, strange: list[Path]) -> None:
    served = open_served(segmented.path, "lungs")
    assert served.about["similar"] is True and served.about["false_alarms"] == 0.05
    files = [str(strange[0]), str(of_split(segmented, phantoms, "train")[0])]
    noise, known = served(list(read_all(files, served.forms, workers=0)))
    assert noise.said["outlier"]["flagged"] is True and known.said["outlier"]["flagged"] is False
    cases = served.similar(known, 2)
    assert (
        len(cases) == 2 and cases[0]["labels"] == [] and cases[0]["thumbnail"].startswith("data:image/jpeg")
    )


def test_a_stopped_prediction_goes_on_with_the_columns(
    segmented: Run, phantoms: Path, strange: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_rows, "PART", 2)
    files = [strange[1], *of_split(segmented, phantoms, "test")[:4], strange[0]]
    whole = api.predict(segmented.path, files, batch_size=4)
    work, count = mask_prediction._Segmenting.__call__, 0

    def stopping(self: object, readings: list[Reading]) -> pd.DataFrame:
        nonlocal count
        count += len(readings)
        if count > 4:
            raise KeyboardInterrupt
        return work(self, readings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mask_prediction._Segmenting, "__call__", stopping)
        api.predict(segmented.path, files, out=tmp_path / "out", batch_size=4)
    assert list((tmp_path / "out.parts").glob("*.parquet"))
    resumed = api.predict(segmented.path, files, out=tmp_path / "out", batch_size=4, resume=True)
    assert resumed["outlier"].tolist() == whole["outlier"].tolist() == [None, *[False] * 4, True]
    scores = ["outlier_score", "outlier_p"]
    pd.testing.assert_frame_equal(resumed[scores], whole[scores])
    written = pd.read_csv(tmp_path / "out" / "predictions.csv")
    np.testing.assert_allclose(written["outlier_score"], whole["outlier_score"])


def test_without_validation_images_it_is_said_why_nothing_is_an_outlier(
    phantoms: Path, strange: list[Path], tmp_path: Path
) -> None:
    options = {**OPTIONS, "data.split.fractions": [0.8, 0.0, 0.2], "selection.metric": "last"}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    assert run.card["trust"]["notes"] == [
        "0 validation images: too few for 5% false alarms, so no image is called an outlier (19 are needed)"
    ]
    assert run.card["trust"]["outliers"]["threshold"] is None
    said = api.predict(run.path, strange)
    assert said["outlier"].tolist() == [False, None]
    assert said["outlier_score"][0] > 1 and np.isnan(said["outlier_p"][0])
    served = open_served(run.path, "lungs")
    (noise,) = served(list(read_all([str(strange[0])], served.forms, workers=0)))
    assert "outlier" not in noise.said and served.about["false_alarms"] is None


def test_where_nothing_is_to_be_kept_nothing_is(phantoms: Path, strange: list[Path], tmp_path: Path) -> None:
    none = api.finetune(phantoms, out=tmp_path / "none", options={**OPTIONS, "trust.reference_images": 0})
    kept = none.card["trust"]
    assert kept["outliers"] is None and kept["notes"] == [
        "0 training images are kept: too few to tell outliers (8 are needed)"
    ]
    assert not list(none.path.glob("reference.*"))
    assert not set(UNLIKE) & set(api.predict(none.path, strange))
    blind = api.finetune(phantoms, out=tmp_path / "blind", options={**OPTIONS, "trust.thumbnails": False})
    reference = Reference.open(blind)
    assert reference is not None and len(reference.table) == 30 and reference.table["thumbnail"].isna().all()


def test_a_run_of_before_says_nothing_of_outliers(
    segmented: Run, phantoms: Path, strange: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(segmented.path, tmp_path / "old")
    card = json.loads((tmp_path / "old" / "model.json").read_text())
    del card["trust"]
    (tmp_path / "old" / "model.json").write_text(json.dumps(card))
    for file in (tmp_path / "old").glob("reference.*"):
        file.unlink()
    assert list(api.predict(tmp_path / "old", strange)) == [
        "image", "mask", "overlay", "height", "width", "area:foreground", "error",
    ]  # fmt: skip
    assert open_served(tmp_path / "old", "old").about["similar"] is False
