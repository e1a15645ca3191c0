"""The images that an exported file is checked on, and how far it agrees with ``predict`` on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.references import expand
from scanprior.data.fitting import Pixels, fit_pixels, luminance
from scanprior.data.paths import absolute_reference
from scanprior.data.phantom import PhantomConfig, positions, render
from scanprior.data.preprocessing import Form
from scanprior.data.readers import ImageData, read_reference
from scanprior.errors import DataError, ImageReadError, RunError
from scanprior.run import Run

Probabilities = NDArray[Any]
"""(B, classes), or (B, channels, S, S) of masks; float32 or float64."""

TOLERANCE = 1e-4
"""Largest difference of a probability between an exported file and ``predict`` that is let pass (float32)."""
LEAST_IMAGES, MOST_IMAGES = 8, 24


class Sides(NamedTuple):
    """The two that are compared, and a third.

    Attributes:
        predict: ``predict``'s way from decoded images.
        squares: the file's, from stored squares (B, C, S, S).
        graph: the same computation in PyTorch, from stored squares; None where the file has no graph of ours.
        raw: the file's, from one decoded image of any size.
        resizing: how that one is made small, in words.
    """

    predict: Callable[[Sequence[ImageData]], Probabilities]
    squares: Callable[[Pixels], Probabilities]
    graph: Callable[[Pixels], Probabilities] | None
    raw: Callable[[ImageData], Probabilities]
    resizing: str


@dataclass(frozen=True)
class CheckImages:
    """Decoded images, and what they are in words."""

    images: list[ImageData]
    said: str


@dataclass(frozen=True)
class Parity:
    """How far a file agrees with ``predict``: largest differences of a probability.

    Attributes:
        images: how many were compared.
        said: what they are.
        stored: on the squares that ``predict`` stores.
        one_form: whether all networks store images alike; else ``stored`` contains what one square for all changes.
        computed: between file and PyTorch, both on the same squares; None as in ``Sides``.
        raw: on the images as they are, resized by the file and not by Pillow; None where all have the stored size.
        raw_images: how many of them are of another size.
        resizing: how the file then makes them small, in words.
    """

    images: int
    said: str
    stored: float
    one_form: bool
    computed: float | None
    raw: float | None
    raw_images: int
    resizing: str

    def refuse_large(self, what: str) -> None:
        """Raise where the file is another function than the run.

        Raises:
            RunError: a probability differs by more than ``TOLERANCE``.
        """
        held = [self.computed] if self.computed is not None else []
        found = max([*held, self.stored] if self.one_form else held)
        if not found <= TOLERANCE:  # NaN is none either
            raise RunError(
                f"{what}: its probabilities differ from the run's by up to {found:.1e} on {self.images} images, and "
                f"{TOLERANCE:.0e} is allowed; nothing was written"
            )

    def sentences(self) -> list[str]:
        """Return it for a model card."""
        said = [f"Compared on {self.images} images ({self.said}); largest difference of a probability:"]
        if self.one_form:
            said.append(f"given as the square that `scanprior predict` stores: {self.stored:.1e}")
        else:
            said.append(
                "given as one square, while `scanprior predict` stores one for each form of its members: "
                f"{self.stored:.1e}"
            )
        if self.computed is not None:
            said.append(f"against the same computation in PyTorch: {self.computed:.1e}")
        if self.raw is None:
            said.append("images of another size: not measured, as all of these have the stored size already")
        else:
            said.append(
                f"{self.raw_images} of them given at their own size, {self.resizing}: {self.raw:.1e}. This is no error "
                "of the file; give it the stored square where the numbers of `scanprior predict` are wanted"
            )
        return said


def compare_sides(sides: Sides, images: CheckImages, form: Form, one_form: bool) -> Parity:
    """Compare a file with ``predict``; arguments as ``Parity`` has them.

    The squares go in as one batch and the first by itself, so that a file with a fixed batch does not pass.
    """
    given = images.images
    ours = sides.predict(given)
    squares = np.stack([square_of(image, form) for image in given])
    theirs = sides.squares(squares)
    if theirs.shape != ours.shape:
        raise RunError(
            f"the file gives {theirs.shape[1:]} numbers an image and the run {ours.shape[1:]}; nothing was written"
        )
    alone = _apart(sides.squares(squares[:1]), ours[:1])
    computed = None if sides.graph is None else _apart(theirs, sides.graph(squares))
    other = [n for n, image in enumerate(given) if image.pixels.shape[:2] != (form.size, form.size)]
    raw = max((_apart(sides.raw(given[n]), ours[n : n + 1]) for n in other), default=None)
    stored = max(_apart(theirs, ours), alone)
    return Parity(len(given), images.said, stored, one_form, computed, raw, len(other), sides.resizing)


def _apart(first: Probabilities, second: Probabilities) -> float:
    return float(np.abs(first.astype(np.float64) - second).max())


def square_of(image: ImageData, form: Form) -> Pixels:
    """Return an image as ``predict`` stores it: (C, S, S)."""
    return fit_pixels(image.pixels, size=form.size, channels=form.channels, depth=form.depth, fit=form.fit)


def unresized(image: ImageData, form: Form) -> Pixels:
    """Return an image at its own size in the channels and bits of a form, padded or cropped as it says: (C, H, W)."""
    pixels = image.pixels
    if form.fit != "squash":
        side = max(pixels.shape[:2]) if form.fit == "pad" else min(pixels.shape[:2])
        return square_of(image, form._replace(size=side))
    if pixels.shape[2] == 3 and form.channels == 1:
        pixels = luminance(pixels)
    if pixels.dtype == np.uint8 and form.depth == 16:
        pixels = pixels.astype(np.uint16) * 257
    elif pixels.dtype == np.uint16 and form.depth == 8:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    planes = pixels.transpose(2, 0, 1)
    return np.array(np.broadcast_to(planes, (form.channels, *planes.shape[1:])), order="C")


def check_images(run: Run, given: Sequence[str | Path] | str | Path | None) -> CheckImages:
    """Return the images to check on: those given, else the run's own held-out ones, else phantoms.

    Raises:
        DataError: fewer than ``LEAST_IMAGES`` of those given can be read.
    """
    if given is not None:
        references = list(expand(given))
        found = _readable([(absolute_reference(name), Path()) for name in _spread(references)])
        if len(found) < LEAST_IMAGES:
            raise DataError(
                f"--images: {len(found)} images can be read, and the check needs {LEAST_IMAGES}; give more"
            )
        return CheckImages(found, "images given for the check")
    for use, said in (("test", "test images of the run"), ("val", "validation images of the run")):
        found = _own(run, use)
        if len(found) >= LEAST_IMAGES:
            return CheckImages(found, said)
    return CheckImages(_phantoms(), "synthetic phantoms, as the run's own images are not there")


def _own(run: Run, use: str) -> list[ImageData]:
    """Return the run's own images of a use that are still there, a spread of them."""
    table = run.path / "data.parquet"
    if not table.exists():
        return []
    frame = pd.read_parquet(table)
    roots = {str(card["name"]): Path(str(card["root"])) for card in run.card["data"]["sources"]}
    chosen = frame[frame["used"] == use]
    pairs = zip(chosen["image"], chosen["source"], strict=True) if "source" in chosen else ()
    return _readable(_spread([(str(name), roots[source]) for name, source in pairs if source in roots]))


def _readable(places: Sequence[tuple[str, Path]]) -> list[ImageData]:
    images = []
    for reference, root in places:
        try:
            images.append(read_reference(reference, root))
        except ImageReadError:
            continue
    return images


def _spread(items: Sequence[Any]) -> list[Any]:
    """Return some of the items, evenly from the first to the last: neighbours are often of one patient."""
    places = np.linspace(0, len(items) - 1, min(MOST_IMAGES, len(items))).round().astype(int)
    return [items[place] for place in places]


def _phantoms() -> list[ImageData]:
    config = PhantomConfig(patients=2 * LEAST_IMAGES, images_per_patient=1, size=256)
    made = render(config, positions(config))
    return [ImageData(image.transpose(1, 2, 0), 8, {}) for image in made.images]
