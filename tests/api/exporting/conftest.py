"""Runs to export, of every kind that has a form of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from api.conftest import FINETUNING, FROM_PARENT
from scanprior import api
from scanprior.data.preprocessing import Preprocessing
from scanprior.data.readers import read_image
from scanprior.data.transforms import prepare_image
from scanprior.run import Run

CONVNET = {name: value for name, value in FINETUNING.items() if not name.startswith("encoder.")}
COLOUR = {
    **CONVNET, "encoder.name": "test_convnext.r160_in1k", "data.size": 40, "data.channels": 3,
    "data.standardize": "image", "engine.seed": 5,
}  # fmt: skip
TIMMS = {**CONVNET, "encoder.name": "test_resnet.r160_in1k", "task.normalise": False, "engine.seed": 6}
FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def colour(phantoms: Path, home: Path) -> Run:
    return api.finetune(phantoms, out=home / "colour", options=COLOUR)


@pytest.fixture(scope="module")
def resnet(phantoms: Path, home: Path) -> Run:
    return api.finetune(phantoms, out=home / "resnet", options=TIMMS)


@pytest.fixture(scope="module")
def findings(phantoms: Path, pretrained: Run, home: Path) -> Run:
    options = {**FROM_PARENT, "data.label_columns": FINDINGS}
    return api.finetune(phantoms, out=home / "findings", parent=pretrained.path, options=options)


@pytest.fixture(scope="module")
def segmented(phantoms: Path, pretrained: Run, home: Path) -> Run:
    options = {**FROM_PARENT, "task.name": "segment", "task.width": 4}
    return api.finetune(phantoms, out=home / "segmented", parent=pretrained.path, options=options)


def files_of(phantoms: Path) -> list[Path]:
    return sorted((phantoms / "images").iterdir())[:8]


def squares(files: list[Path], preprocessing: Preprocessing) -> NDArray[Any]:
    return np.stack([prepare_image(read_image(file), preprocessing) for file in files])
