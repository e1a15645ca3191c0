"""Predicting raw files, and the report page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from api.conftest import FINETUNING, Command, words
from api.runs import by_image, copied, used
from data import made_dicom
from scanprior import api
from scanprior.api.models import load_classifier
from scanprior.data.loader import evaluation_batches
from scanprior.run import Run

FINDINGS = ["consolidation", "effusion", "cardiomegaly", "nodule"]


def test_raw_files_give_what_the_store_gives_bit_for_bit(
    phantoms: Path, finetuned: Run, tmp_path: Path
) -> None:
    model, preprocessing = load_classifier(finetuned)
    store = api.prepare(phantoms, out=tmp_path / "store", options={"data.size": 32, "data.workers": 0})
    rows = np.arange(len(store))
    stored = model.predict(evaluation_batches(store, rows, preprocessing, 64)).astype(np.float64)
    frame = store.frame
    table = api.predict(finetuned.path, [phantoms / name for name in frame["image"]])
    assert table["error"].isna().all()
    np.testing.assert_array_equal(table[["prob:abnormal", "prob:normal"]].to_numpy(), stored)
    kept = pd.read_parquet(finetuned.path / "predictions.parquet").set_index("image")
    again = table.assign(image=frame["image"]).set_index("image").loc[kept.index]
    np.testing.assert_allclose(again["prob:normal"], kept["prob:normal"], rtol=0, atol=1e-6)


def test_a_larger_store_and_sixteen_bits_predict_the_same(phantoms: Path, tmp_path: Path) -> None:
    options = {**FINETUNING, "data.store_size": 40, "data.depth": 16, "data.fit": "pad"}
    run = api.finetune(phantoms, out=tmp_path / "run", options=options)
    kept = pd.read_parquet(run.path / "predictions.parquet")
    table = api.predict(run.path, [phantoms / name for name in kept["image"]], batch_size=128)
    np.testing.assert_allclose(table["prob:normal"], kept["prob:normal"], rtol=0, atol=1e-6)


def test_broken_files_get_their_own_error_and_no_score(
    phantoms: Path, finetuned: Run, tmp_path: Path
) -> None:
    names = sorted((phantoms / "images").iterdir())[:12]
    for path in names:
        shutil.copy(path, tmp_path)
    whole = by_image(api.predict(finetuned.path, tmp_path))
    broken = {names[0].name: b"", names[5].name: b"no image", names[6].name: names[6].read_bytes()[:200],
              names[11].name: bytes(500)}  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    table = by_image(api.predict(finetuned.path, tmp_path, batch_size=4, out=tmp_path / "p.csv"))
    assert list(table.index) == list(whole.index)
    bad = table.loc[list(broken)]
    assert bad["error"].notna().all() and bad.drop(columns="error").isna().all(axis=None)
    good = table.drop(index=list(broken))
    np.testing.assert_allclose(good["prob:normal"], whole.loc[good.index, "prob:normal"], rtol=0, atol=1e-6)
    assert good["error"].isna().all() and (good["predicted"] == whole.loc[good.index, "predicted"]).all()
    written = pd.read_csv(tmp_path / "p.csv")
    assert written["error"].notna().sum() == 4 and len(written) == 12
    nothing = api.predict(finetuned.path, [tmp_path / name for name in broken])
    assert nothing["error"].notna().all()


def test_predict_reads_npz_dicom_and_folders(
    phantoms: Path, finetuned: Run, tmp_path: Path, scanprior: Command
) -> None:
    files = sorted((phantoms / "images").iterdir())[:3]
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    np.savez(tmp_path / "set.npz", test_images=pixels, test_labels=np.zeros((3, 1), np.uint8))
    made_dicom.save(made_dicom.dataset(pixels[0]), tmp_path / "one.dcm")
    made_dicom.save(made_dicom.dataset(255 - pixels[0], photometric="MONOCHROME1"), tmp_path / "inverted.dcm")
    made_dicom.save(made_dicom.dataset(pixels, frames=3), tmp_path / "many.dcm")
    expected = api.predict(finetuned.path, files)["prob:normal"].to_numpy()
    given = [
        tmp_path / "set.npz",
        tmp_path / "one.dcm",
        tmp_path / "inverted.dcm",
        f"{tmp_path / 'many.dcm'}#2",
    ]
    said = scanprior("predict", finetuned.path, *given, "--out", tmp_path / "new" / "p.parquet")
    assert said.code == 0 and "6 rows, 0 with an error" in said.out
    table = pd.read_parquet(tmp_path / "new" / "p.parquet")
    wanted = [*expected, expected[0], expected[0], expected[2]]
    np.testing.assert_allclose(table["prob:normal"], wanted, rtol=0, atol=1e-6)
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels[0] // 128 * 255).save(tmp_path / "masks" / "one.png")
    assert len(api.predict(finetuned.path, tmp_path / "masks" / "one.png")) == 1  # where it is asked for
    folder = api.predict(finetuned.path, tmp_path)
    assert len(folder) == 3 and folder["error"].notna().sum() <= 1  # the three DICOM files


# report


def test_reports_of_both_kinds(finetuned: Run, pretrained: Run, tmp_path: Path, scanprior: Command) -> None:
    for run in (finetuned, pretrained):
        said = scanprior("report", run.path, "--out", tmp_path / "report.html")
        assert said.code == 0, said.err
        page = (tmp_path / "report.html").read_text()
        assert "not a medical device" in page.lower() and 'src="http' not in page
        assert run.card["data"]["split"]["fingerprint"] in page
    assert (pretrained.path / "pictures").is_dir() and any((pretrained.path / "pictures").iterdir())


def test_broken_training_images_are_left_out_and_listed(
    phantoms: Path, tmp_path: Path, scanprior: Command
) -> None:
    source = copied(phantoms, tmp_path / "data")
    bad = sorted(p.name for p in (source / "images").iterdir())[:3]
    for name in bad:
        (source / "images" / name).write_bytes(b"")
    said = scanprior("check", source, "--json", tmp_path / "new" / "check.json", "--no-near")
    assert said.code == 0, said.text
    assert all(name in (tmp_path / "new" / "check.json").read_text() for name in bad)
    said = scanprior("finetune", source, "--out", tmp_path / "run", *words(FINETUNING))
    assert said.code == 0 and "3 left out" in said.out
    run = Run.open(tmp_path / "run")
    assert len(run.card["data"]["sources"][0]["left_out"]) == 3
    assert not any(Path(name).name in bad for name in used(run, "train"))
    page = api.report(run.path).read_text()
    assert all(name in page for name in bad)


def test_a_place_that_cannot_be_written_is_refused_at_the_start(
    finetuned: Run, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.csv").mkdir()
    missing = tmp_path / "no such image.png"  # is only looked for later
    said = refused("predict", finetuned.path, missing, "--out", tmp_path / "file" / "deep" / "p.csv")
    assert f"{tmp_path / 'file'} is a file, and no folder can be made in it" in said
    assert "a folder is here" in refused("predict", finetuned.path, missing, "--out", tmp_path / "folder.csv")
    said = refused("predict", finetuned.path, missing, "--out", "/proc/p.csv")
    assert said.startswith("--out /proc/p.csv: /proc cannot be written to")
    assert "no such file" in refused("predict", finetuned.path, missing, "--out", tmp_path / "new" / "p.csv")
    assert not (tmp_path / "new").exists()
