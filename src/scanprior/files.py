"""Writing files: whole or not at all, and with the name of the file in what goes wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name ``path`` in an error of the system that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write to, and rename it: ``path`` is the old file or the whole new one."""
    part = path.with_name(path.name + ".part")
    try:
        with writing(path):
            yield part
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and flushed."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, atomically and flushed."""
    write_bytes(path, text.encode())


def share(path: Path, folder: Path) -> None:
    """Let all files of one content that are shared in ``folder`` take the room of one, by hard links.

    Each stays a file of its own folder, which can be moved and removed as ever; none may be changed in place. On a file
    system without hard links nothing changes.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder.mkdir(exist_ok=True)
    kept = folder / f"{digest[:32]}{path.suffix}"
    with suppress(OSError):
        with suppress(FileExistsError):
            os.link(path, kept)
        if not kept.samefile(path):
            with replacing(path) as part:
                os.link(kept, part)
