"""Every kind of source is recognised, and says what it was taken for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from scanprior.data.index import index
from scanprior.data.layouts import LAYOUTS, layout
from scanprior.data.manifest import Manifest
from scanprior.data.readers import read_reference
from scanprior.errors import DataError


def pictures(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)


def dicom(
    path: Path,
    *,
    patient: str = "MRN-1",
    study: str = "1.2.3",
    frames: int = 1,
    image: bool = True,
    **tags: str,
) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = patient, study, study + ".1"
    data.Modality = "DX"
    for name, value in tags.items():
        setattr(data, name, value)
    if image:
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        if frames > 1:
            data.NumberOfFrames = frames
        data.PixelData = bytes(range(64)) * frames
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    pictures(tmp_path, "tb/a.png", "tb/deep/b.png", "normal/c.png", ".hidden/d.png", "__MACOSX/e.png")
    (tmp_path / "README.txt").write_text("x")
    made = index(tmp_path)
    assert made.layout == "class-folders" and made.task == "multiclass" and made.classes == ["normal", "tb"]
    assert made.frame["image"].tolist() == ["normal/c.png", "tb/a.png", "tb/deep/b.png"]
    assert (
        "3 images in a folder for each class: normal 1, tb 2" in made.found
        and "1 other file left aside" in made.found
    )
    assert index(tmp_path, layout="flat").label_columns == []
    assert index(tmp_path, label_columns=[]).label_columns == []


def test_split_folders_with_classes_beneath(tmp_path: Path) -> None:
    names = [
        f"data/{split}/{label}/{n}.png"
        for split in ("Train", "valid", "test")
        for label in "ab"
        for n in range(2)
    ]
    pictures(tmp_path, *names)
    made = index(tmp_path)
    assert made.classes == ["a", "b"]
    assert made.frame.groupby(["split", "label"]).size().to_dict() == {
        (split, label): 2 for split in ("train", "val", "test") for label in "ab"
    }
    pictures(tmp_path / "bare", "train/x.png", "test/y.png")
    bare = index(tmp_path / "bare")
    assert bare.task is None and bare.frame["split"].tolist() == ["test", "train"]


def test_masks_are_not_images(tmp_path: Path) -> None:
    pictures(
        tmp_path,
        "benign/benign (1).png",
        "benign/benign (1)_mask.png",
        "benign/benign (1)_mask_1.png",
        "normal/n.png",
    )
    made = index(tmp_path)
    assert made.frame["image"].tolist() == ["benign/benign (1).png", "normal/n.png"]
    assert made.frame["mask"][0] == "benign/benign (1)_mask.png" and pd.isna(made.frame["mask"][1])
    pictures(tmp_path / "two", "images/a.png", "images/b.png", "masks/a.png")
    two = index(tmp_path / "two")
    assert two.layout == "flat" and two.frame["image"].tolist() == ["images/a.png", "images/b.png"]
    assert two.frame["mask"].dropna().tolist() == ["masks/a.png"]


def test_many_small_folders_are_patients(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"case{n:02d}/{view}.png" for n in range(25) for view in ("pa", "lateral")))
    made = index(tmp_path)
    assert made.layout == "patient-folders" and made.frame["patient"].nunique() == 25 and made.task is None
    assert index(tmp_path, layout="class-folders").task == "multiclass"


def test_a_folder_with_its_table(tmp_path: Path) -> None:
    pictures(tmp_path, "tb/a.png", "normal/b.png")
    (tmp_path / "labels.csv").write_text("image,label\ntb/a.png,x\n")
    assert index(tmp_path).found.startswith("labels.csv: 1 image")
    assert index(tmp_path, layout="class-folders").classes == ["normal", "tb"]
    (tmp_path / "labels.csv").rename(tmp_path / "notes.csv")
    assert len(index(tmp_path)) == 1, "the only table that names images"
    (tmp_path / "notes.csv").write_text("reader,remark\nme,fine\n")
    assert index(tmp_path).layout == "class-folders", "a table about something else does not matter"
    index(tmp_path).save(tmp_path / "manifest.parquet")
    assert index(tmp_path).layout == "class-folders" and len(index(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_dicom_tree_keeps_pseudonyms_only(tmp_path: Path) -> None:
    secret = {"PatientName": "Doe^Jane", "InstitutionName": "Saint Elsewhere", "AccessionNumber": "ACC77",
              "BodyPartExamined": "Doe^Jane CHEST", "PatientBirthDate": "19700101"}  # fmt: skip
    dicom(tmp_path / "x" / "1.dcm", PatientAge="046Y", PatientSex="F", ViewPosition="PA", **secret)
    dicom(tmp_path / "x" / "2", study="1.2.4", **secret)
    dicom(tmp_path / "y" / "3.dcm", patient="MRN-2", frames=3)
    dicom(tmp_path / "y" / "4.dcm", patient="", study="1.2.9")
    dicom(tmp_path / "y" / "report.dcm", patient="MRN-2", image=False)
    (tmp_path / "y" / "broken.dcm").write_bytes(b"not DICOM")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    made = index(tmp_path, salt="pepper")
    assert made.frame["image"].tolist() == [
        "x/1.dcm", "x/2", "y/3.dcm#0", "y/3.dcm#1", "y/3.dcm#2", "y/4.dcm", "y/broken.dcm",
    ]  # fmt: skip
    frame = made.frame
    assert (
        frame["patient"][0] == frame["patient"][1] != frame["patient"][2] and frame["patient"].nunique() == 3
    )
    assert frame["study"][0] != frame["study"][1] and frame["age"][0] == 46 and frame["view"][0] == "PA"
    assert "1 DICOM file without an image left aside" in made.found
    assert index(tmp_path, salt="salt").frame["patient"][0] != frame["patient"][0]
    made.save(tmp_path / "manifest.parquet")
    made.save(tmp_path / "manifest.csv")
    for written in ("manifest.parquet", "manifest.csv"):
        raw = (tmp_path / written).read_bytes() + pd.read_csv(tmp_path / "manifest.csv").to_csv().encode()
        for word in (b"MRN", b"Doe", b"Jane", b"Elsewhere", b"ACC77", b"1970", b"1.2.3", b"pepper"):
            assert word not in raw, word
    for reference in frame["image"][:-1]:
        assert read_reference(reference, tmp_path).pixels.shape == (8, 8, 1)


def test_dicom_in_class_folders_and_in_tables_have_patients(tmp_path: Path) -> None:
    for label in ("tb", "normal"):
        for number in range(4):
            dicom(tmp_path / label / f"{number}.dcm", patient=f"{label}{number // 2}")
    made = index(tmp_path)
    assert (
        made.layout == "class-folders"
        and made.classes == ["normal", "tb"]
        and made.frame["patient"].nunique() == 4
    )
    (tmp_path / "labels.csv").write_text("image,label\ntb/0.dcm,x\ntb/1.dcm,x\ntb/2.dcm,y\n")
    table = index(tmp_path)
    assert table.frame["patient"].nunique() == 2 and "from DICOM headers" in table.found
    patients = tmp_path / "patients"
    for number in range(4):
        dicom(patients / f"p{number // 2}" / f"{number}.dcm", patient=f"p{number // 2}")
    assert index(patients).layout == "dicom", "a folder a patient is not a folder a class"


def npz(path: Path, columns: int = 1) -> Path:
    arrays = {}
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = np.arange(count * 64, dtype=np.uint8).reshape(count, 8, 8)
        arrays[f"{split}_labels"] = (np.arange(count * columns, dtype=np.uint8) % 2).reshape(count, columns)
    np.savez(path, **arrays)
    return path


def test_medmnist_arrays(tmp_path: Path) -> None:
    made = index(npz(tmp_path / "pneumoniamnist_64.npz"))
    assert made.frame["split"].value_counts().to_dict() == {"train": 4, "test": 3, "val": 2}
    assert made.frame["label"].tolist()[:3] == ["normal", "pneumonia", "normal"]
    third = made.frame["image"][2]
    assert third == "pneumoniamnist_64.npz[train_images][2]"
    np.testing.assert_array_equal(read_reference(third, made.root).pixels.ravel(), np.arange(128, 192))
    assert index(npz(tmp_path / "other.npz")).classes == ["0", "1"]
    many = index(npz(tmp_path / "many.npz", columns=3))
    assert many.task == "multilabel" and many.frame["finding_1"].tolist()[:2] == [1.0, 0.0]
    np.savez(tmp_path / "wrong.npz", pixels=np.zeros(3))
    with pytest.raises(DataError, match="holds the arrays pixels; the MedMNIST form"):
        index(tmp_path / "wrong.npz")


def test_medmnist_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match=r"needs the package medmnist.*pip install"):
        index("medmnist:pneumoniamnist")

    def download(split: str, download: bool, size: int) -> SimpleNamespace:
        assert (split, download) == ("train", True)
        npz(tmp_path / ("pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"))
        return SimpleNamespace(root=str(tmp_path))

    info = {"pneumoniamnist": {"python_class": "PneumoniaMNIST", "label": {"0": "normal", "1": "pneumonia"}}}
    monkeypatch.setitem(sys.modules, "medmnist", SimpleNamespace(INFO=info, PneumoniaMNIST=download))
    assert index("medmnist:pneumoniamnist").classes == ["normal", "pneumonia"]
    assert index("medmnist:pneumoniamnist_64").name == "pneumoniamnist_64"
    with pytest.raises(DataError, match="28, 64, 128, 224, not 96"):
        index("medmnist:pneumoniamnist_96")
    with pytest.raises(DataError, match="did you mean 'pneumoniamnist'"):
        index("medmnist:pneumonimnist")


def test_kermany_names_carry_patients(tmp_path: Path) -> None:
    home = tmp_path / "chest_xray"
    pictures(
        home,
        "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/NORMAL2-IM-0381-0001-0002.jpeg",
        "train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_virus_12.jpeg",
        "val/PNEUMONIA/person2_bacteria_3.jpeg",
        "test/NORMAL/IM-0115-0003.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg", "test/PNEUMONIA/odd.jpeg",
    )  # fmt: skip
    made = index(tmp_path)
    assert made.layout == "kermany" and made.classes == ["normal", "pneumonia"] and made.root == tmp_path
    rows = made.frame.set_index(made.frame["image"].str.removeprefix("chest_xray/"))
    assert rows["patient"]["train/NORMAL/NORMAL2-IM-0381-0001-0002.jpeg"] == "train:NORMAL2-IM-0381"
    assert rows["patient"]["train/PNEUMONIA/person1_virus_12.jpeg"] == "train:person1"
    assert rows["patient"]["test/PNEUMONIA/person1_virus_6.jpeg"] == "test:person1"
    assert (
        rows["split"]["val/PNEUMONIA/person2_bacteria_3.jpeg"] == "train"
        and "val folder counts as train" in made.found
    )
    assert rows["subtype"]["train/PNEUMONIA/person1_bacteria_1.jpeg"] == "bacteria"
    assert pd.isna(rows["patient"]["test/PNEUMONIA/odd.jpeg"])
    assert index(home, layout="kermany", label_columns=["subtype"]).classes == ["bacteria", "virus"]


def test_a_new_layout_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanprior.data.layouts.LAYOUTS", LAYOUTS.copy())
    monkeypatch.setattr("scanprior.data.index.LAYOUTS", sys.modules["scanprior.data.layouts"].LAYOUTS)

    @layout("left-right", detect=lambda root: (root / "LEFT_RIGHT").exists())
    def left_right(root: Path) -> Manifest:
        return Manifest(
            pd.DataFrame({"image": ["a.png"], "label": ["left"]}),
            root,
            ["label"],
            "lr",
            "left-right",
            "found",
        )

    pictures(tmp_path, "a.png")
    assert index(tmp_path).layout == "flat"
    (tmp_path / "LEFT_RIGHT").touch()
    assert index(tmp_path).layout == "left-right"


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    for source, message in (
        ("empty", r"no images in this folder"), ("emty", r"no such file or folder; did you mean 'empty'"),
        ("a.txt", r"not an image, table .* or \.npz"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            index(tmp_path / source)
    with pytest.raises(DataError, match=r"layout 'kermani' .*did you mean 'kermany'"):
        index(tmp_path, layout="kermani")
    with pytest.raises(DataError, match="not the Kermany layout"):
        index(tmp_path, layout="kermany")


def test_one_file_and_broken_ones(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    assert index(tmp_path / "a.png").frame["image"].tolist() == ["a.png"]
    (tmp_path / "text.png").write_text("no picture")
    assert len(index(tmp_path)) == 2, "a broken image stays in the table, for the check to name"
