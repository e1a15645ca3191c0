"""Image references of a table: checked, made relative to the root, and looked for where they are not.

``..`` is refused always. An absolute path is accepted inside the root (and made relative), and
outside it only where the caller allows that, so that a table from elsewhere cannot reach other
files of this machine. A reference may point into a file: ``scan.dcm#3``, ``set.npz[images][0]``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from scanprior.data.readers import is_image_path
from scanprior.errors import DataError

_REFERENCE = re.compile(r"(?P<file>.+?)(?P<part>(?:\[[^\[\]]+\])?\[\d+\]|#\d+)?")
_MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations"}
_SKIPPED = {"__MACOSX"}
_JOINT = "|"


def split_reference(reference: str) -> tuple[str, str]:
    """Return (file, part): ("a.dcm", "#3"), ("a.npz", "[images][0]"), ("a.png", "")."""
    match = _REFERENCE.fullmatch(reference)
    return (match["file"], match["part"] or "") if match else (reference, "")


def join_references(references: Sequence[str]) -> str:
    """Return several references as one value, "left.png|right.png"; of masks it means their union.

    Raises:
        DataError: a reference that itself holds "|".
    """
    for reference in references:
        if _JOINT in reference:
            raise DataError(
                f"{reference}: the name holds '{_JOINT}', which separates several masks of one image; rename the file"
            )
    return _JOINT.join(references)


def separate_references(value: str, root: Path) -> list[str]:
    """Return the references that a value such as "left.png|right.png" joins.

    Raises:
        DataError: an empty one among them, or a file below ``root`` whose very name is the value.
    """
    parts = [part.strip() for part in value.split(_JOINT)]
    if len(parts) > 1 and _exists(root, value):
        join_references([value])
    if not all(parts):
        raise DataError(
            f"'{value}' has nothing before or after a '{_JOINT}'; write one mask between each two"
        )
    return parts


def walk(root: Path) -> Iterator[str]:
    """Yield the files below ``root`` as sorted relative POSIX paths; hidden ones are left out, links followed once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        here = Path(folder).relative_to(root)
        yield from ((here / name).as_posix() for name in sorted(files) if not name.startswith("."))


def is_mask_folder(name: str) -> bool:
    """Return whether a folder of this name holds masks rather than images."""
    return name.lower() in _MASK_FOLDERS


def checked_reference(value: str, where: str, root: Path, *, allow_outside: bool = False) -> str:
    """Return ``value`` as a POSIX reference relative to ``root``, or absolute where it lies outside.

    Args:
        where: what the error names, such as "labels.csv: row 7".

    Raises:
        DataError: ``..`` in it, or an absolute path outside the root that is not allowed.
    """
    file, part = split_reference(value)
    if "\\" in file and not (root / file).exists():  # written on Windows
        file = PureWindowsPath(file).as_posix()
    path = PurePosixPath(file)
    if ".." in path.parts:
        raise DataError(
            f"{where}: the path '{value}' holds '..'; write paths relative to the image folder {root}"
        )
    if path.is_absolute() or PureWindowsPath(file).drive:
        for base in dict.fromkeys((root.absolute(), root.resolve())):
            if path.is_relative_to(base.as_posix()):
                return path.relative_to(base.as_posix()).as_posix() + part
        if not allow_outside:
            raise DataError(
                f"{where}: the path '{value}' lies outside the image folder {root}; give the folder that holds "
                "all images with --set data.root=FOLDER"
            )
    return path.as_posix() + part


def resolve(
    values: Sequence[str], table: Path, column: str, root: Path | None, *, allow_outside: bool = False
) -> tuple[list[str], Path]:
    """Return (references, root) for the image column of a table.

    Where files are not found as written, they are looked for: from the folder above the table
    (tables that repeat their folder's name), then by file name or by name without suffix (image
    identifiers) anywhere below the root. References that stay missing are kept; the check names them.

    Raises:
        DataError: a path that is not acceptable, a name that fits several files, or no file found at all.
    """
    base = table.parent if root is None else root
    where = (f"{table}: row {line}" for line in range(2, len(values) + 2))
    references = [
        checked_reference(value, place, base, allow_outside=allow_outside)
        for value, place in zip(values, where, strict=True)
    ]
    exists = [_exists(base, reference) for reference in references]
    if root is None and not exists[0] and references[0].split("/")[0] == base.resolve().name:
        above = base.resolve().parent
        found = [_exists(above, reference) for reference in references]
        if sum(found) > sum(exists):
            base, exists = above, found
    if not all(exists):
        references = _look_for(references, exists, base, table)
    if not any(exists) and not any(_exists(base, reference) for reference in references):
        raise DataError(
            f"{table}: none of the {len(values)} images of the column '{column}' is below {base} (the first is "
            f"'{values[0]}'); give the folder that holds them with --set data.root=FOLDER"
        )
    return references, base


def _exists(root: Path, reference: str) -> bool:
    try:
        return (root / split_reference(reference)[0]).is_file()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _look_for(references: list[str], exists: Sequence[bool], root: Path, table: Path) -> list[str]:
    """Replace bare names that do not exist by the one file below ``root`` of that name or stem."""
    wanted = [
        place
        for place, there in enumerate(exists)
        if not there and "/" not in split_reference(references[place])[0]
    ]
    if not wanted:
        return references
    by_name: dict[str, list[str]] = {}
    for file in walk(root):
        path = PurePosixPath(file)
        if is_image_path(file) and not any(map(is_mask_folder, path.parts[:-1])):
            for name in {path.name, path.stem}:
                by_name.setdefault(name, []).append(file)
    references = list(references)
    for place in wanted:
        name, part = split_reference(references[place])
        found = by_name.get(name, [])
        if len(found) > 1:
            raise DataError(
                f"{table}: row {place + 2} names '{name}', which fits {found[0]} and {found[1]}; write the path "
                "from the image folder"
            )
        if found:
            references[place] = found[0] + part
    return references


def absolute_reference(reference: str) -> str:
    """Return a reference whose file is named from the root of the file system, with its frame or member."""
    file, place = split_reference(reference)
    return f"{Path(file).absolute()}{place}"
