"""``doctor``: what this machine has, for a bug report or before a long run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from scanprior.run import describe


def examine() -> Iterator[str]:
    """Yield lines about versions, devices, DICOM decoders, optional packages and the cache."""
    import torch
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]
    from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless

    from scanprior.api.models import cpu_computes_bf16
    from scanprior.api.sources import cache_folder

    card = describe("doctor", 0)
    yield f"scanprior {card['scanprior_version']}  " + "  ".join(
        f"{k} {v}" for k, v in card["versions"].items()
    )
    yield f"processor: {os.cpu_count()} cores, bf16 arithmetic: {'yes' if cpu_computes_bf16() else 'no'}"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    yield f"GPU: {', '.join(gpus) if gpus else 'none'}"
    syntaxes: list[UID] = [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000, RLELossless]
    for syntax in syntaxes:
        decoder = get_decoder(syntax)
        found = ", ".join(decoder.available_plugins) if decoder.is_available else "MISSING"
        yield f"DICOM {syntax.name}: {found}"
    folder = cache_folder()
    there = folder if folder.exists() else folder.parent if folder.parent.exists() else None
    free = f"{shutil.disk_usage(there).free / 1e9:.0f} GB free" if there else "not made yet"
    yield f"cache: {folder} ({free})"
    yield "next: scanprior demo"
