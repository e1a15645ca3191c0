"""The images that are measured on: phantoms, or a part of a real set where there is one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import REPOSITORY
from scanprior.data.index import index
from scanprior.data.phantom import PhantomConfig, positions, render
from scanprior.data.store import Store, prepare

_DRAWN = 192
"""Phantoms drawn; more images are these, moved."""


def phantom_images(count: int, size: int) -> NDArray[np.uint8]:
    """Return (count, size, size) uint8 images, all different: phantoms, and moved copies of them."""
    config = PhantomConfig(patients=_DRAWN, size=size)
    places = positions(config)[: min(count, _DRAWN)]
    drawn = np.concatenate(
        [render(config, places[i : i + 16]).images[:, 0] for i in range(0, len(places), 16)]
    )
    made = [
        np.roll(drawn[i % len(drawn)], (3 * (i // len(drawn)), 5 * (i // len(drawn))), (0, 1))
        for i in range(count)
    ]
    return np.stack(made)


def write_images(folder: Path, images: NDArray[np.uint8], suffix: str, classes: int = 1) -> None:
    """Write images as files; with more than one class, in a folder for each in turn."""
    for number, pixels in enumerate(images):
        home = folder / f"class_{number % classes}" if classes > 1 else folder
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(home / f"{number:06d}{suffix}")


def phantom_store(folder: Path, count: int, size: int) -> Store:
    """Prepare a store of phantoms of two classes; the one that is there is used again."""
    files, out = folder / f"phantoms-{count}-{size}", folder / f"store-{count}-{size}"
    if not files.exists():
        write_images(files, phantom_images(count, size), ".png", classes=2)
    return prepare(index(files), out, size=size, workers=0)


def photographs(folder: Path, count: int) -> tuple[Path, str]:
    """Return a folder of JPEG files in class folders, and what they are.

    The first ``count`` files of the kermany set where it is (``SCANPRIOR_DATA`` names the folder of the real
    sets), else phantoms of the same 224 px.
    """
    home = Path(os.environ.get("SCANPRIOR_DATA", REPOSITORY.parent / "shared" / "data"))
    files = sorted((home / "kermany" / "images").rglob("*.jp*g"))[:count]
    if len(files) == count:
        chosen = folder / "kermany"
        chosen.joinpath("images").mkdir(parents=True)
        for number, file in enumerate(files):
            shutil.copyfile(file, chosen / "images" / f"{number:06d}.jpg")
        return chosen, f"{count} JPEG radiographs of 224 px (kermany)"
    chosen = folder / "jpeg"
    write_images(chosen, phantom_images(count, 224), ".jpg", classes=2)
    return chosen, f"{count} JPEG phantoms of 224 px"
