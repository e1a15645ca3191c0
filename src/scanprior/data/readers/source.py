"""What an image is read from: a file on a disk, or its bytes where there is no file."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Upload:
    """A file that is held in memory, as it came over a network.

    Attributes:
        data: its content.
        name: what its sender calls it; only the suffix means anything, and errors name it.
    """

    data: bytes = field(repr=False)
    name: str = "upload"

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        """The suffix of the name, as of a path."""
        return Path(self.name).suffix

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return a stream of the content."""
        assert mode == "rb", "an upload is only read"
        return io.BytesIO(self.data)

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self.data


Source = Path | Upload


def size_of(source: Source) -> int:
    """Return the number of bytes."""
    return len(source.data) if isinstance(source, Upload) else source.stat().st_size
