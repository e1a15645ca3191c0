"""What made datasets are made of: small pictures, and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(root: Path, *names: str) -> None:
    """Write 8 x 8 pictures; the suffix says the format, `.dcm` gets a placeholder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".dcm", ".img"):
            path.write_bytes(b"\0" * 64)
        else:
            Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
