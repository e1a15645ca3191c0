"""The work of `prepare` that runs in worker processes: decode some images, write them in their place.

A chunk is a run of consecutive images inside one shard. Workers write pixels straight into the
shard, so no pixel passes between processes and only a few chunks are in memory at a time. Writing
goes through files, not memory maps: a full disk is then an error instead of a bus error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from scanprior.data.fitting import Fit, Pixels, fit_mask, fit_pixels
from scanprior.data.measure import pixel_digest
from scanprior.data.readers import read_mask, read_reference
from scanprior.errors import DataError, ImageReadError
from scanprior.workers import end_broken, end_with_parent, worker_context

SHARD_BYTES = 256 * 2**20
CHUNK_BYTES = 8 * 2**20
CHUNK_IMAGES = 64


def division(size: int, depth: int) -> tuple[int, int]:
    """Return the images in a chunk and in a shard: at most 8 MB and 64 images, and whole chunks in 256 MB.

    Counted for three channels always, so that a store that turns out to hold colour keeps it.
    """
    widest = 3 * size**2 * depth // 8
    chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // widest))
    return chunk, max(1, (SHARD_BYTES - 128) // widest // chunk) * chunk


@dataclass(frozen=True)
class Shards:
    """Where every image of a store lies: ``.npy`` files that NumPy can map.

    Slot i is image i of the manifest; the slot of an image that cannot be read stays black and
    nobody reads it.

    Args:
        folder: the store's folder.
        images: number of slots.
        channels, size, depth: shape and bits of one image.
        shard_images: images in every shard but the last.
    """

    folder: Path
    images: int
    channels: int
    size: int
    depth: int
    shard_images: int

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Type of the pixels, little-endian on every machine."""
        return np.dtype(np.uint8) if self.depth == 8 else np.dtype("<u2")

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.channels * self.size**2 * self.dtype.itemsize

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_images)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"images-{'grey' if self.channels == 1 else 'rgb'}-{shard:05d}.npy"

    def shape(self, shard: int) -> tuple[int, int, int, int]:
        """Return (images, C, S, S) of a shard."""
        images = min(self.shard_images, self.images - shard * self.shard_images)
        return images, self.channels, self.size, self.size

    def header(self, shard: int) -> bytes:
        """Return what a shard's file begins with: the description of its array."""
        stream = BytesIO()
        facts = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape(shard)}
        npy.write_array_header_1_0(stream, facts)
        return stream.getvalue()

    def file_bytes(self, shard: int) -> int:
        """Return the length of a shard's file."""
        return len(self.header(shard)) + self.shape(shard)[0] * self.image_bytes

    def allocate(self) -> None:
        """Create the shards that are missing, at full length; what is written in them stays."""
        for shard in range(self.count):
            with self.path(shard).open("ab") as stream:
                if stream.tell() == 0:
                    stream.write(self.header(shard))
                stream.truncate(self.file_bytes(shard))

    def write(self, first: int, pixels: Pixels) -> None:
        """Write consecutive images (n, C, S, S) of one shard from slot ``first``, through to the disk."""
        shard, place = divmod(first, self.shard_images)
        offset = len(self.header(shard)) + place * self.image_bytes
        with self.path(shard).open("r+b") as stream:
            stream.seek(offset)
            stream.write(np.ascontiguousarray(pixels, dtype=self.dtype).data)
            stream.flush()
            os.fsync(stream.fileno())

    def write_across(self, first: int, pixels: Pixels) -> None:
        """Write consecutive images (n, C, S, S) from slot ``first`` into as many shards as they take."""
        while len(pixels):
            here = min(len(pixels), self.shard_images - first % self.shard_images)
            self.write(first, pixels[:here])
            first, pixels = first + here, pixels[here:]

    def read(self, first: int, images: int) -> Pixels:
        """Return consecutive images (images, C, S, S) of one shard from slot ``first``."""
        shard, place = divmod(first, self.shard_images)
        mapped = np.load(self.path(shard), mmap_mode="r")
        pixels: Pixels = np.array(mapped[place : place + images])
        return pixels


@dataclass(frozen=True)
class Chunk:
    """Consecutive images to decode.

    Args:
        number: place among the chunks of the store.
        first: slot of the first image.
        references: the images, as in the manifest.
        unreadable: slot to reason, for images already known not to be readable.
        recorded: what a grey store recorded of this chunk, when it only has to be copied from there.
    """

    number: int
    first: int
    references: tuple[str, ...]
    unreadable: dict[int, str] = field(default_factory=dict)
    recorded: Record | None = None


@dataclass(frozen=True)
class Record:
    """What is known of a finished chunk; JSON of it is a line of the journal.

    Args:
        chunk, first: number of the chunk and slot of its first image.
        digest: SHA-256 of its stored pixels.
        sums: per image and channel, the exact sum of its values and of their squares.
        images: per image, 32 hex digits of the digest of its decoded pixels ("" if unreadable).
        left_out: slot and reason of every unreadable image.
        sides: per image, height and width of the decoded pixels (0 0 if unreadable).
        along: of the stores that are made along, the sums of these images; not part of the journal.
    """

    chunk: int
    first: int
    digest: str
    sums: list[list[list[int]]]
    images: list[str]
    left_out: list[tuple[int, str]]
    sides: list[tuple[int, int]]
    along: list[list[list[list[int]]]] = field(default_factory=list)


class ColourFound(Exception):
    """A colour image came up while the store was taken to be grey; not an error."""


@dataclass(frozen=True)
class ChunkWriter:
    """Prepares one chunk after another; called in worker processes.

    Args:
        root: folder that relative references start from.
        shards: where to write.
        fit: how an image is made square.
        masks: the images are masks, whose values stay as they are.
        grey_only: raise ``ColourFound`` at the first colour image.
        grey: the grey shards that recorded chunks are copied from.
        along: shards of other stores of the same images, and how these make them square: written from the same
            decoded pixels.
    """

    root: Path
    shards: Shards
    fit: Fit
    masks: bool = False
    grey_only: bool = False
    grey: Shards | None = None
    along: tuple[tuple[Shards, Fit], ...] = ()

    def __call__(self, chunk: Chunk) -> Record:
        """Prepare ``chunk``; its pixels are on the disk when this returns."""
        if chunk.recorded is not None and self.grey is not None:
            return self._copied(chunk, chunk.recorded, self.grey)
        pixels, further = _black(chunk, self.shards), [_black(chunk, shards) for shards, _ in self.along]
        digests, sides = [""] * len(chunk.references), [(0, 0)] * len(chunk.references)
        left_out = dict(chunk.unreadable)
        for place, reference in enumerate(chunk.references):
            slot = chunk.first + place
            if slot in left_out:
                continue
            try:
                decoded = self._decoded(reference)
            except ImageReadError as error:
                left_out[slot] = error.reason
                continue
            if self.grey_only and decoded.shape[2] != 1:
                raise ColourFound(reference)
            digests[place] = pixel_digest(decoded).hex()[:32]
            sides[place] = decoded.shape[0], decoded.shape[1]
            pixels[place] = self._fitted(decoded)
            for made, (shards, fit) in zip(further, self.along, strict=True):
                made[place] = _fitted_to(shards, fit, decoded)
        for made, (shards, _) in zip(further, self.along, strict=True):
            shards.write_across(chunk.first, made)
        record = self._written(chunk, pixels, digests, sides, sorted(left_out.items()))
        return replace(record, along=[_all_sums(made) for made in further])

    def _decoded(self, reference: str) -> Pixels:
        if self.masks:
            return read_mask(reference, self.root)[..., None]
        return read_reference(reference, self.root).pixels

    def _fitted(self, decoded: Pixels) -> Pixels:
        shards = self.shards
        if self.masks:
            return fit_mask(decoded[..., 0], size=shards.size, fit=self.fit)
        return _fitted_to(shards, self.fit, decoded)

    def _copied(self, chunk: Chunk, recorded: Record, grey: Shards) -> Record:
        pixels: Pixels = np.repeat(
            grey.read(chunk.first, len(chunk.references)), self.shards.channels, axis=1
        )
        return self._written(chunk, pixels, recorded.images, recorded.sides, recorded.left_out)

    def _written(
        self,
        chunk: Chunk,
        pixels: Pixels,
        digests: list[str],
        sides: list[tuple[int, int]],
        left_out: list[tuple[int, str]],
    ) -> Record:
        self.shards.write(chunk.first, pixels)
        return Record(
            chunk=chunk.number,
            first=chunk.first,
            digest=hashlib.sha256(pixels.data).hexdigest(),
            sums=_all_sums(pixels),
            images=digests,
            left_out=left_out,
            sides=sides,
        )

    def try_image(self, reference: str) -> None:
        """Decode an image and forget it: only to see whether the process survives."""
        try:
            self._decoded(reference)
        except ImageReadError:
            return


def _black(chunk: Chunk, shards: Shards) -> Pixels:
    shape = (len(chunk.references), shards.channels, shards.size, shards.size)
    return np.zeros(shape, shards.dtype)


def _fitted_to(shards: Shards, fit: Fit, decoded: Pixels) -> Pixels:
    return fit_pixels(decoded, size=shards.size, channels=shards.channels, depth=shards.depth, fit=fit)


def _all_sums(pixels: Pixels) -> list[list[list[int]]]:
    return [[_sums(channel) for channel in image] for image in pixels]


def _sums(values: NDArray[np.generic]) -> list[int]:
    """Return the exact sum and sum of squares of uint8 or uint16 values."""
    counts = np.bincount(values.ravel())
    levels = np.arange(len(counts), dtype=np.int64)
    return [int(counts @ levels), int(counts @ levels**2)]


def prepare_chunks(
    chunks: Iterable[Chunk],
    work: Callable[[Chunk], Record],
    try_image: Callable[[str], None],
    workers: int,
) -> Iterator[Record]:
    """Yield ``work(chunk)`` of all chunks, in the order they finish; at most two a worker are under way.

    An image that kills the process that decodes it (a fault in a codec) is found by decoding the
    images of the lost chunks one by one, and left out.

    Args:
        workers: number of processes; 0 works in this one.

    Raises:
        DataError: worker processes die and no image is to blame.
    """
    if workers == 0:
        yield from map(work, chunks)
        return
    todo = iter(chunks)
    pool, taken = _pool(workers), dict[int, Chunk]()
    pending: set[Future[Record]] = set()
    try:
        while True:
            try:
                while len(pending) < 2 * workers and (chunk := next(todo, None)) is not None:
                    taken[chunk.number] = chunk
                    pending.add(pool.submit(work, chunk))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    record = future.result()
                    del taken[record.chunk]
                    yield record
            except BrokenProcessPool:
                end_broken(pool)
                lost = _without_killers(sorted(taken.values(), key=lambda chunk: chunk.number), try_image)
                todo, taken, pending, pool = chain(lost, todo), {}, set(), _pool(workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _without_killers(lost: list[Chunk], try_image: Callable[[str], None]) -> list[Chunk]:
    """Return the lost chunks, with the images that kill a process marked as unreadable."""
    found, pool = [], _pool(1)
    for chunk in lost:
        killers = {}
        for place, reference in enumerate(chunk.references):
            if chunk.first + place in chunk.unreadable or chunk.recorded is not None:
                continue
            try:
                pool.submit(try_image, reference).result()
            except BrokenProcessPool:
                killers[chunk.first + place] = "decoding it crashes the decoder"
                end_broken(pool)
                pool = _pool(1)
        found.append(replace(chunk, unreadable=chunk.unreadable | killers))
    pool.shutdown()
    if found == lost:
        raise DataError(
            f"a worker process died while reading {lost[0].references[0]} and the images after it, though each "
            "can be read alone: free memory, or take fewer workers or 0"
        )
    return found


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, worker_context(home=__name__), initializer=end_with_parent)
