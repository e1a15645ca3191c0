"""Manifests of MedMNIST-form archives: ``train_images``, ``train_labels``, and the same for val and test."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from scanprior.data.manifest import Manifest, describe
from scanprior.data.readers.array import npz_members, open_array
from scanprior.data.tables import SPLITS, suggestion
from scanprior.errors import DataError

_SIZES = (28, 64, 128, 224)

# Published label names of the two-dimensional sets (medmnist.com), in the order of their numbers.
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
    "lung-right", "pancreas", "spleen",
)  # fmt: skip
LABEL_NAMES: dict[str, tuple[str, ...]] = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}  # fmt: skip


def from_npz(path: Path, label_names: tuple[str, ...] | None = None) -> Manifest:
    """Make the manifest of an ``.npz`` in MedMNIST form; no image is loaded.

    Labels of shape (n,) or (n, 1) are class numbers, named where the set is known by its file name;
    (n, findings) are findings.

    Raises:
        DataError: not that form, or images that are not two-dimensional.
    """
    members = npz_members(path)
    splits = [split for split in SPLITS if f"{split}_images" in members]
    if not splits:
        raise DataError(
            f"{path}: holds the arrays {', '.join(members) or 'none'}; the MedMNIST form has "
            "train_images, train_labels and so on"
        )
    names = label_names or LABEL_NAMES.get(re.sub(r"(_\d+)?$", "", path.stem).lower())
    tables: list[pd.DataFrame] = []
    for split in splits:
        shape = members[f"{split}_images"].shape
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[-1] not in (1, 3)):
            raise DataError(
                f"{path}: {split}_images has the shape {shape}; images are (n, H, W) or (n, H, W, 3)"
            )
        images = [f"{path.name}[{split}_images][{number}]" for number in range(shape[0])]
        table = pd.DataFrame({"image": images, "split": split})
        if f"{split}_labels" in members:
            table = pd.concat([table, _labels(path, split, shape[0], names)], axis=1)
        tables.append(table)
    frame = pd.concat(tables, ignore_index=True)
    columns = [name for name in frame.columns if name not in ("image", "split")]
    name = path.stem
    made = Manifest(frame, path.parent, columns, name, "npz")
    return Manifest(
        frame, path.parent, columns, name, "npz", f"MedMNIST arrays in {path.name}: {describe(made)}"
    )


def _labels(path: Path, split: str, count: int, names: tuple[str, ...] | None) -> pd.DataFrame:
    values = np.asarray(open_array(path, f"{split}_labels"))
    values = values.reshape(len(values), -1)
    if len(values) != count:
        raise DataError(f"{path}: {split}_images has {count} images and {split}_labels {len(values)} labels")
    if values.shape[1] == 1:
        numbers = values[:, 0].astype(np.int64)
        if names is None or numbers.min(initial=0) < 0 or numbers.max(initial=0) >= len(names):
            return pd.DataFrame({"label": numbers.astype(str)}, dtype="str")
        return pd.DataFrame({"label": np.array(names)[numbers]}, dtype="str")
    known = names if names is not None and len(names) == values.shape[1] else None
    return pd.DataFrame(
        values.astype(np.float64), columns=list(known or (f"finding_{i}" for i in range(values.shape[1])))
    )


def from_medmnist(request: str) -> Manifest:
    """Make the manifest of ``medmnist:NAME`` or ``medmnist:NAME_SIZE``, downloading it if it is not there yet.

    Raises:
        DataError: the package is missing, the name unknown, or the download fails.
    """
    wanted = request.removeprefix("medmnist:").strip().lower()
    package = _package(request)
    info = package.INFO
    match = re.fullmatch(r"(?P<name>.+?)(?:_(?P<size>\d+))?", wanted)
    name = match["name"] if match else wanted
    size = int(match["size"]) if match and match["size"] else 28
    if name not in info or name.endswith("3d"):
        known = [key for key in info if not key.endswith("3d")]
        raise DataError(f"{request}: MedMNIST has no two-dimensional set '{name}'{suggestion(name, known)}")
    if size not in _SIZES:
        raise DataError(f"{request}: MedMNIST comes in the sizes {', '.join(map(str, _SIZES))}, not {size}")
    try:
        loaded = getattr(package, info[name]["python_class"])(split="train", download=True, size=size)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{request}: cannot be downloaded ({error}); get the .npz and give its path"
        ) from error
    path = Path(loaded.root) / f"{name}{'' if size == 28 else f'_{size}'}.npz"
    numbered = info[name]["label"]
    return from_npz(path, tuple(str(numbered[key]) for key in sorted(numbered, key=int)))


def _package(request: str) -> ModuleType:
    try:
        return importlib.import_module("medmnist")
    except ImportError as error:
        raise DataError(
            f"{request}: needs the package medmnist; install it with: pip install 'scanprior[medmnist]'"
        ) from error
