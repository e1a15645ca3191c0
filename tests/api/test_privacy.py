"""Names planted in DICOM headers appear in no file that any command writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from api.conftest import FROM_PARENT, PRETRAINING, Command, words
from data import made_dicom

SECRETS = {
    "PatientName": "Quillfeather^Ophelia",
    "PatientID": "MRN-7719204",
    "PatientBirthDate": "19311103",
    "PatientAddress": "Larkspur Terrace",
    "OtherPatientIDs": "NHS-5550192",
    "AccessionNumber": "ACC-881273",
    "InstitutionName": "Saint Wendreda Hospital",
    "ReferringPhysicianName": "Abernathy^Cornelius",
    "PerformingPhysicianName": "Vandersloot^Idris",
    "OperatorsName": "Mappleby^Una",
    "StudyID": "STUDYID-4417",
    "StudyDate": "20190417",
    "PatientComments": "Lives beside Gorsewick Mill",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.77192041",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.77192042",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.77192043",
}
WORDS = sorted({
    part.lower() for value in SECRETS.values() for part in [value, *value.split("^")] if len(part) > 5
})  # fmt: skip


@pytest.fixture(scope="module")
def hospital(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM files in class folders; the n-th patient's name and number differ by a suffix."""
    home = tmp_path_factory.mktemp("hospital")
    table = pd.read_csv(phantoms / "labels.csv").groupby("patient").head(1).head(48)
    for number, row in enumerate(table.itertuples()):
        pixels = np.asarray(Image.open(phantoms / str(row.image)))
        tags = {name: f"{value}.{number}" if "UID" in name else value for name, value in SECRETS.items()}
        tags["PatientName"] += f"{number:03d}"
        tags["PatientID"] += f"{number:03d}"
        tags["OtherPatientIDs"] += f"{number:03d}"
        made = made_dicom.dataset(pixels, **tags)
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        path = home / str(row.label) / f"{number:03d}.dcm"
        path.parent.mkdir(exist_ok=True)
        made_dicom.save(made, path)
    return home


def texts(path: Path) -> str:
    """Return everything a file says: its bytes, and the cells and metadata of a table."""
    found = path.read_bytes().decode("latin-1")
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        found += str(table.schema.metadata) + table.to_pandas().to_csv()
    return found.lower()


def test_no_written_file_holds_an_identifier(
    hospital: Path, tmp_path: Path, scanprior: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCANPRIOR_CACHE", str(tmp_path / "cache"))
    said = [
        scanprior("index", hospital, "--out", tmp_path / "manifest.parquet"),
        scanprior("index", hospital, "--out", tmp_path / "manifest.csv"),
        scanprior("check", hospital, "--json", tmp_path / "check.json"),
        scanprior("prepare", hospital, "--size", 32, "--out", tmp_path / "store"),
        scanprior("pretrain", hospital, "--out", tmp_path / "pre", *words(PRETRAINING)),
        scanprior(
            "finetune", hospital, "--from", tmp_path / "pre", "--out", tmp_path / "ft", *words(FROM_PARENT)
        ),
        scanprior("evaluate", tmp_path / "ft", "--data", hospital, "--split", "all"),
        scanprior("predict", tmp_path / "ft", hospital, "--out", tmp_path / "predictions.parquet"),
        scanprior("predict", tmp_path / "ft", hospital, "--out", tmp_path / "predictions.csv"),
        scanprior("report", tmp_path / "ft"),
        scanprior("report", tmp_path / "pre"),
    ]
    assert [one.code for one in said if one.code] == [], [one.text for one in said if one.code]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 25 and any(path.name == "salt" for path in files)
    for name, text in {
        **{str(path): texts(path) for path in files},
        "output": "".join(s.text for s in said),
    }.items():
        assert not [word for word in WORDS if word in text.lower()], name


def test_the_search_would_find_them(hospital: Path, tmp_path: Path) -> None:
    """The files do hold the planted words, and the search sees into compressed tables."""
    source = texts(next(hospital.rglob("*.dcm")))
    assert all(word in source for word in WORDS)
    secret = pd.DataFrame({"note": ["Quillfeather^Ophelia"] * 1000})
    secret.to_parquet(tmp_path / "t.parquet", compression="zstd")
    assert "quillfeather" in texts(tmp_path / "t.parquet")


def test_patients_are_told_apart_by_a_salted_hash(hospital: Path, tmp_path: Path, scanprior: Command) -> None:
    for name, salt in (("a", "one"), ("b", "one\n"), ("c", "two")):
        secret = tmp_path / f"{name}.salt"
        secret.write_text(salt)
        said = scanprior(
            "index", hospital, "--out", tmp_path / f"{name}.csv", "--set", f"data.salt_file={secret}"
        )
        assert said.code == 0, said.err
    first, again, other = (pd.read_csv(tmp_path / f"{name}.csv")["patient"] for name in "abc")
    assert first.nunique() == len(first) == 48 and (first == again).all() and not set(first) & set(other)


def test_a_salt_file_that_will_not_do(hospital: Path, tmp_path: Path, scanprior: Command) -> None:
    (tmp_path / "empty").write_text(" \n")
    for name, what in (("empty", "is empty"), ("none", "cannot be read")):
        out = tmp_path / "m.csv"
        said = scanprior("index", hospital, "--out", out, "--set", f"data.salt_file={tmp_path / name}")
        assert said.code == 2 and what in said.err and not out.exists()
