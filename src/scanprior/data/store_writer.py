"""`prepare`: plan the chunks, keep the journal, and have the store finished.

While it is unfinished, a folder holds the shards and ``journal-*.jsonl``: a first line that says for
which images and settings, then one line a finished chunk, written after its pixels are on the disk.
``store.json`` appears last, by a rename; then the journals go.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scanprior.data.fitting import Fit
from scanprior.data.folder_lock import locked
from scanprior.data.manifest import Manifest
from scanprior.data.paths import split_reference
from scanprior.data.readers import mask_parts
from scanprior.data.store import VERSION, Store, read_facts
from scanprior.data.store_along import Along
from scanprior.data.store_chunks import (
    Chunk,
    ChunkWriter,
    ColourFound,
    Record,
    Shards,
    division,
    prepare_chunks,
)
from scanprior.data.store_finishing import Made
from scanprior.data.store_journal import Journal
from scanprior.errors import DataError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def request_key(
    manifest: Manifest,
    *,
    size: int,
    channels: int | None = None,
    depth: int = 8,
    fit: Fit = "squash",
    masks: bool = False,
) -> str:
    """Return 16 hex digits of what a store is asked for: table, settings, and size and time of every file.

    Equal keys give equal stores, so it can name a cached one. No image is opened.
    """
    settings: dict[str, object] = {
        "version": VERSION,
        "size": size,
        "channels": channels,
        "depth": depth,
        "fit": fit,
    }
    settings["division"] = division(size, depth)
    if masks:
        settings["content"] = "masks"
    digest = hashlib.sha256(json.dumps([manifest.fingerprint(), settings]).encode())
    for value in map(str, manifest.frame["image"]):
        for reference in mask_parts(value) if masks else (value,):
            file, part = split_reference(reference)
            # As the readers do: a file whose very name ends in #3 is taken by its name.
            stamp = _stamp(manifest.root / reference) or (_stamp(manifest.root / file) if part else "")
            digest.update(f"{stamp or 'missing'} ".encode())
    return digest.hexdigest()[:16]


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}/{status.st_mtime_ns}"


def prepare_together(
    preparations: Sequence[Preparation], workers: int, progress: Progress | None = None
) -> list[Store]:
    """Make several stores of the same images, each as if it were made alone, and decode every image once.

    Args:
        preparations: of the same manifest; the channels of all of them are known.
        workers, progress: as for ``prepare``.
    """
    first, *rest = preparations
    return [first.run(workers, progress, rest), *(other.run(workers, None) for other in rest)]


@dataclass(frozen=True)
class Preparation:
    """One call of ``prepare``, whose arguments these are."""

    manifest: Manifest
    out: Path
    size: int
    channels: int | None
    depth: int
    fit: Fit
    masks: bool = False

    @property
    def request(self) -> str:
        """Key of what is asked for."""
        return request_key(
            self.manifest,
            size=self.size,
            channels=self.channels,
            depth=self.depth,
            fit=self.fit,
            masks=self.masks,
        )

    def run(self, workers: int, progress: Progress | None, along: Sequence[Preparation] = ()) -> Store:
        """Make, finish or find the store.

        Args:
            workers, progress: as for ``prepare``.
            along: stores of the same images for which the same decoded images are written; to be run afterwards.
        """
        self._check_arguments(workers)
        request = self.request
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"{self.out}: a file is here; name a folder for the store")
        try:
            with ExitStack() as held:
                for folder in sorted(
                    {self.out, *(other.out for other in along)}
                ):  # all processes in this order
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(folder))
                if (finished := self._finished(request)) is not None:
                    return finished
                left = [other for other in along if other._finished(other.request) is None]
                records, shards = self._all_chunks(request, workers, progress, left)
                return self._finish(records, shards, request)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(
                f"{self.out}: the disk is full; the store needs {self._bytes(self.channels or 3):,} bytes in all. "
                "Free some space and run this again: what is finished is kept"
            ) from error

    def _check_arguments(self, workers: int) -> None:
        for name, value, allowed in (
            ("channels", self.channels, (None, 1, 3)),
            ("depth", self.depth, (8, 16)),
            ("fit", self.fit, ("squash", "pad", "crop")),
        ):
            if value not in allowed:
                raise DataError(
                    f"{name}={value!r} is not possible; choose one of {', '.join(map(str, allowed))}"
                )
        if self.size < 1 or workers < 0:
            raise DataError(f"size={self.size} and workers={workers} must be at least 1 and 0")
        if not len(self.manifest):
            raise DataError(f"{self.manifest.name}: there is no image to prepare")

    def _finished(self, request: str) -> Store | None:
        """Return the store that is there already; refuse a folder that is something else."""
        facts = read_facts(self.out)
        if facts is not None:
            if facts["request"] != request:
                raise DataError(
                    f"{self.out}: a store of other images or settings is here (size {facts['size']}, "
                    f"{facts['audit']['images']:,} images), "
                    "or its files have changed since; remove it or name another folder"
                )
            store = Store.open(self.out)
            store.reused = True
            log.info("%s: finished before, used as it is", self.out)
            self._remove_traces()
            return store
        if any(self.out.iterdir()) and not any(self.out.glob("journal-*.jsonl")):
            raise DataError(
                f"{self.out}: the folder holds something else; name a new or empty one for the store"
            )
        return None

    def _bytes(self, channels: int) -> int:
        return len(self.manifest) * self._shards(channels).image_bytes

    def _shards(self, channels: int) -> Shards:
        _, in_shard = division(self.size, self.depth)
        return Shards(self.out, len(self.manifest), channels, self.size, self.depth, in_shard)

    def _journal(self, channels: int) -> Path:
        return self.out / f"journal-{'grey' if channels == 1 else 'rgb'}.jsonl"

    def _all_chunks(
        self, request: str, workers: int, progress: Progress | None, along: Sequence[Preparation]
    ) -> tuple[Journal, Shards]:
        """Prepare every chunk; where channels are not given, as grey until a colour image comes up.

        Then the grey chunks are copied, three times each channel, instead of decoded again: it is
        what decoding them for three channels gives.
        """
        if self.channels is None and not self._journal(3).exists():
            try:
                return self._chunks(1, request, workers, progress, ()), self._shards(1)
            except ColourFound as found:
                log.info("%s is in colour: the store gets 3 channels", found)
        channels = self.channels or 3
        return self._chunks(channels, request, workers, progress, along), self._shards(channels)

    def _chunks(
        self,
        channels: int,
        request: str,
        workers: int,
        progress: Progress | None,
        along: Sequence[Preparation],
    ) -> Journal:
        shards, total = self._shards(channels), len(self.manifest)
        journal = Journal(self._journal(channels), request)
        grey = None
        if channels == 3 and self.channels is None and self._journal(1).exists():
            grey = Journal(self._journal(1), request)
        done = sum(journal.done.values())
        self._check_space(shards, total - done)
        shards.allocate()
        beside = [other._begun(place) for place, other in enumerate(along)]
        writer = ChunkWriter(
            root=self.manifest.root,
            shards=shards,
            fit=self.fit,
            masks=self.masks,
            grey_only=self.channels is None and channels == 1,
            grey=self._shards(1),
            along=tuple((made.shards, other.fit) for made, other in zip(beside, along, strict=True)),
        )
        if progress is not None:
            progress(done, total)
        todo = self._todo(set(journal.done), grey)
        few = total - done <= division(self.size, self.depth)[0]  # not worth starting processes for
        for record in prepare_chunks(todo, writer, writer.try_image, 0 if few else workers):
            for made in beside:
                made.take(record)
            journal.add(record)
            done += len(record.images)
            if progress is not None:
                progress(done, total)
        return journal

    def _begun(self, place: int) -> Along:
        """Begin this store along with another one."""
        assert self.channels is not None, "a store that is made along with another one has known channels"
        shards, journal = self._shards(self.channels), Journal(self._journal(self.channels), self.request)
        self._check_space(shards, len(self.manifest) - sum(journal.done.values()))
        shards.allocate()
        return Along(shards, journal, division(self.size, self.depth)[0], place)

    def _todo(self, done: set[int], grey: Journal | None) -> Iterator[Chunk]:
        """Yield the chunks to do: first those to copy from the grey store, then those to decode."""
        images, (step, _) = self.manifest.frame["image"], division(self.size, self.depth)

        def chunk(number: int, recorded: Record | None = None) -> Chunk:
            part = images.iloc[number * step : (number + 1) * step]
            return Chunk(number, number * step, tuple(map(str, part)), recorded=recorded)

        for record in grey.records() if grey is not None else ():
            if record.chunk not in done:
                done.add(record.chunk)
                yield chunk(record.chunk, record)
        for number in range(-(-len(images) // step)):
            if number not in done:
                yield chunk(number)

    def _check_space(self, shards: Shards, images: int) -> None:
        needed, free = images * shards.image_bytes, shutil.disk_usage(self.out).free
        if needed > free:
            raise DataError(
                f"{self.out}: the store needs {needed:,} more bytes and the disk has {free:,} free; "
                "free some space, choose a smaller size or name a folder on another disk"
            )

    def _finish(self, journal: Journal, shards: Shards, request: str) -> Store:
        made = Made.gather(journal, shards)
        if len(made.left_out) == shards.images:
            self._discard()
            slot, reason = made.left_out[0]
            raise DataError(
                f"{self.manifest.name}: none of the {shards.images:,} images can be read; the first, "
                f"{self.manifest.frame['image'].iloc[slot]}: {reason}"
            )
        if shards.channels == 3:
            self._remove_shards(1)
        made.write(self.manifest, shards, fit=self.fit, request=request)
        self._remove_traces()
        return Store.open(self.out)

    def _remove_traces(self) -> None:
        """Remove the journals, and what a kill in the middle of a rename left."""
        for path in (self._journal(1), self._journal(3), *self.out.glob("*.part")):
            path.unlink(missing_ok=True)

    def _remove_shards(self, channels: int) -> None:
        shards = self._shards(channels)
        for shard in range(shards.count):
            shards.path(shard).unlink(missing_ok=True)

    def _discard(self) -> None:
        """Remove everything that was written: nothing of it is of use."""
        self._remove_shards(1)
        self._remove_shards(3)
        self._remove_traces()
