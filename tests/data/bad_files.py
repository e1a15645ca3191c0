"""A corpus of damaged, hostile and mislabelled files, every one of which a reader must refuse.

`make_bad_files` writes them; the same seed gives the same bytes. `reference` turns a path into what a manifest
would hold, since arrays are referred to by element.
"""

from __future__ import annotations

import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag

from data import made_dicom as made

SUFFIXES = (".png", ".jpg", ".tif", ".bmp", ".dcm")


def reference(path: Path) -> str:
    """What a manifest would hold for a file of the corpus."""
    return {".npz": f"{path}[images][0]", ".npy": f"{path}[0]"}.get(path.suffix, str(path))


def make_bad_files(folder: Path, seed: int) -> list[Path]:
    """Write the corpus into `folder` and return its paths (one of them a folder, one missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    good = good_files(seed)
    random_ = random.Random(seed)
    for name, data in good.items():
        files |= _truncations(name, data, random_)
    files |= _png_bit_flips(good, random_)
    files |= _content(seed)
    files |= _raster_damage(good)
    files |= _dicom_damage(seed)
    files |= _array_damage(seed)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir(exist_ok=True)
    (folder / "folder.dcm").mkdir(exist_ok=True)
    return [folder / name for name in (*files, "folder.png", "folder.dcm", "missing.png", "missing.dcm")]


def good_files(seed: int) -> dict[str, bytes]:
    """Sound files of every kind by name; the corpus is made by damaging them."""
    grey, deep = made.grey_values(8, seed=seed), made.grey_values(16, seed=seed)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.png": (Image.fromarray(grey), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "colour.png": (Image.fromarray(colour), {}),
        "palette.png": (Image.fromarray(colour).quantize(32), {}),
        "grey.jpg": (Image.fromarray(grey), {"quality": 90}),
        "progressive.jpg": (Image.fromarray(colour), {"progressive": True}),
        "cmyk.jpg": (Image.fromarray(colour).convert("CMYK"), {}),
        "raw.tif": (Image.fromarray(grey), {}),
        "deep.tif": (Image.fromarray(deep), {}),
        "lzw.tif": (Image.fromarray(colour), {"compression": "tiff_lzw"}),
        "deflate.tif": (Image.fromarray(deep), {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (Image.fromarray(grey), {"compression": "jpeg"}),
        "float.tif": (Image.fromarray(grey / np.float32(255)), {}),
        "grey.bmp": (Image.fromarray(grey), {}),
        "colour.bmp": (Image.fromarray(colour), {}),
    }
    files = {}
    for name, (image, options) in images.items():
        buffer = BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name[-3:].upper()), **options)
        files[name] = buffer.getvalue()
    files["big_endian.tif"] = plain_tiff(deep)
    for syntax in made.NATIVE:
        files[f"{syntax.keyword}.dcm"] = _bytes(made.dataset(deep, syntax=syntax))
    for syntax in (*made.LOSSLESS, *made.LOSSY):
        pixels = grey if syntax == uid.JPEGBaseline8Bit else made.grey_values(12, seed=seed)
        bits = 8 if pixels is grey else 12
        files[f"{syntax.keyword}.dcm"] = _bytes(
            made.compress(made.dataset(pixels, bits=bits), syntax, pixels)
        )
    files["deep.npy"] = _npy(np.stack([deep, deep]))
    files["deep.npz"] = _npz(images=np.stack([deep, deep]))
    files["packed.npz"] = _npz(zipfile.ZIP_DEFLATED, images=np.stack([grey, grey]))
    return files


def plain_tiff(pixels: np.ndarray, order: str = ">", photometric: int = 1) -> bytes:
    """An uncompressed 16-bit grey TIFF in Motorola (">") or Intel ("<") byte order."""
    height, width = pixels.shape
    # Tag, type (3 is 16 bits, 4 is 32 bits) and value.
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
    ]
    entries += [(277, 3, 1), (278, 4, height), (279, 4, 2 * pixels.size)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack(
            f"{order}HHI{'HH' if kind == 3 else 'I'}", tag, kind, 1, value, *(kind == 3) * [0]
        )
    data = pixels.astype(f"{order}u2").tobytes()
    magic = b"MM\0*" if order == ">" else b"II*\0"
    return magic + struct.pack(f"{order}I", 8 + len(data)) + data + directory + bytes(4)


def _bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save(dataset, buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


def _truncations(name: str, data: bytes, random_: random.Random) -> dict[str, bytes]:
    """Cut a sound file near its start, at random places, and by its last bytes."""
    # A deflated dataset may end in a byte of padding that nobody misses.
    last = 2 if name.startswith("Deflated") else 1
    places = {12, len(data) // 2, len(data) - last, len(data) - 7}
    places |= {random_.randrange(16, len(data) - 2) for _ in range(4)}
    stem, suffix = name.rsplit(".", 1)
    return {f"cut_{stem}_{place}.{suffix}": data[:place] for place in sorted(places)}


def _png_bit_flips(good: dict[str, bytes], random_: random.Random) -> dict[str, bytes]:
    """Flip single bits anywhere: every byte of a PNG is under a checksum or in a fixed place."""
    files = {}
    for name in ("grey.png", "deep.png", "colour.png"):
        for _ in range(12):
            data, bit = bytearray(good[name]), random_.randrange(8 * len(good[name]))
            data[bit // 8] ^= 1 << bit % 8
            files[f"flip_{name[:-4]}_{bit}.png"] = bytes(data)
    return files


def _content(seed: int) -> dict[str, bytes]:
    """Files whose content is nothing, or something else than their suffix says."""
    noise = np.random.default_rng(seed).bytes(4096)
    contents = {
        "empty": b"",
        "zeros": bytes(1000),
        "text": "Das ist kein Röntgenbild.\n".encode() * 40,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "json": json.dumps({"error": "no such image"}).encode(),
        "noise": b"\0" + noise,
        "pdf": b"%PDF-1.7\n" + noise[:200],
        "gif": b"GIF89a" + noise[:200],
        "zip": b"PK\x03\x04" + noise[:200],
        "short": b"x",
    }
    return {f"{kind}{suffix}": data for kind, data in contents.items() for suffix in SUFFIXES}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, data: bytes = b"", *, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(data)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _raster_damage(good: dict[str, bytes]) -> dict[str, bytes]:
    """Bombs, impossible headers, missing parts and pixels that are not numbers."""
    jpeg, bmp, tiff = good["grey.jpg"], good["grey.bmp"], good["big_endian.tif"]
    frame = jpeg.index(b"\xff\xc0")
    scan = jpeg.index(b"\xff\xda")
    directory = struct.unpack(">I", tiff[4:8])[0]
    progressive = good["progressive.jpg"]
    last_scan = progressive.rindex(b"\xff\xda")
    files = {
        "bomb.png": _png(60_000, 60_000, bytes(1000)),
        "bomb_wide.png": _png(2**31 - 1, 1, bytes(1000)),
        "zero_width.png": _png(0, 10),
        "few_rows.png": _png(64, 64, bytes(65 * 10)),
        "odd_depth.png": _png(64, 64, bytes(65 * 64), depth=7),
        "odd_colour.png": _png(64, 64, bytes(65 * 64), colour=5),
        "no_idat.png": good["grey.png"][:33] + _chunk(b"IEND", b""),
        "bomb.jpg": _patched(jpeg, frame + 5, struct.pack(">HH", 65_000, 65_000)),
        "zero_height.jpg": _patched(jpeg, frame + 5, b"\0\0"),
        "zero_width.jpg": _patched(jpeg, frame + 7, b"\0\0"),
        "no_components.jpg": _patched(jpeg, frame + 9, b"\0"),
        "deep.jpg": _patched(jpeg, frame + 4, b"\x0c"),
        "no_scan.jpg": jpeg[:scan] + b"\xff\xd9",
        "start_only.jpg": b"\xff\xd8\xff\xd9",
        "many_scans.jpg": progressive[:-2] + progressive[last_scan:-2] * 300 + b"\xff\xd9",
        "bomb.bmp": _patched(bmp, 18, struct.pack("<ii", 60_000, 60_000)),
        "zero_width.bmp": _patched(bmp, 18, struct.pack("<i", 0)),
        "taller.bmp": _patched(bmp, 22, struct.pack("<i", 400)),
        "odd_depth.bmp": _patched(bmp, 28, struct.pack("<H", 7)),
        "odd_compression.bmp": _patched(bmp, 30, struct.pack("<I", 77)),
        "directory_outside.tif": _patched(tiff, 4, struct.pack(">I", 1 << 30)),
        "directory_cycle.tif": _patched(tiff, 4, struct.pack(">I", 4)),
        "no_directory.tif": _patched(tiff, 4, bytes(4)),
    }
    for place, (name, value) in enumerate(
        [("width", 60_000), ("height", 60_000), ("bits", 13 << 16), ("compression", 9999 << 16)]
    ):
        files[f"absurd_{name}.tif"] = _patched(tiff, directory + 2 + 12 * place + 8, struct.pack(">I", value))
    files["bomb.tif"] = _patched(files["absurd_width.tif"], directory + 2 + 12 + 8, struct.pack(">I", 60_000))
    files["strip_outside.tif"] = _patched(tiff, directory + 2 + 12 * 5 + 8, struct.pack(">I", 1 << 29))
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus_inf", -np.inf)):
        pixels = np.ones((16, 16), np.float32)
        pixels[3, 5] = value
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "TIFF")
        files[f"{name}.tif"] = buffer.getvalue()
    return files


def _dicom_damage(seed: int) -> dict[str, bytes]:
    """DICOM files with an unusable header, unusable pixel data, or none."""
    values = made.grey_values(12, seed=seed)
    files: dict[str, bytes] = {}

    def add(name: str, change: Callable[[Dataset], object] = lambda dataset: None, **elements: Any) -> None:
        dataset = made.dataset(values, bits=12)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        change(dataset)
        files[f"{name}.dcm"] = _bytes(dataset)

    def text(keyword: str, value: str) -> Callable[[Dataset], object]:
        # Raw, because pydicom does not let such values be set.
        raw = RawDataElement(Tag(keyword), "DS", len(value), value.encode(), 0, False, True)
        return lambda dataset: dataset.__setitem__(raw.tag, raw)

    def without(*keywords: str) -> Callable[[Dataset], object]:
        return lambda dataset: [dataset.pop(keyword) for keyword in keywords]

    add("window_zero", WindowCenter=100, WindowWidth=0)
    add("window_negative", WindowCenter=100, WindowWidth=-5)
    add("window_exact_zero", WindowCenter=100, WindowWidth=0, VOILUTFunction="LINEAR_EXACT")
    add("window_sigmoid_zero", WindowCenter=100, WindowWidth=0, VOILUTFunction="SIGMOID")
    add("window_nan", text("WindowWidth", "nan"), WindowCenter=100)
    add("window_centre_inf", text("WindowCenter", "inf"), WindowWidth=100)
    add("window_word", text("WindowWidth", "wide"), WindowCenter=100)
    add("window_function", WindowCenter=100, WindowWidth=50, VOILUTFunction="CUBIC")
    add("slope_nan", text("RescaleSlope", "nan"), RescaleIntercept=0)
    add("slope_inf", text("RescaleSlope", "inf"), RescaleIntercept=0)
    add("slope_zero", RescaleSlope=0, RescaleIntercept=0)
    add("slope_overflow", RescaleSlope=1e308, RescaleIntercept=0)
    add("intercept_nan", text("RescaleIntercept", "nan"), RescaleSlope=1)
    add("rows_zero", Rows=0)
    add("columns_zero", Columns=0)
    add("rows_more", Rows=49)
    add("rows_absurd", Rows=65535)
    add("both_absurd", Rows=65535, Columns=65535)
    add("bits_allocated_7", BitsAllocated=7)
    add("bits_allocated_0", BitsAllocated=0)
    add("bits_stored_17", BitsStored=17)
    add("bits_stored_0", BitsStored=0)
    add("representation_7", PixelRepresentation=7)
    add("samples_3", SamplesPerPixel=3)
    add("samples_0", SamplesPerPixel=0)
    add("photometric_odd", PhotometricInterpretation="NONSENSE")
    add("photometric_rgb", PhotometricInterpretation="RGB")
    add("photometric_partial", PhotometricInterpretation="YBR_PARTIAL_420", SamplesPerPixel=3)
    add("palette_missing", PhotometricInterpretation="PALETTE COLOR")
    add("frames_more", NumberOfFrames=5)
    add("frames_negative", NumberOfFrames=-1)
    add("frames_absurd", NumberOfFrames=2_000_000_000)
    add("pixels_none", PixelData=b"")
    add("pixels_half", PixelData=values.tobytes()[: values.nbytes // 2])
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        add(f"no_{keyword.lower()}", without(keyword))
    add("no_photometric", without("PhotometricInterpretation"))
    add("no_pixels", without("PixelData"))
    add("report", without("PixelData", "Rows", "Columns"), Modality="SR")
    for name, item in (
        ("short", made.lut_item(np.arange(10), 0, 12)),
        ("depth_3", made.lut_item(np.arange(4096), 0, 3)),
        ("depth_40", made.lut_item(np.arange(4096), 0, 40)),
    ):
        if name == "short":
            item.LUTDescriptor = [4096, 0, 12]
        add(f"voi_lut_{name}", VOILUTSequence=[item])
        add(f"modality_lut_{name}", ModalityLUTSequence=[item])
    add("modality_lut_empty", ModalityLUTSequence=[Dataset()])
    files |= _dicom_floats()
    files |= _dicom_streams(values)
    return files


def _dicom_floats() -> dict[str, bytes]:
    """Parametric maps whose values are not numbers."""
    files = {}
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        floats = np.ones((16, 16), np.float32)
        floats[2, 3] = value
        dataset = made.dataset(np.zeros((16, 16), np.uint32))
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            dataset.pop(keyword)
        dataset.FloatPixelData = floats.tobytes()
        files[f"float_{name}.dcm"] = _bytes(dataset)
    return files


def _dicom_streams(values: np.ndarray) -> dict[str, bytes]:
    """Compressed pixel data that is garbage, cut, of another size, or not what the header says."""
    files = {}
    noise = np.random.default_rng(1).bytes(2000)

    def encapsulated(stream: bytes, syntax: uid.UID, pixels: np.ndarray, bits: int) -> bytes:
        dataset = made.dataset(pixels, bits=bits)
        # Without a stream only the empty offset table is left.
        dataset.PixelData = encapsulate([stream]) if stream else b"\xfe\xff\x00\xe0\0\0\0\0"
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
        return _bytes(dataset)

    for syntax in (*made.LOSSLESS, *made.LOSSY):
        bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
        pixels = (values >> 4).astype(np.uint8) if bits == 8 else values
        sound = made.compress(made.dataset(pixels, bits=bits), syntax, pixels)
        stream = get_frame(sound.PixelData, 0, number_of_frames=1)
        name = syntax.keyword
        files[f"garbage_{name}.dcm"] = encapsulated(noise, syntax, pixels, bits)
        files[f"cut_stream_{name}.dcm"] = encapsulated(stream[: len(stream) // 2], syntax, pixels, bits)
        files[f"no_fragment_{name}.dcm"] = encapsulated(b"", syntax, pixels, bits)
        files[f"text_{name}.dcm"] = encapsulated(b"no image here " * 20, syntax, pixels, bits)
        other = np.ascontiguousarray(pixels[:40, :50])
        smaller = made.compress(made.dataset(other, bits=bits), syntax, other)
        stream = get_frame(smaller.PixelData, 0, number_of_frames=1)
        files[f"other_size_{name}.dcm"] = encapsulated(stream, syntax, pixels, bits)
        files[f"mislabelled_{name}.dcm"] = _relabelled(_bytes(made.dataset(pixels, bits=bits)), syntax)
    packed = encapsulated(noise, uid.RLELossless, values, 12)
    for name, syntax in (("video", uid.MPEG4HP41), ("unknown", uid.UID("1.2.3.4.5.6.7"))):
        files[f"syntax_{name}.dcm"] = _relabelled(packed, syntax)
    files["compressed_as_native.dcm"] = _relabelled(packed, uid.ExplicitVRLittleEndian)
    files["preamble_only.dcm"] = bytes(128) + b"DICM"
    files["preamble_noise.dcm"] = bytes(128) + b"DICM" + noise
    files["preamble_text.dcm"] = bytes(128) + b"DICM" + b"This is not a data set. " * 30
    files["no_preamble_noise.dcm"] = b"\x08\0\x05\0" + noise
    files["deflate_bomb.dcm"] = _deflate_bomb()
    return files


def _relabelled(data: bytes, syntax: uid.UID) -> bytes:
    """Change the transfer syntax that a file names, and nothing else."""
    place = data.index(b"\x02\0\x10\0UI")
    length = struct.unpack("<H", data[place + 6 : place + 8])[0]
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = struct.unpack("<I", data[140:144])[0] - length + len(name)
    meta = data[:140] + struct.pack("<I", group) + data[144 : place + 6] + struct.pack("<H", len(name)) + name
    return meta + data[place + 8 + length :]


def _deflate_bomb() -> bytes:
    """A deflated dataset of under a megabyte that inflates to more than 600 MB."""
    head = _bytes(made.dataset(np.zeros((4, 4), np.uint16), syntax=uid.DeflatedExplicitVRLittleEndian))
    start = 144 + struct.unpack("<I", head[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head[:start] + block * 600 + b"\x03\0"


def _npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def _npz(compression: int = zipfile.ZIP_STORED, **members: np.ndarray | bytes) -> bytes:
    """An archive with fixed times, so that the same arrays give the same bytes."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, array in members.items():
            data = array if isinstance(array, bytes) else _npy(array)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), data, compression)
    return buffer.getvalue()


def _array_damage(seed: int) -> dict[str, bytes]:
    """Arrays that are pickled, mistyped, misshapen, damaged or not there."""
    grey = made.grey_values(8, seed=seed)
    images = np.stack([grey, grey])
    floats = images / 255.0
    broken = floats.copy()
    broken[0, 3, 4] = np.nan
    arrays = {
        "nan": broken,
        "inf": np.where(np.isnan(broken), np.inf, broken),
        "range": floats * 255,
        "negative": floats - 0.5,
        "int64": images.astype(np.int64),
        "uint32": images.astype(np.uint32),
        "complex": floats.astype(complex),
        "text": np.array([["a", "b"]]),
        "dates": np.zeros((2, 8, 8), "datetime64[s]"),
        "flat": grey,
        "deep": images[None, ..., None],
        "channels_4": np.stack([images] * 4, -1),
        "channels_first": np.stack([images] * 3, 1),
        "no_pixels": np.zeros((2, 0, 8), np.uint8),
        "no_images": np.zeros((0, 8, 8), np.uint8),
        "scalar": np.array(3, np.uint8),
    }
    pickled = _npy(np.array([grey, {"a": 1}], object), pickled=True)
    files = {f"array_{name}.npy": _npy(array) for name, array in arrays.items()}
    files |= {f"array_{name}.npz": _npz(images=array) for name, array in arrays.items()}
    files |= {"pickled.npy": pickled, "pickled.npz": _npz(images=pickled)}
    sound = _npy(images)
    files["longer.npy"] = sound + b"\0"
    files["promise.npy"] = sound.replace(b"(2, 48, 64), ", b"(9, 48, 64), ")
    files["promise.npz"] = _npz(images=files["promise.npy"])
    files["promise_negative.npy"] = sound.replace(b"(2, 48, 64), ", b"(-2,48, 64), ")
    files["code.npy"] = sound.replace(b"(2, 48, 64), ", b"exit(12345), ")
    files["other_key.npz"] = _npz(pictures=images)
    files["no_members.npz"] = _npz()
    files["text_member.npz"] = _npz(images=b"no array here")
    packed = bytearray(_npz(zipfile.ZIP_DEFLATED, images=images))
    packed[len(packed) // 2] ^= 0x55
    files["checksum.npz"] = bytes(packed)
    for suffix in (".npz", ".npy"):
        files |= {f"empty{suffix}": b"", f"text{suffix}": b"plain text\n" * 9, f"zeros{suffix}": bytes(999)}
    return files
