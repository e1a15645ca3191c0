"""A store that is made along with another one, from the same decoded images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from scanprior.data.store_chunks import Record, Shards
from scanprior.data.store_journal import Journal


@dataclass(frozen=True)
class _Image:
    """What is known of one image whose pixels are in the shards."""

    sums: list[list[int]]
    digest: str
    side: tuple[int, int]
    reason: str | None


@dataclass
class Along:
    """Turns what another store's chunks say into the journal of this one, whose chunks are divided otherwise.

    A chunk gets into the journal when all its images are in the shards. What a kill leaves unfinished, the
    store's own preparation decodes again.

    Args:
        shards: of this store; the images are written there already.
        journal: of this store.
        step: images in a chunk of this store.
        place: which of the stores in ``Record.along`` this one is.
    """

    shards: Shards
    journal: Journal
    step: int
    place: int
    _known: dict[int, _Image] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Note the images of a chunk of the other store, and write the chunks that are complete with them."""
        left_out = dict(record.left_out)
        whole = zip(record.along[self.place], record.images, record.sides, strict=True)
        for slot, (sums, digest, side) in enumerate(whole, record.first):
            self._known[slot] = _Image(sums, digest, side, left_out.get(slot))
        last = record.first + len(record.images) - 1
        for number in range(record.first // self.step, last // self.step + 1):
            slots = range(number * self.step, min((number + 1) * self.step, self.shards.images))
            if all(slot in self._known for slot in slots):
                images = [self._known.pop(slot) for slot in slots]
                if number not in self.journal.done:
                    self.journal.add(self._record(number, slots, images))

    def _record(self, number: int, slots: range, images: list[_Image]) -> Record:
        pixels = self.shards.read(slots.start, len(slots))
        return Record(
            chunk=number,
            first=slots.start,
            digest=hashlib.sha256(pixels.data).hexdigest(),
            sums=[image.sums for image in images],
            images=[image.digest for image in images],
            left_out=[
                (s, image.reason) for s, image in zip(slots, images, strict=True) if image.reason is not None
            ],
            sides=[image.side for image in images],
        )
