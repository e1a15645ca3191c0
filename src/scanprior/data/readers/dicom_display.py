"""From stored DICOM values to what a display would show (PS3.3 C.11, PS3.4 N.2).

Grey goes through the modality transform, then the first VOI transform (look-up table before window), then the
inversion of MONOCHROME1. Everything here is a pure function of the dataset's header and the stored values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

Floats = NDArray[np.float64]


class DisplayError(ValueError):
    """The header's description of the display is unusable; the message says which value."""


def grey_to_display(stored: NDArray[Any], dataset: Dataset, frame: int) -> tuple[NDArray[Any], str]:
    """Return bright-is-high uint8 (up to 8 bits stored) or uint16 pixels over the full range.

    Without a VOI transform, values of up to 8 bits are shown over their stored range, so that they equal the
    same picture kept as PNG, and deeper ones over the image's own min..max without padding (our definition;
    the standard leaves it to the display).

    Args:
        stored: (H, W), any integer or floating dtype, the decoded stored values.
        dataset: the header.
        frame: which frame these values are, for per-frame transforms.

    Returns:
        The pixels (H, W), and how the range was found: "lut", "window", "stored range" or "min-max".

    Raises:
        DisplayError: for NaN or infinite values, a zero window, an empty or short table.
    """
    bits = int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize)
    top = 255 if bits <= 8 else 65535
    modality = _macro(dataset, frame, "PixelValueTransformationSequence")
    voi = _macro(dataset, frame, "FrameVOILUTSequence")
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise DisplayError("the pixels hold NaN or infinite values")
    window = _window(voi)
    how = "lut" if _has_lut(voi) else "window" if window else ""
    limits = None
    if not how:
        if bits <= 8 and stored.dtype.kind != "f" and not modality.get("ModalityLUTSequence"):
            how, signed = "stored range", int(dataset.get("PixelRepresentation") or 0)
            ends = np.array([0, 2**bits - 1]) - signed * 2 ** (bits - 1)
        else:
            how, ends = "min-max", _unpadded(stored, dataset)
            # A table need not be monotonic, so its ends may lie at any stored value.
            ends = (
                np.unique(ends) if modality.get("ModalityLUTSequence") else np.array([ends.min(), ends.max()])
            )
        limits = _modality(ends.astype(np.float64), modality)

    def show(values: Floats) -> NDArray[Any]:
        unit = _voi(_modality(values, modality), voi, window, limits)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            unit = 1 - unit
        return np.rint(unit * top).astype(np.uint8 if top == 255 else np.uint16)

    if stored.dtype.kind in "iu":
        low, high = int(stored.min()), int(stored.max())
        if high - low < 1 << 16:
            # All the arithmetic once per grey value instead of once per pixel.
            table = show(np.arange(low, high + 1, dtype=np.float64))
            return table[stored.astype(np.int64) - low], how
    return show(stored.astype(np.float64)), how


def palette_to_rgb(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Return (H, W, 3) uint8 or uint16 over the full range from PALETTE COLOR indices (PS3.3 C.7.6.3.1.5)."""
    entries, _, depth = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
    data = dataset.get("RedPaletteColorLookupTableData")
    if depth == 8 and (entries or 1 << 16) > 256 and (data is None or len(data) < 2 * (entries or 1 << 16)):
        # pydicom would index such a table with 8-bit numbers and so return wrong colours.
        raise DisplayError(f"a colour palette of {entries} entries of 8 bits is not supported")
    colours: NDArray[Any] = apply_color_lut(stored, dataset)[..., :3]
    if colours.dtype == np.uint16 and depth == 8:
        return colours.astype(np.uint8)  # entries of 8 bits kept in 16-bit words
    bits = int(dataset.BitsStored)
    return colours if colours.dtype == np.uint8 else full_range(colours, 16, 8 if bits <= 8 else 16)


def full_range(values: NDArray[Any], bits: int, to: int) -> NDArray[Any]:
    """Scale unsigned values of `bits` bits to uint8 or uint16 (`to` bits) over the full range, rounding."""
    dtype = np.uint8 if to == 8 else np.uint16
    if bits == to:
        return values.astype(dtype)
    scaled: Floats = np.minimum(values / (2.0**bits - 1), 1) * (2**to - 1)
    return np.rint(scaled).astype(dtype)


def _macro(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """Return the item that holds a transform: a functional group of an enhanced image, or the dataset."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        if group.get(keyword):
            item: Dataset = group[keyword].value[0]
            return item
    return dataset


def _modality(values: Floats, item: Dataset) -> Floats:
    """Apply the modality look-up table or rescale (PS3.3 C.11.1)."""
    if item.get("ModalityLUTSequence"):
        return _look_up(values, item.ModalityLUTSequence[0])[0]
    slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values
    slope, intercept = _number(slope, "RescaleSlope"), _number(intercept, "RescaleIntercept")
    if slope == 0:
        raise DisplayError("RescaleSlope is 0, which makes all pixels the same")
    with np.errstate(over="ignore"):
        values = values * slope + intercept
    if not np.isfinite(values).all():
        raise DisplayError(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} make infinite values")
    return values


def _voi(
    values: Floats, item: Dataset, window: tuple[float, float, str] | None, limits: Floats | None
) -> Floats:
    """Return display values 0..1 by the VOI table, else the window, else `limits` (PS3.3 C.11.2)."""
    unit: Floats
    if limits is not None:
        low, high = float(limits.min()), float(limits.max())
        # Halves, because the span of two large numbers of opposite sign overflows.
        unit = (values / 2 - low / 2) / (high / 2 - low / 2) if high > low else np.zeros(values.shape)
    elif window is None or _has_lut(item):
        values, depth = _look_up(values, item.VOILUTSequence[0])
        unit = values / (2**depth - 1)
    else:
        centre, width, function = window
        if function == "SIGMOID":
            with np.errstate(over="ignore"):
                unit = 1 / (1 + np.exp(-4 * (values - centre) / width))
        elif function == "LINEAR_EXACT":
            unit = (values - centre) / width + 0.5
        elif width == 1:
            unit = (values > centre - 0.5).astype(np.float64)
        else:
            unit = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.clip(unit, 0, 1, out=unit)


def _has_lut(item: Dataset) -> bool:
    """Say whether there is a VOI look-up table with content."""
    sequence = item.get("VOILUTSequence")
    return bool(sequence) and None not in (sequence[0].get("LUTDescriptor"), sequence[0].get("LUTData"))


def _window(item: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, or None when there is none."""
    centre, width = _first(item.get("WindowCenter")), _first(item.get("WindowWidth"))
    if centre is None or width is None:
        return None
    centre, width = _number(centre, "WindowCenter"), _number(width, "WindowWidth")
    function = str(item.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DisplayError(f"VOILUTFunction {function!r} is not LINEAR, LINEAR_EXACT or SIGMOID")
    if width <= 0 or (function == "LINEAR" and width < 1):
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise DisplayError(f"WindowWidth is {width:g}, which must be {least} for {function}")
    return centre, width, function


def _look_up(values: Floats, item: Dataset) -> tuple[Floats, int]:
    """Map values through a LUT item; values before its first entry take the first, after its last the last.

    Returns:
        The mapped values, and the bits of an entry.
    """
    entries, first, depth = (int(value) for value in item.LUTDescriptor)
    entries = entries & 0xFFFF or 1 << 16
    if not 8 <= depth <= 16:
        raise DisplayError(f"a look-up table of {depth} bits per entry is not allowed (8 to 16 are)")
    data = item.LUTData
    if isinstance(data, bytes):
        little = item.original_encoding[1] is not False
        packed = len(data) < 2 * entries  # entries of 8 bits may be packed two in a word
        table = np.frombuffer(data, np.uint8 if packed else np.dtype("<u2" if little else ">u2"))
    else:
        table = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    if len(table) < entries:
        raise DisplayError(f"the look-up table holds {len(table)} entries, its descriptor promises {entries}")
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[index].astype(np.float64), depth


def _unpadded(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Return the stored values that are not padding (all of them, when all are padding)."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None or stored.dtype.kind == "f":
        return stored
    ends = [int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))]
    if stored.dtype.kind == "i":
        # Many write it with the unsigned representation: the same 16 bits, read as signed.
        ends = [end - (1 << 16) if 1 << 15 <= end < 1 << 16 else end for end in ends]
    kept = stored[(stored < min(ends)) | (stored > max(ends))]
    return kept if kept.size else stored


def _number(value: Any, keyword: str) -> float:
    """Return a finite float from a header value."""
    number = float(_first(value))
    if not math.isfinite(number):
        raise DisplayError(f"{keyword} is {number}")
    return number


def _first(value: Any) -> Any:
    """Return the first of several values, or None for an empty one."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        return None if value == "" else value
    return next(iter(value), None)
