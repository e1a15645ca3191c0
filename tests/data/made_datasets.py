"""Small folders in the published shape of the public datasets, each with its traps planted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from data.made_files import pictures, text
from data.made_mammograms import cbis_ddsm, ddsm_lists
from scanprior.data.layouts.chexpert import OBSERVATIONS as CHEXPERT
from scanprior.data.layouts.kvasir import CLASSES as KVASIR
from scanprior.data.layouts.mimic import OBSERVATIONS as MIMIC
from scanprior.data.manifest import Manifest


def rows(manifest: Manifest) -> pd.DataFrame:
    """Return the table by the name of the picture without its folder and suffix."""
    return manifest.frame.set_index(manifest.frame["image"].map(lambda image: Path(image).stem))


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def kermany(root: Path) -> Path:
    pictures(
        root,
        "chest_xray/train/NORMAL/IM-0115-0001.jpeg", "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg",
        "chest_xray/test/NORMAL/IM-0115-0003.jpeg", "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg",
    )  # fmt: skip
    return root


def nih(root: Path) -> Path:
    """Four of five pictures, in two archives; an age of 411; a picture without a row."""
    pictures(
        root,
        "images_001/images/00000001_000.png", "images_001/images/00000001_001.png",
        "images_002/images/00000002_000.png", "images_002/images/00000003_000.png",
        "images_002/images/00009999_000.png",
    )  # fmt: skip
    text(
        root / "Data_Entry_2017.csv",
        NIH_HEADER,
        "00000001_000.png,Cardiomegaly|Emphysema,000,00000001,058Y,M,PA,2682,2749,0.143,0.143,",
        "00000001_001.png,No Finding,001,1,059Y,M,PA,2894,2729,0.143,0.143,",
        "00000002_000.png,Pleural_Thickening,000,00000002,411Y,F,AP,2500,2048,0.171,0.171,",
        "00000003_000.png,No Finding,000,00000003,006M,F,AP,2500,2048,0.171,0.171,",
        "00000004_000.png,Hernia,000,00000004,074Y,F,PA,2500,2048,0.168,0.168,",
    )
    text(root / "train_val_list.txt", "00000001_000.png", "00000001_001.png", "00000004_000.png")
    text(root / "test_list.txt", "00000002_000.png", "00000003_000.png")
    text(
        root / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h]",
        "00000001_000.png,Mass,1,2,3,4",
    )
    return root


def chexpert(root: Path, name: str = "CheXpert-v1.0-small") -> Path:
    """The parent of the published folder; uncertain, blank and absent labels; one missing picture; a lateral."""
    home = root / name
    first = "train/patient00001/study1/view1_frontal.jpg"
    lateral = "train/patient00002/study2/view2_lateral.jpg"
    pictures(home, first, lateral, "valid/patient64541/study1/view1_frontal.jpg")
    pictures(home, "test/patient64741/study1/view1_frontal.jpg")
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT])
    text(
        home / "train.csv",
        header,
        f"{name}/{first},Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        f"{name}/{lateral},Male,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
        f"{name}/train/patient00003/study1/view1_frontal.jpg,Unknown,0,Frontal,PA,,,,,,,,,,,,,,",
    )
    text(
        home / "valid.csv",
        header,
        f"{name}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,"
        + ",".join(["0.0"] * 13 + ["1.0"]),
    )
    shuffled = CHEXPERT[::-1]  # found by name, whatever their order
    text(
        home / "test_labels.csv",
        ",".join(["Path", *shuffled]),
        "test/patient64741/study1/view1_frontal.jpg,"
        + ",".join(["1.0" if n == "Edema" else "0.0" for n in shuffled]),
    )
    return root


def mimic(root: Path) -> Path:
    """Packed and plain tables; a study without labels; a picture that is not there."""
    pictures(
        root,
        "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg", "files/p10/p10000032/s53189527/2a2277a9-b0ded155.jpg",
        "files/p19/p19999987/s55368167/58766883-376a15ce.jpg",
    )  # fmt: skip
    text(
        root / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split",
        "02aa804e-bde0afdd,50414267,10000032,train",
        "2a2277a9-b0ded155,53189527,10000032,train",
        "58766883-376a15ce,55368167,19999987,validate",
        "ffffffff-00000000,55368168,19999988,test",
    )
    packed = {
        "metadata": "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns\n"
        "02aa804e-bde0afdd,10000032,50414267,PA,3056,2544\n2a2277a9-b0ded155,10000032,53189527,LATERAL,3056,2544\n"
        "58766883-376a15ce,19999987,55368167,,3056,2544\nffffffff-00000000,19999988,55368168,AP,3056,2544\n",
        "chexpert": ",".join(["subject_id", "study_id", *MIMIC])
        + "\n10000032,50414267,,,,,,,,,1.0,,,,,\n19999987,55368167,1.0,-1.0"
        + ",0.0" * 6
        + ","
        + ",0.0" * 5
        + "\n",
    }
    for kind, content in packed.items():
        (root / f"mimic-cxr-2.0.0-{kind}.csv.gz").write_bytes(gzip.compress(content.encode()))
    return root


def covidx(root: Path) -> Path:
    """A number shared by two sources, a patient with a blank, a source of one class, a picture that is not there."""
    pictures(root, "train/a.png", "train/b.jpg", "train/c.png", "train/d.png", "test/e.png")
    text(
        root / "train.txt",
        "3 a.png positive cohen",
        "3 b.jpg negative sirm",
        "COVID 12 c.png positive sirm",
        "3 gone.png positive cohen",
        "5 d.png negative cohen",
    )
    text(root / "test.txt", "47c78742-4998 e.png negative rsna")
    return root


def rsna(root: Path) -> Path:
    """Two boxes of one image; a picture that is not there; two test images without labels."""
    pictures(root, *(f"stage_2_train_images/{name}.dcm" for name in ("aaaa", "bbbb", "cccc")))
    pictures(root, "stage_2_test_images/eeee.dcm", "stage_2_test_images/ffff.dcm")
    text(
        root / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        "aaaa,264.0,152.0,213.0,379.0,1",
        "aaaa,562.0,152.0,256.0,453.0,1",
        "bbbb,,,,,0",
        "cccc,,,,,0",
        "dddd,,,,,0",
    )
    text(
        root / "stage_2_detailed_class_info.csv",
        "patientId,class",
        "aaaa,Lung Opacity",
        "aaaa,Lung Opacity",
        "bbbb,No Lung Opacity / Not Normal",
        "cccc,Normal",
        "dddd,Normal",
    )
    text(root / "stage_2_sample_submission.csv", "patientId,PredictionString", "eeee,0.5 0 0 100 100")
    return root


def rsna_mapping(root: Path) -> None:
    entries = [
        {"subset_img_id": name, "img_id": f"{number:08d}_000.png"}
        for name, number in (("aaaa", 7), ("bbbb", 7))
    ]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(entries))


def shenzhen(root: Path) -> Path:
    """Ages in years, months and days, a misspelt sex, an image without a mask and one without a reading."""
    names = ("CHNCXR_0001_0", "CHNCXR_0044_0", "CHNCXR_0115_0", "CHNCXR_0327_1", "CHNCXR_0330_1")
    pictures(root, *(f"CXR_png/{name}.png" for name in names))
    pictures(root, *(f"mask/{name}_mask.png" for name in names[:3]))
    readings = (
        "male 45yrs\nnormal",
        "femal 32yrs\n\nnormal",
        "male  16month\nnormal",
        "Female, 64days\nSTB\nPTB in l. lung",
    )
    for name, reading in zip(names, readings, strict=False):
        text(root / "ClinicalReadings" / f"{name}.txt", reading)
    (root / "NLM-ChinaCXRSet-ReadMe.docx").touch()
    return root


def montgomery(root: Path) -> Path:
    """Two masks an image, of one image the left alone."""
    home, names = root / "MontgomerySet", ("MCUCXR_0001_0", "MCUCXR_0104_1", "MCUCXR_0108_1")
    pictures(home, *(f"CXR_png/{name}.png" for name in names))
    pictures(home, *(f"ManualMask/leftMask/{name}.png" for name in names))
    pictures(home, *(f"ManualMask/rightMask/{name}.png" for name in names[:2]))
    text(home / "ClinicalReadings" / "MCUCXR_0001_0.txt", "Patient's Sex: F", "Patient's Age: 027Y", "normal")
    text(
        home / "ClinicalReadings" / "MCUCXR_0104_1.txt",
        "Patient's Sex: M",
        "Patient's Age: 040Y",
        "cavitary nodular infiltrate in RUL;",
        "active TB",
    )
    return root


def jsrt(root: Path) -> Path:
    """Raw files and one converted beside them; records without line breaks; outlines in two folds."""
    pictures(root, *(f"All247images/{name}.IMG" for name in ("JPCLN001", "JPCLN002", "JPCNN001")))
    pictures(root, "images/JPCLN001.png", "images/JPCNN002.png")
    text(
        root / "Clinical_Information" / "CLNDAT_EN.txt",
        "JPCLN001.IMG\t5\t15\t53\tmale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer\rJPCLN002.IMG\t3\t30\t?\t"
        "female\t1614\t1090\tbenign\tl.upper lobe(S5)\tpulmonary hematomaJPCLN003.IMG\todd",
    )
    text(root / "Clinical_Information" / "CNNDAT_EN.TXT", "JPCNN001.IMG   62   male   non-nodule")
    for fold, names in (("1", ("JPCLN001", "JPCNN001")), ("2", ("JPCLN002",))):
        for part in ("left lung", "right lung", "heart", "left clavicle", "right clavicle"):
            pictures(root, *(f"scratch/fold{fold}/masks/{part}/{name}.gif" for name in names))
    (root / "scratch/fold2/masks/right lung/JPCLN002.gif").unlink()
    return root


def busi(root: Path) -> Path:
    """Two lesions of one image, an image without a mask, a mask without its image, a name of another class."""
    home = root / "Dataset_BUSI_with_GT"
    pictures(
        home,
        "benign/benign (1).png", "benign/benign (1)_mask.png", "benign/benign (100).png",
        "benign/benign (100)_mask.png", "benign/benign (100)_mask_1.png", "benign/benign (7)_mask.png",
        "malignant/malignant (1).png", "malignant/malignant (1)_mask.png", "malignant/benign (9).png",
        "normal/normal (1).png", "normal/normal (1)_mask.png",
    )  # fmt: skip
    return root


ISIC_HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def isic2018(root: Path) -> Path:
    """Two pictures of a lesion, one without its file, one without a row; validation and test without lesions."""
    train = root / "ISIC2018_Task3_Training_Input"
    pictures(train, *(f"ISIC_002430{number}.jpg" for number in (6, 7, 8)), "ISIC_0099999.jpg")
    pictures(root, "ISIC2018_Task3_Validation_Input/ISIC_0034321.jpg")
    pictures(root, "ISIC2018_Task3_Test_Input/ISIC_0034524.jpg")
    name = "ISIC2018_Task3_{0}_GroundTruth/ISIC2018_Task3_{0}_GroundTruth.csv"
    text(
        root / name.format("Training"),
        ISIC_HEADER,
        "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0024307,0.0,1.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0024308,1.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0024309,0.0,0.0,0.0,0.0,0.0,0.0,1.0",
    )
    text(root / name.format("Validation"), ISIC_HEADER, "ISIC_0034321,0,0,1,0,0,0,0")
    text(root / name.format("Test"), ISIC_HEADER, "ISIC_0034524,0,0,0,1,0,0,0")
    text(
        root / "ISIC2018_Task3_Training_LesionGroupings.csv",
        "image,lesion_id,diagnosis_confirm_type",
        "ISIC_0024306,HAM_0000550,serial imaging showing no change",
        "ISIC_0024307,HAM_0000550,serial imaging showing no change",
        "ISIC_0024308,HAM_0003577,histopathology",
        "ISIC_0024309,HAM_0001477,histopathology",
    )
    return root


def isic2018_task1(root: Path) -> Path:
    """An image without an outline, and a picture of its superpixels, which is none."""
    pictures(
        root,
        "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg", "ISIC2018_Task1-2_Training_Input/ISIC_0000001.jpg",
        "ISIC2018_Task1-2_Training_Input/ISIC_0000001_superpixels.png",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png",
    )  # fmt: skip
    text(root / "ISIC2018_Task1-2_Training_Input" / "ATTRIBUTION.txt", "see the challenge")
    return root


def ham10000(root: Path) -> Path:
    """An archive twice in other case, an unknown sex, no age, a picture that is not there, one without a row."""
    pictures(root, *(f"HAM10000_images_part_1/ISIC_002741{number}.jpg" for number in (8, 9)))
    pictures(root, *(f"ham10000_images_part_1/ISIC_002741{number}.jpg" for number in (8, 9)))
    pictures(root, "HAM10000_images_part_2/ISIC_0031633.jpg", "HAM10000_images_part_2/ISIC_0099999.jpg")
    pictures(root, "HAM10000_segmentations_lesion_tschandl/ISIC_0027419_segmentation.png")
    text(
        root / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp",
        "HAM_0000118,ISIC_0027418,bkl,histo,80.0,male,scalp",
        "HAM_0002761,ISIC_0031633,nv,follow_up,,unknown,unknown",
        "HAM_0002762,ISIC_0031634,mel,histo,75.0,female,ear",
    )
    return root


def kvasir(root: Path) -> Path:
    """Folders in other case and with blanks, features beside the images, an image of another suffix."""
    folders = [*KVASIR[:-2], "Polyps", "Ulcerative Colitis"]
    for number, folder in enumerate(folders):
        pictures(root / "kvasir-dataset-v2", f"{folder}/{number}a.jpg", f"{folder}/{number}b.JPG")
        text(root / "kvasir-dataset-v2" / folder / f"{number}a.features", "JCD,1,2")
    return root


def kvasir_seg(root: Path) -> Path:
    """JPEG masks, of one image none, and one without its image."""
    home = root / "Kvasir-SEG"
    pictures(home, "images/cju0a.jpg", "images/cju0b.jpg", "masks/cju0a.jpg", "masks/cju0c.jpg")
    text(home / "kavsir_bboxes.json", "{}")
    return root


def covid_radiography(root: Path) -> Path:
    """Images and masks of the same names, of one image no mask, tables that are not read."""
    home = root / "COVID-19_Radiography_Dataset"
    for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        pictures(home, *(f"{label}/{kind}/{label}-1.png" for kind in ("images", "masks")))
        (home / f"{label}.metadata.xlsx").write_bytes(b"PK")
    pictures(home, "COVID/images/COVID-2.png", "Normal/masks/Normal-9.png")
    text(home / "README.md.txt", "COVID-19 CHEST X-RAY DATABASE")
    return root


ISIC2019_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def isic2019(root: Path) -> Path:
    """The doubled folder; a smaller copy named in the table, and one on disk alone; a picture without a lesion."""
    inner = "ISIC_2019_Training_Input/ISIC_2019_Training_Input"
    names = (
        "ISIC_0000030_downsampled",
        "ISIC_0024306",
        "ISIC_0053453",
        "ISIC_0053454",
        "ISIC_0000013_downsampled",
    )
    pictures(root / inner, *(f"{name}.jpg" for name in names), "ISIC_0099999.jpg")
    text(root / inner / "ATTRIBUTION.txt", "see the challenge")
    text(
        root / "ISIC_2019_Training_GroundTruth.csv",
        ISIC2019_HEADER,
        "ISIC_0000030_downsampled,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0053453,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0",
        "ISIC_0053454,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0",
        "ISIC_0000013,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0053455,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0",
    )
    text(
        root / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        "ISIC_0000030_downsampled,55.0,anterior torso,,female",
        "ISIC_0024306,45.0,,HAM_0000550,male",
        "ISIC_0053453,80.0,head/neck,BCN_0003690,male",
        "ISIC_0053454,80.0,head/neck,BCN_0003690,male",
        "ISIC_0000013,,,MSK4_0011169,",
        "ISIC_0053455,70.0,upper extremity,BCN_0003691,female",
    )
    return root


def aptos(root: Path) -> Path:
    """The competition's form: every grade, a picture that is not there, unlabelled test images."""
    names = [f"{grade}{letter}c1434d8d7" for grade in range(5) for letter in "ab"]
    pictures(root / "train_images", *(f"{name}.png" for name in names))
    pictures(root / "test_images", "0005cfc8afb6.png", "003f0afdcd15.png")
    graded = [f"{name},{name[0]}" for name in reversed(names)]
    text(root / "train.csv", "id_code,diagnosis", *graded, "ffffffffffff,2")
    text(root / "test.csv", "id_code", "0005cfc8afb6", "003f0afdcd15")
    text(root / "sample_submission.csv", "id_code,diagnosis", "0005cfc8afb6,0", "003f0afdcd15,0")
    return root


def aptos_divided(root: Path) -> Path:
    """The copy that divides the graded images in three, each folder within one of its name."""
    for table, folder, names in (
        ("train_1", "train_images", ("0a", "1a", "4a")), ("valid", "val_images", ("2b",)),
        ("test", "test_images", ("3c", "0c")),
    ):  # fmt: skip
        pictures(root / folder / folder, *(f"{name}.png" for name in names))
        text(root / f"{table}.csv", "id_code,diagnosis", *(f"{name},{name[0]}" for name in names))
    return root


MADE: dict[str, Callable[[Path], Path]] = {
    "kermany": kermany,
    "nih-chestxray14": nih,
    "chexpert": chexpert,
    "mimic-cxr-jpg": mimic,
    "covidx-cxr3": covidx,
    "rsna-pneumonia": rsna,
    "shenzhen": shenzhen,
    "montgomery": montgomery,
    "jsrt": jsrt,
    "busi": busi,
    "isic2018": isic2018,
    "isic2018-task1": isic2018_task1,
    "ham10000": ham10000,
    "kvasir": kvasir,
    "kvasir-seg": kvasir_seg,
    "covid-radiography": covid_radiography,
    "isic2019": isic2019,
    "aptos2019": aptos,
    "cbis-ddsm": cbis_ddsm,
    "ddsm-normal-lesion": ddsm_lists,
}
