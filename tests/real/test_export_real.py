"""Exported models on real images: chest radiographs, and breast ultrasound with masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from scanprior import api
from scanprior.api.models import load_predictor, load_segmenter
from scanprior.data.inputs import to_input
from scanprior.data.readers import read_image
from scanprior.data.transforms import prepare_image

RealData = Callable[[str], Path]

SMALL = {
    "data.workers": 0, "data.size": 64, "engine.steps": 10, "engine.batch_size": 16, "engine.precision": "32",
    "engine.accelerator": "cpu", "evaluation.resamples": 100,
}  # fmt: skip
VIT = {"encoder.name": "vit_tiny_patch16_224", "encoder.patch_size": 8, "encoder.depth": 2}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCANPRIOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def some(source: Path, to: Path, each: int) -> Path:
    """Copy images of every class, with masks if there are any, and their table."""
    table = pd.read_csv(source / "labels.csv", dtype=str)
    table = table.groupby("label").sample(each, random_state=0)
    columns = [name for name in ("image", "mask") if name in table]
    for name in table[columns].stack():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, to / name)
    keep = [name for name in ("image", "label", "patient", "mask") if name in table]
    table[keep].to_csv(to / "labels.csv", index=False)
    return to


def test_a_classifier_of_radiographs(real_data: RealData, tmp_path: Path) -> None:
    source = some(real_data("kermany"), tmp_path / "kermany", 40)
    run = api.finetune(source, out=tmp_path / "run", options={**SMALL, **VIT})
    done = api.export(run.path, format="onnx", out=tmp_path / "m.onnx")
    assert done.parity.said == "test images of the run" and done.parity.images >= 8
    assert done.parity.stored <= 1e-4 and done.parity.raw is not None
    files = sorted(source.rglob("*.jpeg"))[::5]
    wanted = api.predict(run.path, files).filter(like="prob:").to_numpy()
    preprocessing = load_predictor(run).preprocessing
    pixels = np.stack([prepare_image(read_image(file), preprocessing) for file in files])
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": pixels})[0], wanted, atol=1e-4)
    for form in ("timm", "hf"):
        folder = api.export(run.path, format=form, out=tmp_path / form, images=files)  # type: ignore[arg-type]
        assert folder.parity.stored <= 1e-4
    text = done.card.read_text()
    patients = pd.read_csv(source / "labels.csv")["patient"]
    assert not [name for name in patients.astype(str) if name in text]


def test_masks_of_ultrasound_given_at_their_own_size(real_data: RealData, tmp_path: Path) -> None:
    source = some(real_data("busi"), tmp_path / "busi", 20)
    options = {
        **SMALL, "encoder.name": "test_convnext.r160_in1k", "task.name": "segment", "task.width": 4,
        "task.mask_threshold": 128,
    }  # fmt: skip
    run = api.finetune(source, out=tmp_path / "run", options=options)
    files = sorted((source / "images").iterdir())
    done = api.export(run.path, format="onnx", out=tmp_path / "m.onnx", images=files)
    assert done.parity.stored <= 1e-4
    assert done.parity.raw_images == done.parity.images and done.parity.raw is not None
    model, preprocessing = load_segmenter(run)
    pixels = np.stack([prepare_image(read_image(file), preprocessing) for file in files[:3]])
    (wanted,) = model.predict([to_input(pixels, preprocessing)])
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": pixels})[0], wanted.numpy(), atol=1e-4)
