"""Read a user's table and bring it to the manifest's columns.

Names are recognised whatever their case and punctuation ("Patient ID" is ``patient``); values
are checked, and what cannot be meant is an error that names the row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

_MISSING = ["", "nan", "NaN", "NA", "N/A", "n/a", "null", "NULL", "<NA>"]

IMAGE_NAMES = (
    "image", "imagepath", "imagefile", "imagefilename", "imagename", "filepath", "filename", "file", "path",
    "dicompath", "dicom", "img", "imgpath", "imageindex", "imageid",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classname", "classlabel", "target", "diagnosis", "category",
    "findinglabels", "finding", "dx",
)  # fmt: skip
PATIENT_NAMES = (
    "patient",
    "patientid",
    "patientnumber",
    "subject",
    "subjectid",
    "personid",
    "caseid",
    "lesionid",
)
SPLIT_NAMES = ("split", "set", "subset", "partition", "fold")
SITE_NAMES = ("site", "hospital", "institution", "center", "centre")
MASK_NAMES = ("mask", "maskpath", "maskfile", "segmentation")

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val",
    "dev": "val", "development": "val", "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip

_FINDING_WORDS = {
    "1": 1.0, "0": 0.0, "-1": -1.0, "true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0,
    "positive": 1.0, "negative": 0.0, "uncertain": -1.0,
}  # fmt: skip
_NEVER_FINDINGS = {
    "age",
    "sex",
    "gender",
    "view",
    "index",
    "id",
    "frontal",
    "followup",
    "nmasks",
    "count",
    "weight",
    "labelorder",
}
_NO_FINDING = {"nofinding", "nofindings", "normal", "none"}


def key_of(name: object) -> str:
    """Return ``name`` in lower case with letters and digits only, by which columns are recognised."""
    return "".join(character for character in str(name).lower() if character.isalnum())


def suggestion(value: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of ``known``, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or TSV file with every column as text, or a Parquet file with its own types.

    Text keeps what numbers lose: the zeros of patient "00012", the class "1" beside "1.0".

    Raises:
        DataError: not a table, no rows, or column names that are not unique.
    """
    if path.suffix.lower() == ".parquet":
        try:
            table: pd.DataFrame = pq.read_table(path).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error
    else:
        table = _read_csv(path)
    table.columns = [str(name).strip() for name in table.columns]
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise DataError(f"{path}: the column '{twice[0]}' occurs twice; rename one of the two")
    if not len(table):
        raise DataError(f"{path}: the table is empty; it needs a header and one row for each image")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        if not header.strip():
            raise DataError(f"{path}: the table is empty; it needs a header and one row for each image")
        delimiter = max("\t,;", key=header.count) if path.suffix.lower() != ".tsv" else "\t"
        names = [name.strip().strip('"') for name in header.rstrip("\n").split(delimiter)]
        if len(set(names)) < len(names):  # pandas would rename the second silently
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: the column '{twice}' occurs twice; rename one of the two")
        return pd.read_csv(
            path, sep=delimiter, dtype=str, encoding="utf-8-sig", index_col=False,
            keep_default_na=False, na_values=_MISSING, skipinitialspace=True,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the table is not UTF-8 text; save it as UTF-8 CSV") from error
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: not a readable table ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_text(column: pd.Series) -> pd.Series:
    """Return the column as stripped text; whole numbers lose their ".0", missing stays missing."""
    if pd.api.types.is_bool_dtype(column):
        column = column.astype("Int8")
    if pd.api.types.is_float_dtype(column):
        whole = column.dropna()
        if (whole == whole.round()).all():
            column = column.astype("Int64")
    text = (
        column.astype(object)
        .where(column.notna(), None)
        .map(lambda value: str(value).strip(), na_action="ignore")
    )
    return text.where(text != "", None).astype("str")


def as_number(column: pd.Series) -> pd.Series:
    """Return a text column as numbers if every value is one and none has leading zeros, else as it is."""
    values = column.dropna()
    if not len(values) or values.str.match(r"^[+-]?0\d").any():
        return column
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        return column
    return pd.to_numeric(column)


def find_column(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the first column of ``table`` recognised as one of ``names`` (by preference), or None."""
    keys = {key_of(name): str(name) for name in reversed(table.columns.tolist())}
    return next((keys[name] for name in names if name in keys), None)


def given_column(table: pd.DataFrame, column: str, path: Path, meaning: str) -> str:
    """Return ``column`` if the table has it.

    Raises:
        DataError: it has not; the sentence lists the columns and the nearest of them.
    """
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        near = suggestion(column, names)
        listed = ", ".join(names[:30])
        raise DataError(f"{path}: there is no {meaning} column '{column}' among the columns {listed}{near}")
    return column


def image_column(table: pd.DataFrame, path: Path, given: str | None) -> str:
    """Return the name of the column that holds the images: the given one, a known name, or file names."""
    if given is not None:
        return given_column(table, given, path, "image")
    known = find_column(table, IMAGE_NAMES)
    if known is not None:
        return known
    for name in table.columns:
        values = table[name].dropna().head(50)
        if len(values) and all(is_image_path(value) for value in values):
            return str(name)
    listed = ", ".join(map(str, table.columns[:30]))
    near = suggestion("image", map(str, table.columns)) or suggestion("filename", map(str, table.columns))
    raise DataError(
        f"{path}: no image column among the columns {listed}; name it with --set data.image_column=NAME{near}"
    )


def split_values(column: pd.Series, path: Path, *, strict: bool) -> pd.Series | None:
    """Return the column in the words train, val and test (synonyms are understood, empty stays missing).

    Args:
        strict: whether an unknown word is an error; otherwise it makes the answer None (not a split column).
    """
    words = column.str.lower().map(SPLIT_WORDS, na_action="ignore")
    unknown = column[column.notna() & words.isna()]
    if not len(unknown):
        return words.astype("str")
    if not strict:
        return None
    value = str(unknown.iloc[0])
    near = suggestion(value, SPLIT_WORDS)
    raise DataError(
        f"{path}: row {_row(unknown.index[0])} has '{value}' in the column '{column.name}', which is not one of "
        f"train, val, test{near}"
    )


def finding_values(column: pd.Series, path: Path) -> pd.Series:
    """Return a finding's column as float64: 1 present, 0 absent, -1 uncertain, NaN missing.

    Raises:
        DataError: another value.
    """
    plain = column.str.lower().str.replace(r"\.0+$", "", regex=True)
    values = plain.map(_FINDING_WORDS, na_action="ignore")
    unknown = column[column.notna() & values.isna()]
    if len(unknown):
        raise DataError(
            f"{path}: row {_row(unknown.index[0])} has '{unknown.iloc[0]}' in the column '{column.name}'; a finding is "
            "1 (present), 0 (absent), -1 (uncertain) or empty"
        )
    return values.astype("float64")


def _row(index: object) -> int:
    """Return the line of the file, counting the header as line 1."""
    return int(str(index)) + 2


def _is_finding(column: pd.Series) -> bool:
    values = column.dropna().str.lower().str.replace(r"\.0+$", "", regex=True)
    return (
        len(values) > 0
        and key_of(column.name) not in _NEVER_FINDINGS
        and bool(values.isin(_FINDING_WORDS).all())
    )


def labels(
    table: pd.DataFrame, path: Path, given: Sequence[str] | None, taken: set[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Find the label columns and return (the table with them in the manifest's form, their names).

    One column of names is multi-class and becomes ``label``. Names joined by "|" are expanded to
    one column a finding. One or several columns of 1, 0, -1 or empty are findings (multi-label).

    Args:
        given: the columns the user named; an empty list makes the table unlabelled; None looks for them.
        taken: columns with another meaning, which are never labels.
    """
    if given is not None:
        for name in given:
            given_column(table, name, path, "label")
        chosen = list(given)
    else:
        known = find_column(table.drop(columns=list(taken)), LABEL_NAMES)
        free = [str(name) for name in table.columns if name not in taken]
        chosen = [known] if known else [name for name in free if _is_finding(table[name])]
    chosen = [name for name in chosen if table[name].notna().any()]
    if len(chosen) == 1 and (key_of(chosen[0]) in LABEL_NAMES or not _is_finding(table[chosen[0]])):
        column = table[chosen[0]]
        if column.str.contains("|", regex=False, na=False).any():
            return _expand(table, chosen[0])
        if chosen[0] != "label" and "label" in table.columns:
            table = table.rename(columns={"label": "label (table)"})
        return table.rename(columns={chosen[0]: "label"}), ["label"]
    return table.assign(**{name: finding_values(table[name], path) for name in chosen}), chosen


def _expand(table: pd.DataFrame, column: str) -> tuple[pd.DataFrame, list[str]]:
    """Turn "Effusion|Mass" into one 0/1 column a finding; "No Finding" is 0 in all, empty is missing in all."""
    known = table[column].notna()
    dummies = table[column].str.get_dummies(sep="|").astype("float64").where(known)
    dummies.columns = [str(name).strip() for name in dummies.columns]
    dummies = dummies[[name for name in sorted(dummies.columns) if key_of(name) not in _NO_FINDING]]
    kept = table.drop(columns=[column, *(name for name in dummies.columns if name in table.columns)])
    return pd.concat([kept, dummies], axis=1), dummies.columns.tolist()
