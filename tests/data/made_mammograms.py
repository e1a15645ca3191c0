"""Small folders in the published shape of CBIS-DDSM, and of DDSM with lists, with their traps planted."""

from __future__ import annotations

from pathlib import Path

from data.made_files import pictures, text

UID = "1.3.6.1.4.1.9590.100.1.2"
CBIS_HOME = "manifest-1600709154662/CBIS-DDSM"
CBIS_HEADERS = {
    "mass": "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,"
    "mass margins,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path",
    "calc": "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,calc type,"
    "calc distribution,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path",
}


def cbis_path(case: str) -> str:
    return f"{case}/{UID}.{sum(case.encode())}/{UID}.9{sum(case.encode())}/000000.dcm"


def cbis_row(case: str, number: int, assessment: int, pathology: str, subtlety: int) -> str:
    """A row as published: line breaks within the last cells, and within the path of every second abnormality."""
    kind, patient, side, view = case.split("-")[0].lower(), *case[case.index("P_") :].rsplit("_", 2)
    path = cbis_path(case)
    cells = [patient, "3", side, view, str(number), kind, "OVAL", "SPICULATED", str(assessment), pathology]
    of_lesion = [f'"{case}_{number}/{UID}.5/{UID}.6/00000{file}.dcm\n"' for file in (0, 1)]
    shown = f'"{path}\n"' if number == 2 else path
    return ",".join([*cells, str(subtlety), shown, *of_lesion])


def cbis_ddsm(root: Path) -> Path:
    """Renamed folders and files; two abnormalities of one image; a breast in two tables; a patient in two splits."""
    tables = {
        ("mass", "train"): [
            ("Mass-Training_P_00001_LEFT_CC", 1, 4, "BENIGN", 3),
            ("Mass-Training_P_00001_LEFT_CC", 2, 5, "MALIGNANT", 4),
            ("Mass-Training_P_00001_LEFT_MLO", 1, 2, "BENIGN_WITHOUT_CALLBACK", 5),
            ("Mass-Training_P_00002_RIGHT_CC", 1, 4, "BENIGN", 5),
            ("Mass-Training_P_00003_RIGHT_CC", 1, 4, "BENIGN", 5),
        ],
        ("mass", "test"): [("Mass-Test_P_00004_LEFT_CC", 1, 4, "BENIGN", 5)],
        ("calc", "train"): [("Calc-Training_P_00002_RIGHT_CC", 1, 4, "MALIGNANT", 2)],
        ("calc", "test"): [("Calc-Test_P_00001_RIGHT_MLO", 1, 3, "BENIGN", 1)],
    }
    for (kind, split), rows in tables.items():
        lines = [CBIS_HEADERS[kind], *(cbis_row(*row) for row in rows)]
        text(root / f"{kind}_case_description_{split}_set.csv", *lines)
    day = "07-20-2016-DDSM-NA-30288/1.000000-full mammogram images-24515"
    pictures(
        root / CBIS_HOME,
        f"Mass-Training_P_00001_LEFT_CC/{day}/1-1.dcm",
        f"Mass-Training_P_00001_LEFT_MLO/{UID}.1/{UID}.2/1-1.dcm",
        f"Mass-Training_P_00002_RIGHT_CC/{day}/1-1.dcm", f"Calc-Training_P_00002_RIGHT_CC/{day}/1-1.dcm",
        f"Mass-Test_P_00004_LEFT_CC/{day}/00000001.dcm", f"Calc-Test_P_00001_RIGHT_MLO/{day}/1-1.dcm",
        "Mass-Training_P_00001_LEFT_CC_1/07-21-2016-DDSM-NA-09264/1.000000-ROI mask images-77287/1-1.dcm",
        "Mass-Training_P_00001_LEFT_CC_1/07-21-2016-DDSM-NA-09264/1.000000-ROI mask images-77287/1-2.dcm",
    )  # fmt: skip
    return root


def ddsm_lists(root: Path) -> Path:
    """Names with DDSM's own in them; a patient in two lists; a name without its suffix; one that is not there."""
    home = root / "DDSM"
    lists = {
        "train": [
            "normal_A_1141_1.LEFT_CC.png",
            "benign_B_3504_1.RIGHT_MLO.png",
            "cancer_C_0001_1.LEFT_CC.png",
        ],
        "val": ["normal_A_1142_1.LEFT_CC.png"],
        "test": ["cancer_C_0001_1.LEFT_MLO", "normal_A_1143_1.RIGHT_CC.png", "benign_D_4000_1.LEFT_CC.png"],
    }
    for name, images in lists.items():
        text(home / "ddsm_raw_image_lists" / f"{name}.txt", *images, "")
        pictures(home / "ddsm_raw", *(f"{image.removesuffix('.png')}.png" for image in images))
    (home / "ddsm_raw" / "benign_D_4000_1.LEFT_CC.png").unlink()
    return root
