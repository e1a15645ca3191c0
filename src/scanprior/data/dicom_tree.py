"""What a manifest keeps of DICOM headers: pseudonyms and what describes the image, nothing else.

Patient, study and series identifiers become salted hashes, so rows can be grouped and not traced
back; the institution becomes a short label. Names, dates, accession numbers and every other tag
are never read into a table. Without a secret salt, somebody who guesses a patient number can
confirm the guess: give one before sharing a manifest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scanprior.data.readers import RAW_SUFFIXES, is_image_path, looks_like_dicom
from scanprior.data.readers.dicom import DicomHeader, read_header
from scanprior.errors import ImageReadError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

_CODE = re.compile(r"[A-Z0-9 _]{1,16}")  # PS3.5, value representation CS
_COLUMNS = (
    "image", "patient", "site", "study", "series", "modality", "view", "body_part", "laterality", "sex", "age",
)  # fmt: skip


def _code(value: str | None) -> str | None:
    """Return a DICOM code string as it is, and nothing for free text, which could name somebody."""
    return value if value and _CODE.fullmatch(value) else None


def pseudonym(value: str, salt: str, prefix: str, digits: int = 12) -> str:
    """Return ``prefix`` and the first hex digits of the salted BLAKE2b hash of ``value``."""
    secret = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    return prefix + hashlib.blake2b(value.strip().encode(), key=secret, digest_size=16).hexdigest()[:digits]


def is_dicom(path: Path) -> bool:
    """Return whether the file is DICOM by its suffix or, having none of an image, by its preamble."""
    suffix = path.suffix.lower()
    named = suffix not in RAW_SUFFIXES and is_image_path(path)  # a .img file may be DICOM as well
    return suffix in DICOM_SUFFIXES or (not named and looks_like_dicom(path))


def header_rows(root: Path, files: Sequence[str], salt: str) -> tuple[pd.DataFrame, int]:
    """Read the headers of DICOM ``files`` below ``root``.

    Returns:
        (table, skipped): one row a frame ("a.dcm", or "a.dcm#0" … of a multi-frame file); a file
        that cannot be read keeps a row with its name alone, so that the check names it; ``skipped``
        counts readable files without pixels, such as structured reports.
    """
    rows: list[dict[str, object]] = []
    skipped = 0
    for file in files:
        try:
            header = read_header(root / file)
        except ImageReadError:
            rows.append({"image": file})
            continue
        if not header.rows or not header.columns:
            skipped += 1
            continue
        known = _kept(header, salt)
        frames = header.frames or 1
        images = [file] if frames == 1 else [f"{file}#{number}" for number in range(frames)]
        rows.extend({"image": image, **known} for image in images)
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    return table.drop(columns=[name for name in _COLUMNS[1:] if table[name].isna().all()]), skipped


def _kept(header: DicomHeader, salt: str) -> dict[str, object]:
    """Return everything that is kept of one header. A study stands in for a patient without a number."""
    patient = pseudonym(header.patient_id, salt, "p-") if header.patient_id else None
    if patient is None and header.study_uid:
        patient = pseudonym(header.study_uid, salt, "p-study-")
    return {
        "patient": patient,
        "site": pseudonym(header.site, salt, "site-", 4) if header.site else None,
        "study": pseudonym(header.study_uid, salt, "") if header.study_uid else None,
        "series": pseudonym(header.series_uid, salt, "") if header.series_uid else None,
        "modality": _code(header.modality),
        "view": _code(header.view),
        "body_part": _code(header.body_part),
        "laterality": _code(header.laterality),
        "sex": header.sex,
        "age": header.age_years,
    }
