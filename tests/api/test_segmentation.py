"""Segmentation from end to end: masks of the phantoms, a run from a parent and one from scratch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
    assert said.code == 2 and "masks need a folder; name it without .csv" in said.err
    said = scanprior("compare", segmented.path, finetuned.path)
    assert said.code == 2 and "compare like with like" in said.err
    (tmp_path / "plain").mkdir()
    for number in range(4):
        Image.fromarray(np.full((40, 40), 60 * number, np.uint8)).save(tmp_path / "plain" / f"{number}.png")
    said = scanprior("finetune", tmp_path / "plain", "--out", tmp_path / "no", "--set", "task.name=segment")
    assert said.code == 2 and "name no masks" in said.err and not (tmp_path / "no").exists()
    said = scanprior("finetune", phantoms, "--out", tmp_path / "no", "--set", "task.name=detect")
    assert said.code == 2 and "choose one of classify, segment" in said.err


def test_predicted_masks_are_those_that_were_measured(
    segmented: Run, phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    test = pd.read_parquet(segmented.path / "evaluations" / "test.parquet")
    images = [str(phantoms / name) for name in test["image"].head(4)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    twin = tmp_path / Path(images[0]).name
    shutil.copy(images[0], twin)
    said = scanprior(
        "predict", segmented.path, *images, tmp_path / "broken.png", twin, "--out", tmp_path / "out"
    )
    assert said.code == 0 and "6 rows, 1 with an error" in said.out, said.text
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    masks = pd.read_csv(phantoms / "labels.csv").set_index("image")["mask"]
    for row, known in zip(table.head(4).itertuples(), test.head(4).itertuples(), strict=True):
        found = np.asarray(Image.open(tmp_path / "out" / row.mask))
        assert set(np.unique(found)) <= {0, 255} and found.shape == (row.height, row.width) == (48, 48)
        truth = np.asarray(Image.open(phantoms / masks[known.image])) > 0
        dice = 2 * ((found > 0) & truth).sum() / ((found > 0).sum() + truth.sum())
        assert dice == pytest.approx(test.loc[known.Index, "dice:foreground"])
        assert table.loc[row.Index, "area:foreground"] == (found > 0).sum()
        assert Image.open(tmp_path / "out" / row.overlay).size == (48, 48)
    broken, copy = table.iloc[4], table.iloc[5]
    assert pd.isna(broken["mask"]) and pd.isna(broken["area:foreground"]) and broken["error"]
    assert copy["mask"] != table.loc[0, "mask"]  # two files of one name do not overwrite each other
    as_arrays = api.predict(segmented.path, images, out=tmp_path / "npy", masks="npy", overlays=False)
    array = np.load(tmp_path / "npy" / as_arrays.loc[0, "mask"])
    assert array.dtype == bool and array.shape == (1, 48, 48)
    np.testing.assert_array_equal(
        array[0], np.asarray(Image.open(tmp_path / "out" / table.loc[0, "mask"])) > 0
    )
    assert not (tmp_path / "npy" / "overlays").exists()


def test_predicted_masks_have_the_values_of_the_runs_own(phantoms: Path, tmp_path: Path) -> None:
    """Classes that exclude one another come back in their own values; those that may overlap, a file each."""
    table = pd.read_csv(phantoms / "labels.csv")
    for kind in ("values", "several"):
        (tmp_path / kind / "masks").mkdir(parents=True)
        shutil.copytree(phantoms / "images", tmp_path / kind / "images")
    for name in table["mask"]:
        lungs = np.asarray(Image.open(phantoms / name)) > 0
        left = lungs & (np.arange(48) < 24)
        Image.fromarray((left * 7 + (lungs & ~left) * 90).astype(np.uint8)).save(tmp_path / "values" / name)
        stem = Path(name).stem
        Image.fromarray(left.astype(np.uint8) * 255).save(tmp_path / "several" / "masks" / f"{stem}-left.png")
        Image.fromarray(lungs.astype(np.uint8) * 255).save(
            tmp_path / "several" / "masks" / f"{stem}-both.png"
        )
    kept = table[["image", "patient", "label"]]
    kept.assign(mask=table["mask"]).to_csv(tmp_path / "values" / "labels.csv", index=False)
    stems = table["mask"].map(lambda name: f"masks/{Path(name).stem}")
    several = kept.assign(**{"mask:left": stems + "-left.png", "mask:both": stems + "-both.png"})
    several.to_csv(tmp_path / "several" / "labels.csv", index=False)
    image = phantoms / table["image"].iloc[0]
    for kind in ("values", "several"):
        run = api.finetune(
            tmp_path / kind, out=tmp_path / f"run {kind}", options={**FINETUNING, **MASKS, "engine.steps": 30}
        )
        made = api.predict(run.path, image, out=tmp_path / f"out {kind}")
        files = made.loc[0, "mask"].split("|")
        found = [np.asarray(Image.open(tmp_path / f"out {kind}" / file)) for file in files]
        if kind == "values":
            assert len(files) == 1 and set(np.unique(found[0])) <= {0, 7, 90}
            assert made.loc[0, "area:value 7"] == (found[0] == 7).sum()
        else:
            assert [Path(file).stem.rpartition("-")[2] for file in files] == ["left", "both"]
            assert all(set(np.unique(one)) <= {0, 255} for one in found)


def test_a_report_shows_its_masks(segmented: Run, scanprior: Command) -> None:
    assert scanprior("report", segmented.path).code == 0
    page = (segmented.path / "report.html").read_text()
    for words in (
        "Segmentation report",
        "Worst, median and best masks",
        "95 % Hausdorff distance",
        "Distances in",
    ):
        assert words in page
    assert page.count('alt="worst, Dice') == page.count('alt="best, Dice') >= 3
    assert "Most wrong cases" not in page


def test_where_masks_cannot_go(
    segmented: Run, phantoms: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "out").write_text("a file")
    assert "masks need a folder" in refused("predict", segmented.path, phantoms, "--out", tmp_path / "out")
    said = refused("predict", segmented.path, phantoms, "--out", tmp_path / "new", "--masks", "gif")
    assert "choose one of png, npy" in said and not (tmp_path / "new").exists()


def _with_masks(phantoms: Path, place: Path, change: Callable[[pd.DataFrame], None]) -> Path:
    shutil.copytree(phantoms, place)
    table = pd.read_csv(place / "labels.csv")
    change(table)
    table.to_csv(place / "labels.csv", index=False)
    return place


def test_one_mask_that_a_lossy_format_blurred_makes_no_classes(
    segmented: Run, phantoms: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def blur(table: pd.DataFrame) -> None:
        file = tmp_path / "blurred" / table["mask"].iloc[-1]
        values = np.array(Image.open(file).convert("L"))
        values[::2] = np.where(values[::2] > 0, 251, 3)
        Image.fromarray(values).save(file)

    place = _with_masks(phantoms, tmp_path / "blurred", blur)
    file = pd.read_csv(place / "labels.csv")["mask"].iloc[-1]
    quick = ("--set", "engine.steps=1", "--set", "data.size=32")
    said = refused("finetune", place, "--out", tmp_path / "no", "--set", "task.name=segment", *quick)
    assert "1 of" in said and f"{file} (3, 251" in said and "task.classes" in said
    assert not (tmp_path / "no").exists()
    said = refused("evaluate", segmented.path, "--data", place, "--split", "all")
    assert f"{file} (3, 251" in said and "the run knows one class" in said


def test_images_without_a_mask_are_counted(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scanprior.console import ConsoleReporter

    def drop(table: pd.DataFrame) -> None:
        table.loc[table.index[:9], "mask"] = None

    place = _with_masks(phantoms, tmp_path / "some", drop)
    run = api.finetune(
        place, out=tmp_path / "run", options={**FINETUNING, **MASKS}, reporter=ConsoleReporter()
    )
    used = run.card["data"]["unused"]
    assert used["lacking"] == "mask" and sum(used["images"].values()) == 9
    (note,) = [note for note in run.card["notes"] if "no mask" in note]
    assert f"{used['images']['train']} training" in note and note in capsys.readouterr().out
