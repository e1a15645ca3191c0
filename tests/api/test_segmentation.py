"""Segmentation from end to end: masks of the phantoms, a run from a parent and one from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

from api.conftest import FINETUNING, FROM_PARENT, Command
from scanprior import api
from scanprior.api.models import load_segmenter
from scanprior.run import Run

MASKS = {"task.name": "segment", "task.width": 4}


@pytest.fixture(scope="module")
def segmented(phantoms: Path, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "seg"
    return api.finetune(phantoms, out=out, parent=pretrained.path, options={**FROM_PARENT, **MASKS})


def test_a_run_measures_its_masks(segmented: Run, phantoms: Path) -> None:
    card = segmented.card
    assert card["kind"] == "segment" and card["task"]["classes"] == ["foreground"]
    assert card["training"]["selected_by"] == "dice" and card["parent"]["objective"] == "gmml"
    result = json.loads((segmented.path / "evaluations" / "test.json").read_text())
    table = pd.read_parquet(segmented.path / "evaluations" / "test.parquet")
    assert result["n"] == len(table) == card["data"]["split"]["counts"]["test"]["images"]
    rows = {row["metric"]: row for row in result["metrics"]}
    assert rows["dice"]["value"] == pytest.approx(table["dice:foreground"].mean())
    assert rows["dice"]["low"] < rows["dice"]["value"] < rows["dice"]["high"]
    used = pd.read_parquet(segmented.path / "data.parquet")
    assert set(used["used"].dropna()) == {"train", "val", "test"}
    cases = sorted((segmented.path / "evaluations" / "test-cases").iterdir())
    assert {case.name.split("-")[0] for case in cases} == {"best", "median", "worst"}
    assert Image.open(cases[0]).mode == "RGB"


def test_dice_is_that_of_the_files(segmented: Run, phantoms: Path) -> None:
    """Predicted from the raw image, compared with the mask file, step by step."""
    from scanprior.data.fitting import unfit_maps
    from scanprior.data.readers import read_reference
    from scanprior.data.transforms import prepare_image, to_input

    model, preprocessing = load_segmenter(segmented)
    manifest = pd.read_csv(phantoms / "labels.csv").set_index("image")
    table = pd.read_parquet(segmented.path / "evaluations" / "test.parquet")
    for row in table.head(4).itertuples():
        pixels = prepare_image(read_reference(row.image, phantoms), preprocessing)
        (maps,) = model.predict([to_input(pixels[None].copy(), preprocessing)])
        truth = np.asarray(Image.open(phantoms / manifest.loc[row.image, "mask"])) > 0
        found = unfit_maps(maps[0].numpy(), height=48, width=48, fit="squash")[0] > 0.5
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert table.loc[row.Index, "dice:foreground"] == pytest.approx(dice, abs=1e-9)


def test_evaluate_and_compare(segmented: Run, phantoms: Path, tmp_path: Path, scanprior: Command) -> None:
    other = api.finetune(
        phantoms, out=tmp_path / "scratch", options={**FINETUNING, **MASKS, "labels.count": 8}
    )
    assert other.card["data"]["labels_used"] == 8
    said = scanprior("evaluate", segmented.path, "--split", "val", "--set", "evaluation.resamples=100")
    assert said.code == 0 and "dice" in said.out, said.err
    result = api.compare(segmented.path, other.path, resamples=100)
    row = next(row for row in result["differences"] if row["metric"] == "dice")
    assert row["difference"] == pytest.approx(row["first"] - row["second"])
    assert scanprior("compare", segmented.path, other.path).code == 0


def test_a_resumed_run_is_bit_equal(phantoms: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, **MASKS, "engine.checkpoint_every": 2}
    whole = api.finetune(phantoms, out=tmp_path / "whole", options=options)

    class Stop(Exception):
        pass

    class Stopping(type(__import__("scanprior.engine", fromlist=["Reporter"]).Reporter())):  # type: ignore[misc]
        def validation(self, step: int, values: dict[str, float], select: str | None) -> None:
            if step == 4:
                raise Stop

    with pytest.raises(Stop):
        api.finetune(phantoms, out=tmp_path / "cut", options=options, reporter=Stopping())
    resumed = api.finetune(phantoms, out=tmp_path / "cut", options=options, resume=True)
    first, second = load_file(whole.weights), load_file(resumed.weights)
    assert all((first[name] == second[name]).all() for name in first)


def test_what_a_segmenter_is_not_for(
    segmented: Run, finetuned: Run, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    image = next((phantoms / "images").iterdir())
    said = scanprior("predict", segmented.path, image, "--out", tmp_path / "p.csv")
    assert said.code == 2 and "is a segmenter, and a classifier is needed" in said.err
    said = scanprior("compare", segmented.path, finetuned.path)
    assert said.code == 2 and "compare like with like" in said.err
    (tmp_path / "plain").mkdir()
    for number in range(4):
        Image.fromarray(np.full((40, 40), 60 * number, np.uint8)).save(tmp_path / "plain" / f"{number}.png")
    said = scanprior("finetune", tmp_path / "plain", "--out", tmp_path / "no", "--set", "task.name=segment")
    assert said.code == 2 and "name no masks" in said.err and not (tmp_path / "no").exists()
    said = scanprior("finetune", phantoms, "--out", tmp_path / "no", "--set", "task.name=detect")
    assert said.code == 2 and "choose one of classify, segment" in said.err
