"""``mask-preview``: what entropy-guided masks hide on the user's own images, at several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scanprior.api.references import expand
from scanprior.config import build
from scanprior.data.inputs import to_input
from scanprior.data.paths import absolute_reference
from scanprior.data.preprocessing import Preprocessing, prepare_image
from scanprior.data.readers import ImageData, read_reference
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError, ImageReadError
from scanprior.masking import Guidance, guided_patch_mask, unit_scores
from scanprior.reporting.pictures import mask_grid, save_png

BETAS = (-1.0, 0.0, 1.0, 3.0)


def mask_preview(
    paths: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    betas: Sequence[float] = BETAS,
    unit: int = 32,
    ratio: float = 0.6,
    size: int = 224,
    images: int = 4,
    guidance: Mapping[str, Any] | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Path:
    """Draw some images, the complexity of their units, and what is hidden at several strengths.

    All strengths share their draws, and no image is mixed in at random: what differs is the strength alone.

    Args:
        paths: files and folders, as for ``predict``; of many images as many as are wanted, evenly spaced.
        out: the PNG file to write.
        betas: strengths; 0 = at random, below 0 flat units are hidden more often.
        unit: side of a mask unit in pixels.
        ratio: part to hide, in (0, 1).
        size: side that images are brought to.
        images: how many are drawn.
        guidance: other settings of `scanprior.masking.Guidance`, such as ``{"measure": "renyi"}``.
        seed: key of the draws.
        reporter: is told of images that cannot be read.

    Returns:
        The path of the picture.

    Raises:
        DataError: no image that can be read.
        ConfigError: a size that the unit does not divide, a ratio, or a setting that does not exist.
    """
    reporter = reporter or Reporter()
    if not 0 < ratio < 1:
        raise ConfigError(f"ratio={ratio:g}: the part to hide must lie between 0 and 1")
    if images < 1 or not betas:
        raise ConfigError(f"images={images}, betas={list(betas)}: there must be at least one of each")
    settled = build(Guidance, dict(guidance or {}), {"warmup": 0.0, "mix": 0.0})
    shown = _read(list(expand(paths)), images, size, reporter)
    places = np.arange(len(shown), dtype=np.int64)
    masks = []
    for beta in betas:
        strong = settled.model_copy(update={"beta": float(beta)})
        found = guided_patch_mask(shown, unit, ratio, strong, seed=seed, positions=places, purpose="preview")
        masks.append((f"beta {beta:g}", found.mask.mask))
    return save_png(mask_grid(shown, unit_scores(shown, unit, settled), masks, unit), Path(out))


def _read(references: Sequence[str], count: int, size: int, reporter: Reporter) -> Tensor:
    """Return some evenly spaced images that can be read, in [0, 1]: (B, C, size, size)."""
    found: list[ImageData] = []
    chosen = np.unique(np.linspace(0, len(references) - 1, min(count, len(references))).round().astype(int))
    for number in chosen if len(references) else []:
        try:
            found.append(read_reference(absolute_reference(references[number])))
        except ImageReadError as error:
            reporter.note(f"left out: {references[number]}: {error.reason}")
    if not found:
        raise DataError("no image that can be read was found in what was given")
    channels: Literal[1, 3] = 3 if any(image.pixels.shape[2] == 3 for image in found) else 1
    scale = Preprocessing(size=size, channels=channels, mean=[0.0] * channels, std=[1.0] * channels)
    pixels = [np.stack([prepare_image(image, scale)]) for image in found]
    return torch.cat([to_input(one, scale) for one in pixels])
