"""Raw images read and made square, in processes beside the one that computes; in order, with flat memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from scanprior.data.fitting import Pixels
from scanprior.data.parallel import ordered_map
from scanprior.data.paths import absolute_reference
from scanprior.data.preprocessing import Form, Preprocessing, prepare_image
from scanprior.data.readers import ImageData, read_reference
from scanprior.errors import ImageReadError


@dataclass(frozen=True)
class Reading:
    """One image as it was read, or why it was not.

    Attributes:
        reference: what was read.
        fitted: (C, S, S) uint8 or uint16 in every form that was asked for; empty where it could not be read.
        original: as decoded, where that was asked for.
        height, width: of the image in pixels; 0 where it could not be read.
        frames: how many the file has, of which this is one.
        error: the reason why it could not be read.
    """

    reference: str
    fitted: Mapping[Form, Pixels]
    original: ImageData | None = None
    height: int = 0
    width: int = 0
    frames: int = 1
    error: str | None = None

    @classmethod
    def of(
        cls,
        reference: str,
        read: Callable[[], ImageData],
        forms: Mapping[Form, Preprocessing],
        originals: bool = False,
    ) -> Reading:
        """Read an image, once for all forms; what is wrong with it becomes the reading's error."""
        try:
            image = read()
            fitted = {form: prepare_image(image, preprocessing) for form, preprocessing in forms.items()}
        except ImageReadError as error:
            return cls(reference, {}, error=error.reason)
        height, width = image.pixels.shape[:2]
        frames = int(image.meta.get("frames", 1))
        return cls(reference, fitted, image if originals else None, height, width, frames)


def read_all(
    references: Sequence[str],
    forms: Mapping[Form, Preprocessing],
    *,
    workers: int,
    originals: bool = False,
) -> Iterator[Reading]:
    """Yield every image in the order of ``references``; few are held at a time.

    Args:
        references: as ``read_reference`` takes them.
        forms: the forms that the networks need, with a preprocessing of each.
        workers: processes that read; 0 reads in this one.
        originals: whether the decoded image is wanted too.

    Raises:
        DataError: a process dies.
    """
    one = partial(read_one, forms=forms, originals=originals)
    chunk = 2 if originals else 16  # decoded images are many times as large as fitted ones
    yield from ordered_map(one, references, workers, chunk=chunk)


def read_one(reference: str, forms: Mapping[Form, Preprocessing], originals: bool = False) -> Reading:
    """Read one image, once for all forms."""
    return Reading.of(reference, lambda: read_reference(absolute_reference(reference)), forms, originals)


def stacked(readings: Sequence[Reading], forms: Iterable[Form]) -> dict[Form, Pixels]:
    """Return images that were read as a network takes several: (B, C, S, S) in every form."""
    return {form: np.stack([reading.fitted[form] for reading in readings]) for form in forms}


def default_workers() -> int:
    """Return the number of reading processes where the user names none: one, or half the cores, four at most."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))
