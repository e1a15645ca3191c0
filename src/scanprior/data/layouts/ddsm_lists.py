"""DDSM as converted images with lists of names: normal mammograms against those with a lesion."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from scanprior.data.layouts import layout
from scanprior.data.layouts.published import file_names, finished, first_lines, only_present, prefix_of
from scanprior.data.manifest import Manifest
from scanprior.errors import DataError

FINDINGS = ("normal", "benign", "cancer")
"""What the names of the images begin with."""

_LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
_NAME = re.compile(r"(?:.*[/\\])?(?P<file>(?P<finding>normal|benign|cancer)[^/\\]*)", re.IGNORECASE)
_CASE = re.compile(
    r"(?<![A-Za-z])(?P<volume>[A-D])_(?P<case>\d{4})_\d+[._-](?P<side>LEFT|RIGHT)_(?P<view>CC|MLO)"
)


def _home(root: Path) -> Path | None:
    """Return the folder with ``ddsm_raw`` and a list of it: the given one or ``DDSM`` within."""
    for home in (root, root / "DDSM"):
        lines = first_lines(home / "ddsm_raw_image_lists" / _LISTS["train"], 1)
        if lines and _NAME.fullmatch(lines[0].strip()) and (home / "ddsm_raw").is_dir():
            return home
    return None


@layout("ddsm-normal-lesion", detect=lambda root: _home(root) is not None)
def ddsm_normal_lesion(root: Path) -> Manifest:
    """Mammograms of DDSM by three lists: normal, or with a lesion, be it benign or cancer.

    Heath M. et al., "The Digital Database for Screening Mammography", IWDM 2000; the lists are those of
    transfer-learning studies (arXiv:2505.19779), which call benign and cancer together "Cancer". That
    is the task as they had it, named for what it is: not benign against malignant, for which there is
    CBIS-DDSM. ``finding`` keeps the three apart; ``data.label_columns=[finding]`` learns them.

    Read: ``ddsm_raw_image_lists/train.txt``, ``val.txt`` and ``test.txt``, a name in each line, and the
    images in ``ddsm_raw``, whose names begin with normal, benign or cancer. Patient, side and view are
    taken from names that hold DDSM's own (``A_1141_1.LEFT_CC``), else they are missing. Not verified on
    the files themselves: the form of the names.
    """
    home = _home(root)
    if home is None:
        raise DataError(
            f"{root}: not DDSM with lists; it has ddsm_raw and ddsm_raw_image_lists/train.txt with names that begin "
            f"with {', '.join(FINDINGS)}"
        )
    lists = {split: home / "ddsm_raw_image_lists" / name for split, name in _LISTS.items()}
    parts, notes = [], []
    for split, path in lists.items():
        if not path.is_file():
            notes.append(f"no {path.name}")
            continue
        part, said = only_present(_listed(path, home / "ddsm_raw", root).assign(split=split), root, path)
        parts.append(part)
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    _refuse_shared(frame, lists)
    across = int(frame.groupby("patient")["split"].nunique().gt(1).sum())
    notes = [f"{across:,} of the patients in more than one split", *notes] if across else notes
    if frame["patient"].isna().all():
        notes.append("no patient identifiers are published in these names")
    notes.insert(0, "a lesion is benign or cancer (column finding)")
    return finished(frame, root, ["label"], "ddsm-normal-lesion", "DDSM", notes)


def _listed(path: Path, folder: Path, root: Path) -> pd.DataFrame:
    """Return the rows of a list.

    Raises:
        DataError: it cannot be read or is empty, or a line is of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list ({error}); copy it again") from error
    names = pd.Series([line.strip() for line in lines], index=range(1, len(lines) + 1), dtype="str")
    names = names[names != ""]
    if not len(names):
        raise DataError(f"{path}: the list is empty; it names an image in each line")
    parts = names.str.extract(_NAME)
    odd = names.index[parts["file"].isna()]
    if len(odd):
        raise DataError(
            f"{path}: line {odd[0]} is '{names[odd[0]]}', not a name that begins with {', '.join(FINDINGS)}"
        )
    there = file_names(folder)
    stems = {Path(name).stem: name for name in sorted(there)} | {name: name for name in there}
    finding = parts["finding"].str.lower()
    own = parts["file"].str.extract(_CASE)
    return pd.DataFrame(
        {
            "image": prefix_of(folder, root) + parts["file"].map(stems).astype("str"),
            "patient": (own["volume"] + "_" + own["case"]).astype("str"),
            "label": finding.where(finding == "normal", "lesion"),
            "finding": finding,
            "laterality": own["side"].str[0],
            "view": own["view"],
        }
    )


def _refuse_shared(frame: pd.DataFrame, lists: dict[str, Path]) -> None:
    """Refuse an image that two lists name.

    Raises:
        DataError: there is one.
    """
    splits = frame.groupby("image")["split"].unique()
    shared = splits[splits.map(len) > 1]
    if len(shared):
        first, second = (lists[split].name for split in shared.iloc[0][:2])
        raise DataError(
            f"{lists['train'].parent}: '{shared.index[0]}' is in {first} and in {second}; take it out of one"
        )
