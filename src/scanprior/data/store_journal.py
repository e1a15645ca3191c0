"""The journal of an unfinished store: which chunks are done, and what is known of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from scanprior.data.store_chunks import Record
from scanprior.errors import DataError


class Journal:
    """What is finished of an unfinished store; survives a kill at any moment.

    Args:
        path: the file; created where there is none.
        request: key of what is asked for.

    Attributes:
        done: number of every finished chunk, and how many images it has.

    Raises:
        DataError: the journal is of other images or settings.
    """

    def __init__(self, path: Path, request: str) -> None:
        self.path, self.done = path, dict[int, int]()
        header = json.dumps({"format": "scanprior-store-journal", "request": request}) + "\n"
        whole = 0
        if path.exists():
            with path.open("rb") as stream:
                # A kill may tear the last line: it is cut off, and its chunk done again.
                for line in iter(stream.readline, b""):
                    if not line.endswith(b"\n"):
                        break
                    if whole == 0 and line != header.encode():
                        raise DataError(
                            f"{path.parent}: an unfinished store of other images or settings is here, or its "
                            "files have changed since; remove the folder or name another"
                        )
                    if whole:
                        self._note(_record(line))
                    whole += len(line)
        with path.open("ab") as stream:
            stream.truncate(whole)
            if whole == 0:
                stream.write(header.encode())

    def _note(self, record: Record) -> None:
        self.done[record.chunk] = len(record.images)

    def add(self, record: Record) -> None:
        """Record a finished chunk, whose pixels are on the disk."""
        with self.path.open("ab") as stream:
            facts = asdict(record)
            del facts["along"]
            stream.write(json.dumps(facts).encode() + b"\n")
        self._note(record)

    def records(self) -> Iterator[Record]:
        """Yield what was recorded, one at a time."""
        with self.path.open("rb") as stream:
            stream.readline()
            yield from map(_record, stream)


def _record(line: bytes) -> Record:
    return Record(**json.loads(line))
