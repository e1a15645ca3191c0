"""``explain`` on files: overlays and maps at the images' own size, ensembles, errors, masks, the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from api.conftest import FINETUNING, Command
from api.runs import by_image
from scanprior import api
from scanprior.api.explanation import Explainer
from scanprior.api.models import load_classifier
from scanprior.api.predictor import Member, Predictor
from scanprior.data.readers import ImageData, read_image
from scanprior.data.transforms import Preprocessing, to_input
from scanprior.errors import ConfigError
from scanprior.evaluation import Combination
from scanprior.reporting.model_card import model_card
from scanprior.run import Run
from scanprior.saliency import METHODS, Method, gradient_attention

CONV = {
    **{n: v for n, v in FINETUNING.items() if not n.startswith("encoder.")},
    "encoder.name": "test_resnet",
}


@pytest.fixture(scope="module")
def conv(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.finetune(phantoms, out=tmp_path_factory.mktemp("runs") / "conv", options=CONV)


@pytest.fixture(scope="module")
def both(finetuned: Run, conv: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.ensemble([finetuned.path, conv.path], out=tmp_path_factory.mktemp("runs") / "both")


def some(phantoms: Path, count: int = 3) -> list[Path]:
    return sorted((phantoms / "images").iterdir())[:count]


def test_overlays_arrays_and_table(phantoms: Path, finetuned: Run, tmp_path: Path) -> None:
    files = some(phantoms, 5)
    table = api.explain(finetuned.path, files, out=tmp_path, arrays=True, batch_size=2)
    assert list(table.columns) == ["image", "predicted", "class", "prob", "overlay", "array", "error"]
    expected = api.predict(finetuned.path, files)
    assert table["predicted"].tolist() == table["class"].tolist() == expected["predicted"].tolist()
    wanted = [row[f"prob:{row['predicted']}"] for _, row in expected.iterrows()]
    np.testing.assert_allclose(table["prob"], wanted, atol=1e-6)
    model, pre = load_classifier(finetuned)
    for row, file in zip(table.itertuples(), files, strict=True):
        saliency, pixels = np.load(tmp_path / row.array), np.asarray(Image.open(file))
        assert saliency.shape == pixels.shape and saliency.dtype == np.float32
        assert saliency.min() >= 0 and saliency.max() <= 1
        small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
        own = gradient_attention(model, to_input(small[None, None].copy(), pre))[0].numpy()
        again = np.asarray(Image.fromarray(own).resize(pixels.shape[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_allclose(saliency, again, atol=2e-3)
        drawn = np.asarray(Image.open(tmp_path / row.overlay)).astype(int)
        changed = np.abs(drawn - pixels[..., None]).max(axis=2)
        assert drawn.shape == (*pixels.shape, 3) and (changed[saliency < 1e-3] <= 1).all()  # readable
        assert changed[saliency > 0.9].mean() > 20
    said = json.loads((tmp_path / "explanations.json").read_text())
    assert said["methods"] == ["gradient_attention"] and said["classes"] == "predicted"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "explanations.csv"), table, check_dtype=False)


def test_wanted_classes_and_broken_files(phantoms: Path, finetuned: Run, tmp_path: Path) -> None:
    for file in some(phantoms):
        shutil.copy(file, tmp_path)
    broken = sorted(tmp_path.iterdir())[1]
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    table = api.explain(finetuned.path, tmp_path, out=out, classes=["normal", "abnormal"], batch_size=2)
    assert len(table) == 5 and table["class"].dropna().tolist() == ["normal", "abnormal"] * 2
    bad = table[table["error"].notna()]
    assert bad["image"].tolist() == [str(broken)] and bad.drop(columns=["image", "error"]).isna().all(
        axis=None
    )
    assert len({*table["overlay"].dropna()}) == 4 == len(list((out / "overlays").iterdir()))
    sums = table.dropna(subset="class").groupby("image")["prob"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    alone = by_image(api.explain(finetuned.path, [some(phantoms)[2]], out=out / "one", classes="abnormal"))
    together = by_image(table[table["class"] == "abnormal"])
    assert alone["prob"].iloc[0] == pytest.approx(together.loc[alone.index[0], "prob"], abs=1e-6)


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_maps_come_back_to_where_they_were(finetuned: Run, monkeypatch, fit: str) -> None:
    """The map of a method that returns its input lies on the image, whatever was done to make it square."""
    monkeypatch.setitem(
        METHODS, "input", Method(lambda model, x, c: x[:, 0].clamp(min=0), lambda m: None, "")
    )
    model, _ = load_classifier(finetuned)
    pre = Preprocessing(size=32, channels=1, fit=fit, mean=[0.0], std=[1.0])
    pixels = np.zeros((90, 150, 1), np.uint8)
    pixels[30:60, 80:110] = 255  # 10 px from the centre of each side, at least
    (found,) = Explainer(Predictor.of(model, pre)).maps([ImageData(pixels, 8, {})], "normal", "input")
    assert found.shape == (90, 150) and found.dtype == np.float32
    seen = np.ones((90, 150), bool)
    if fit == "crop":
        seen[:, :30] = seen[:, 120:] = False
    assert not found[~seen].any()
    assert np.abs(found - pixels[..., 0] / 255)[seen].mean() < 0.04
    assert found[35:55, 86:104].min() > 0.9 and found[:20].max() < 0.1


def test_an_ensemble_is_the_mean_of_its_members(phantoms: Path, finetuned: Run, conv: Run, both: Run) -> None:
    images = [read_image(file) for file in some(phantoms)]
    explainer = Explainer(both.path)
    assert explainer.methods == ["auto", "occlusion"]
    assert explainer.chosen() == ["gradient_attention", "layercam"]
    members = [Explainer(run).maps(images, "abnormal") for run in (finetuned, conv)]
    whole = explainer.maps(images, "abnormal")
    for first, second, mean in zip(*members, whole, strict=True):
        assert first.max() > 0.9 or second.max() > 0.9
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-5)
    with pytest.raises(ConfigError, match=r"member conv\)"):
        explainer.chosen("gradient_attention")
    kept = [Member(*load_classifier(run), run.path.name) for run in (finetuned, conv)]
    weighted = Explainer(Predictor(kept, Combination("weighted", weights=(0.0, 1.0)), ["abnormal", "normal"]))
    for mean, second in zip(weighted.maps(images, "abnormal"), members[1], strict=True):
        np.testing.assert_allclose(mean, second, atol=1e-6)


def test_findings_are_explained_one_by_one(phantoms: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, "data.label_columns": ["consolidation", "effusion"]}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    files = some(phantoms, 2)
    predicted = api.predict(run.path, files)
    table = api.explain(run.path, files, out=tmp_path / "out")
    assert table["predicted"].isna().all()
    both = predicted[["prob:consolidation", "prob:effusion"]]
    np.testing.assert_allclose(table["prob"], both.max(axis=1), atol=1e-6)
    table = api.explain(run.path, files, out=tmp_path / "named", classes="effusion")
    np.testing.assert_allclose(table["prob"], both["prob:effusion"], atol=1e-6)


def test_predictions_are_unchanged(phantoms: Path, conv: Run) -> None:
    explainer = Explainer(conv)
    images = [read_image(file) for file in some(phantoms)]
    before = [found[0].probability for found in explainer.explain(images, ["normal"])]
    for method in explainer.methods:
        explainer.maps(images, None, method)
    assert [found[0].probability for found in explainer.explain(images, ["normal"])] == before
    assert all(weight.grad is None for weight in explainer.predictor.members[0].model.parameters())
    assert explainer.maps([]) == [] and torch.is_grad_enabled()


# masks


def test_pointing_at_masks(phantoms: Path, finetuned: Run, tmp_path: Path, scanprior: Command) -> None:
    said = scanprior(
        "explain",
        finetuned.path,
        phantoms,
        "--pointing",
        "--split",
        "all",
        "--tolerance",
        2,
        "--out",
        tmp_path,
    )
    assert said.code == 0, said.text
    assert "pointing game" in said.out and "random saliency" in said.out
    result = json.loads((tmp_path / "pointing.json").read_text())
    labels = pd.read_csv(phantoms / "labels.csv")
    assert result["n"] == len(labels) and result["patients"] == labels["patient"].nunique()
    assert result["by_class"] == labels["label"].value_counts().to_dict()
    table = pd.read_csv(tmp_path / "pointing.csv").set_index("image")
    rows = {row["metric"]: row for row in result["metrics"]}
    masks = {
        name: np.asarray(Image.open(phantoms / file)) > 0
        for name, file in zip(labels["image"], labels["mask"], strict=True)
    }
    areas = pd.Series({name: mask.mean() for name, mask in masks.items()})
    np.testing.assert_allclose(table["energy_inside:chance"], areas[table.index])
    assert rows["energy_inside"]["chance"] == pytest.approx(areas.mean())
    first = labels.iloc[0]
    image = read_image(phantoms / first["image"])
    saliency = Explainer(finetuned).maps([image], first["label"])[0]
    share = saliency[masks[first["image"]]].sum() / saliency.sum()
    assert table.loc[first["image"], "energy_inside"] == pytest.approx(share, abs=1e-4)


def test_pointing_at_one_class_with_masks_of_another_size(
    phantoms: Path, finetuned: Run, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(phantoms, source)
    labels = pd.read_csv(source / "labels.csv")
    abnormal = labels.index[labels["label"] == "abnormal"]
    half, empty, misshapen, broken = labels["mask"][abnormal[:4]]
    Image.open(source / half).resize((24, 24), Image.Resampling.NEAREST).save(source / half)
    Image.new("L", (48, 48)).save(source / empty)
    Image.new("L", (48, 24), 255).save(source / misshapen)
    (source / broken).write_bytes(b"")
    labels.loc[abnormal[4], "mask"] = None
    labels.to_csv(source / "labels.csv", index=False)
    options = {"split": "all", "settings": ["evaluation.resamples=100"]}
    result = api.pointing(finetuned.path, source, classes=["abnormal"], out=tmp_path / "out", **options)
    assert result["by_class"] == {"abnormal": len(abnormal) - 4} and result["errors"] == 2
    table = pd.read_csv(tmp_path / "out" / "pointing.csv")
    assert table["error"].dropna().str.contains("48 x 24|empty").all()


# the command line


def test_the_command_writes_and_checks(phantoms: Path, both: Run, tmp_path: Path, scanprior: Command) -> None:
    said = scanprior("explain", both.path, *some(phantoms), "--out", tmp_path / "new", "--check", "--arrays")
    assert said.code == 0, said.text
    assert "3 rows in explanations.csv, 0 with an error" in said.out
    assert "rank correlation of the maps of 3 images" in said.out and "layercam: head" in said.out
    result = json.loads((tmp_path / "new" / "sanity.json").read_text())
    assert [member["method"] for member in result["members"]] == ["gradient_attention", "layercam"]
    stages = [stage for member in result["members"] for stage in member["stages"]]
    assert len(stages) == 6 and all(-1 <= stage["spearman"] <= 1 for stage in stages if stage["compared"])
    assert len(list((tmp_path / "new" / "maps").iterdir())) == 3


def test_checks_of_own_images_are_kept_for_the_report(
    phantoms: Path, both: Run, tmp_path: Path, scanprior: Command, refused: Callable[..., str]
) -> None:
    run = tmp_path / "both"
    shutil.copytree(both.path, run)
    card = json.loads((run / "model.json").read_text())
    for member, path in zip(card["ensemble"]["members"], both.members(), strict=True):
        member["path"] = str(path)
    (run / "model.json").write_text(json.dumps(card))
    assert "Where it looks" not in api.report(run).read_text()
    said = scanprior("explain", run, "--check", "--pointing")
    assert said.code == 0, said.text
    assert (
        "pointing game" in said.out
        and "rank correlation" in said.out
        and "next: scanprior report" in said.out
    )
    kept = run / "explanations"
    assert {path.name for path in kept.iterdir()} == {
        "sanity.json", "sanity.png", "pointing.json", "pointing.csv"
    }  # fmt: skip
    tests = pd.read_parquet(both.path / "predictions.parquet").query("split == 'test'")
    sanity, pointed = (json.loads((kept / f"{name}.json").read_text()) for name in ("sanity", "pointing"))
    assert {member["images"] for member in sanity["members"]} == {min(32, len(tests))}
    assert pointed["n"] == len(tests) and sanity["data"] == "the run's own, split test"
    sheet = Image.open(kept / "sanity.png")
    assert sheet.size == (4 * 148 - 4, 4 * 148 - 4)  # two images of either member; trained and three stages
    page = api.report(run).read_text()
    assert "Where it looks" in page and "data:image" in page.partition('id="looking"')[2]
    words = model_card(run)
    for member in sanity["members"]:
        assert f"Maps ({member['method']}) of {member['name']} of {member['images']} images" in words
    value = next(row["value"] for row in pointed["metrics"] if row["metric"] == "pointing_game")
    assert f"{value:.3f}" in page and f"{value:.3f}" in words
    assert "name files or folders" in refused("explain", run)
    assert "--out: name the folder" in refused("explain", run, some(phantoms)[0])
    assert "of images that are drawn" in refused("explain", run, "--check", "--arrays")


def test_what_is_refused(
    phantoms: Path, finetuned: Run, pretrained: Run, conv: Run, tmp_path: Path, refused: Callable[..., str]
) -> None:
    image, out = some(phantoms)[0], ("--out", tmp_path / "out")
    assert "fine-tune it" in refused("explain", pretrained.path, image, *out)
    segmenter = tmp_path / "segmenter"
    shutil.copytree(finetuned.path, segmenter)
    card = json.loads((segmenter / "model.json").read_text())
    (segmenter / "model.json").write_text(json.dumps({**card, "kind": "segment"}))
    assert "a segmenter, and a classifier is needed" in refused("explain", segmenter, image, *out)
    said = refused("explain", finetuned.path, image, "--class", "cancer", *out)
    assert said == "--class cancer: the run has no such class; it has abnormal, normal"
    said = refused("explain", finetuned.path, image, "--method", "gradcam", *out)
    assert "has no pyramid of feature maps; use gradient_attention" in said
    assert "use gradcam or layercam or occlusion" in refused(
        "explain", conv.path, image, "--method", "attention_rollout", *out
    )
    assert "did you mean gradcam?" in refused("explain", conv.path, image, "--method", "grad-cam", *out)
    assert "from 0 to 1" in refused("explain", conv.path, image, "--opacity", 1.5, *out)
    assert "no such file or folder" in refused("explain", conv.path, tmp_path / "nothing.png", *out)
    (tmp_path / "file").write_text("")
    assert "need a folder, and a file is here" in refused(
        "explain", conv.path, image, "--out", tmp_path / "file"
    )
    assert "belongs to --pointing" in refused("explain", conv.path, image, "--split", "test", *out)
    assert "one source" in refused("explain", conv.path, image, image, "--pointing", *out)
    said = refused("explain", conv.path, phantoms / "images", "--pointing", *out)
    assert "has no masks of abnormal; name them in a column 'mask'" in said
    said = refused("explain", conv.path, phantoms, "--pointing", "--mask", "mask:lung", *out)
    assert "has no such column; it has mask" in said
    assert not (tmp_path / "out").exists()
