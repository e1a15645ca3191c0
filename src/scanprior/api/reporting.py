"""``report``: one page about a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanprior.data.readers import read_reference
from scanprior.errors import ImageReadError
from scanprior.reporting import write_report
from scanprior.run import Run


def report(run: str | Path, *, out: str | Path | None = None, thumbnails: bool = True) -> Path:
    """Write ``report.html`` of a run: one file, no network.

    Args:
        run: a finished run.
        out: the file; default ``report.html`` in the run.
        thumbnails: whether to show the most wrong images (needs the source images).

    Returns:
        The path of the page.
    """
    opened = Run.open(run)
    roots = [Path(card["root"]) for card in opened.card["data"]["sources"]]

    def read(references: list[str]) -> list[NDArray[np.uint8] | None]:
        return [_thumbnail(reference, roots) for reference in references]

    return write_report(opened.path, out=Path(out) if out else None, thumbnails=read if thumbnails else None)


def _thumbnail(reference: str, roots: list[Path]) -> NDArray[np.uint8] | None:
    """Read an image for display, (H, W) or (H, W, 3) uint8; None where it is in no root or unreadable."""
    for root in roots:
        try:
            pixels = read_reference(reference, root).pixels
        except ImageReadError:
            continue
        if pixels.dtype == np.uint16:
            pixels = pixels // 257
        return np.asarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, dtype=np.uint8)
    return None
