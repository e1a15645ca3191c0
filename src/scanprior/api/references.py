"""What the user names, as references to single images: files, folders, tables, patterns, arrays."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from scanprior.data.folders import scan
from scanprior.data.index import index
from scanprior.data.paths import split_reference
from scanprior.data.readers.array import npz_members
from scanprior.data.tables import TABLE_SUFFIXES
from scanprior.errors import DataError

Paths = str | Path | Sequence[str | Path]
"""One path, or several."""


def image_references(paths: Paths) -> list[str]:
    """Return what ``expand`` yields.

    Raises:
        DataError: a path that does not exist, or no image in what there is.
    """
    references = list(expand(paths))
    if not references:
        raise DataError("no image found in what was given")
    return references


def expand(paths: Paths) -> Iterator[str]:
    """Yield image references: files as given, a folder's images in sorted order, npz files by member.

    Of a table (CSV, TSV, Parquet) the images of its rows, in their order; of a pattern such as ``scans/**/*.png`` the
    files it fits, sorted. What ``index`` takes for masks in a folder is no image to predict; a mask named by itself is.

    Raises:
        DataError: a path that does not exist, a pattern that fits nothing, a table without images.
    """
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given)
        if path.is_dir():
            yield from (str(path / file) for file in scan(path).images)
        elif path.suffix == ".npz" and path.is_file():
            for key, header in npz_members(path).items():
                if key.endswith("images"):
                    yield from (f"{path}[{key}][{number}]" for number in range(header.shape[0]))
        elif path.name.lower().endswith(TABLE_SUFFIXES) and path.is_file():
            manifest = index(path, allow_outside=True)
            yield from (str(manifest.root / image) for image in manifest.frame["image"])
        elif path.is_file() or Path(split_reference(str(given))[0]).is_file():
            yield str(given)
        elif glob.has_magic(str(given)):
            yield from _matching(str(given))
        else:
            raise DataError(f"{given}: there is no such file or folder")


def _matching(pattern: str) -> Iterator[str]:
    # pathlib's globs need a folder to start from, and a pattern may begin with one that is itself a pattern
    fitting = glob.iglob(pattern, recursive=True)  # noqa: PTH207
    files = sorted(name for name in fitting if Path(name).is_file())
    if not files:
        raise DataError(f"{pattern}: no file fits this pattern")
    yield from files
