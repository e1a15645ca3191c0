"""DICOM: display pixels equal a computation composed independently from pydicom's own functions."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.decoders.base import get_decoder

from data import made_dicom as made
from scanprior.data.readers import dicom, looks_like_dicom, read_image, read_reference
from scanprior.data.readers.dicom import read_dicom, read_header
from scanprior.errors import ImageReadError


def reference_pixels(path: Path, frame: int = 0) -> np.ndarray:
    """Display pixels (H, W) by pydicom alone: modality, VOI, then the range each step promises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(path)
        stored = dataset.pixel_array
        if dataset.get("NumberOfFrames", 1) > 1:
            stored = stored[frame]
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation
        lowest = -(2 ** (bits - 1)) if signed else 0
        ends = np.array([lowest, lowest + 2**bits - 1], stored.dtype if bits > 1 else np.uint8)
        values = apply_modality_lut(stored, dataset)
        shown = apply_voi_lut(values, dataset).astype(np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowWidth" in dataset:
        # pydicom spreads the window over what the ends of the stored range become, also when they swap.
        low, high = apply_modality_lut(ends, dataset).astype(float)
        if "ModalityLUTSequence" in dataset:
            low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif bits <= 8 and "ModalityLUTSequence" not in dataset:
        low, high = sorted(apply_modality_lut(ends, dataset).astype(float))
    else:
        inside = stored != dataset.get("PixelPaddingValue", 1 << 40)
        low, high = shown[inside].min(), shown[inside].max()
    unit = np.clip((shown - low) / (high - low), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    return unit * (255 if bits <= 8 else 65535)


def check_grey(path: Path, frame: int = 0) -> np.ndarray:
    image = read_image(path, frame=frame)
    expected = reference_pixels(path, frame)
    assert image.pixels.shape == (*expected.shape, 1)
    assert image.pixels.dtype == (np.uint8 if image.source_bits <= 8 else np.uint16)
    # Half a level is rounding; the rest is the order of floating-point operations.
    assert np.abs(image.pixels[..., 0] - expected).max() <= 0.5 + 1e-6
    return image.pixels[..., 0]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [6, 8, 10, 12, 15, 16])
def test_depth_sign_and_polarity(tmp_path: Path, bits: int, signed: bool, photometric: str) -> None:
    values = made.grey_values(bits, signed=signed)
    dataset = made.dataset(values, bits=bits, photometric=photometric)
    pixels = check_grey(made.save(dataset, tmp_path / "a.dcm"))
    rises = np.corrcoef(values.ravel(), pixels.ravel())[0, 1]
    assert rises < -0.99 if photometric == "MONOCHROME1" else rises > 0.99
    assert read_image(tmp_path / "a.dcm").source_bits == bits


WINDOWS = {
    "linear": {"WindowCenter": 1500, "WindowWidth": 900},
    "named": {"WindowCenter": 1500.5, "WindowWidth": 1, "VOILUTFunction": "LINEAR"},
    "exact": {"WindowCenter": 1500.25, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
    "exact_wide": {"WindowCenter": 1500, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1500, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
    "several": {"WindowCenter": [800, 3000], "WindowWidth": [1000, 50]},
}


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 0.75, "RescaleIntercept": 120.5}])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows(tmp_path: Path, window: dict, photometric: str, rescale: dict) -> None:
    values = made.grey_values(12)
    dataset = made.dataset(values, bits=12, photometric=photometric, **window, **rescale)
    check_grey(made.save(dataset, tmp_path / "a.dcm"))
    assert read_image(tmp_path / "a.dcm").meta["display"] == "window"


@pytest.mark.parametrize("slope", [2.5, -1.5])
def test_rescale_without_a_window(tmp_path: Path, slope: float) -> None:
    values = made.grey_values(12, signed=True)
    dataset = made.dataset(values, bits=12, RescaleSlope=slope, RescaleIntercept=-1024)
    pixels = check_grey(made.save(dataset, tmp_path / "a.dcm"))
    assert (np.corrcoef(values.ravel(), pixels.ravel())[0, 1] > 0) == (slope > 0)


@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_voi_table_is_preferred_to_the_window(tmp_path: Path, depth: int) -> None:
    # Values before the first entry and after the last one take the ends.
    table = np.rint((np.arange(3000) / 2999) ** 2 * (2**depth - 1)).astype(int)
    item = made.lut_item(table, 600, depth)
    dataset = made.dataset(
        made.grey_values(12), bits=12, VOILUTSequence=[item], WindowCenter=9, WindowWidth=2
    )
    path = made.save(dataset, tmp_path / "a.dcm")
    stored = dcmread(path).pixel_array.astype(int)
    # pydicom overflows for tables of 8 bits, so the table is applied here by hand.
    expected = table[np.clip(stored - 600, 0, 2999)] / (2**depth - 1) * 65535
    image = read_image(path)
    assert np.abs(image.pixels[..., 0] - expected).max() <= 0.5 + 1e-6 and image.meta["display"] == "lut"
    if depth > 8:
        check_grey(path)


@pytest.mark.parametrize("words", [True, False], ids=["words", "packed"])
@pytest.mark.parametrize("syntax", made.NATIVE[:3], ids=lambda syntax: syntax.keyword)
def test_tables_kept_as_bytes(tmp_path: Path, syntax: uid.UID, words: bool) -> None:
    depth = 12 if words else 8
    table = (np.arange(4096)[::-1] >> (12 - depth)).astype(int)
    item = made.lut_item(table, 0, depth)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    item["LUTData"].VR = "OW"
    item.LUTData = table.astype(f"{order}u2" if words else "u1").tobytes()
    dataset = made.dataset(made.grey_values(12), bits=12, syntax=syntax, VOILUTSequence=[item])
    pixels = read_image(made.save(dataset, tmp_path / "a.dcm")).pixels[..., 0]
    assert np.abs(pixels - table[made.grey_values(12)] / (2**depth - 1) * 65535).max() <= 0.5 + 1e-6


def test_modality_table_with_and_without_a_window(tmp_path: Path) -> None:
    table = np.rint(np.sqrt(np.arange(3500) / 3499) * 65535).astype(int)
    for voi in ({}, {"WindowCenter": 30_000, "WindowWidth": 20_000}):
        dataset = made.dataset(made.grey_values(12), bits=12, **voi)
        dataset.ModalityLUTSequence = [made.lut_item(table, 200, 16)]
        check_grey(made.save(dataset, tmp_path / "a.dcm"))


def test_a_table_that_is_not_monotonic_keeps_its_own_range(tmp_path: Path) -> None:
    table = np.abs(np.arange(4096) - 2000)
    dataset = made.dataset(made.grey_values(12), bits=12)
    dataset.ModalityLUTSequence = [made.lut_item(table, 0, 16)]
    pixels = check_grey(made.save(dataset, tmp_path / "a.dcm"))
    assert pixels.min() == 0 and pixels.max() == 65535


@pytest.mark.parametrize("signed", [False, True])
def test_padding_does_not_set_the_range(tmp_path: Path, signed: bool) -> None:
    values = made.grey_values(12, signed=signed)
    values[:10] = padding = -2000 if signed else 4095
    values[10:] = np.where(values[10:] == padding, padding + (1 if signed else -1), values[10:])
    inside = values[values != padding]
    dataset = made.dataset(values, bits=12)
    dataset.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
    pixels = check_grey(made.save(dataset, tmp_path / "a.dcm"))
    assert pixels[values == inside.min()].max() == 0 and pixels[values == inside.max()].min() == 65535
    dataset.add_new("PixelPaddingRangeLimit", "SS" if signed else "US", padding + (300 if signed else -300))
    ranged = read_image(made.save(dataset, tmp_path / "b.dcm")).pixels[..., 0]
    kept = values[values > padding + 300] if signed else values[values < padding - 300]
    assert ranged[values == kept.max()].min() == 65535 and ranged[values == kept.min()].max() == 0


def test_eight_bits_without_a_window_equal_the_png_of_them(tmp_path: Path) -> None:
    values = (made.grey_values(8) // 2 + 20).astype(np.uint8)
    image = read_image(made.save(made.dataset(values), tmp_path / "a.dcm"))
    assert np.array_equal(image.pixels[..., 0], values) and image.meta["display"] == "stored range"


def test_an_inverse_presentation_shape_does_not_invert_twice(tmp_path: Path) -> None:
    values = made.grey_values(12)
    for shape in ("INVERSE", None):
        dataset = made.dataset(values, bits=12, photometric="MONOCHROME1")
        if shape:
            dataset.PresentationLUTShape = shape
        pixels = read_image(made.save(dataset, tmp_path / "a.dcm")).pixels[..., 0]
        assert pixels[values == values.max()].max() == 0


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    polarity=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    function=st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    centre=st.integers(-40_000, 70_000),
    width=st.integers(1, 70_000),
    slope=st.sampled_from([None, 1, 0.5, 3.25, -2]),
    seed=st.integers(0, 99),
)
def test_any_header_agrees_with_pydicom(
    tmp_path_factory, bits, signed, polarity, function, centre, width, slope, seed
) -> None:
    values = made.grey_values(bits, signed=signed, shape=(9, 11), seed=seed)
    dataset = made.dataset(values, bits=bits, photometric=polarity)
    if function is not None:
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    if slope is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, -100
    check_grey(made.save(dataset, tmp_path_factory.mktemp("any") / "a.dcm"))


# Transfer syntaxes


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", made.NATIVE, ids=lambda syntax: syntax.keyword)
def test_native_syntaxes(tmp_path: Path, syntax: uid.UID, bits: int) -> None:
    values = made.grey_values(bits, shape=(47, 63))  # an odd number of bytes
    path = made.save(made.dataset(values, bits=bits, syntax=syntax), tmp_path / "a.dcm")
    check_grey(path)
    assert read_image(path).meta["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", made.LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_lossless_syntaxes_give_the_pixels_of_the_native_file(
    tmp_path: Path, syntax: uid.UID, bits: int, signed: bool
) -> None:
    values = made.grey_values(bits, signed=signed)
    native = read_image(made.save(made.dataset(values, bits=bits), tmp_path / "a.dcm"))
    dataset = made.dataset(values, bits=bits)
    if signed and syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        made.compress(dataset, syntax, values.view(f"u{values.itemsize}") & (2**bits - 1))
    else:
        made.compress(dataset, syntax, values)
    image = read_image(made.save(dataset, tmp_path / "b.dcm"))
    assert np.array_equal(image.pixels, native.pixels)
    assert image.meta["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("syntax", made.LOSSY, ids=lambda syntax: syntax.keyword)
def test_lossy_syntaxes_come_close(tmp_path: Path, syntax: uid.UID) -> None:
    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    y, x = np.mgrid[0:48, 0:64]
    values = np.rint((0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 7)) * (2**bits - 1)).astype(
        f"u{(bits + 7) // 8}"
    )
    dataset = made.compress(made.dataset(values, bits=bits), syntax, values)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = (
        2 ** (bits - 1),
        2**bits,
        "LINEAR_EXACT",
    )
    image = read_image(made.save(dataset, tmp_path / "a.dcm"))
    expected = values / 2.0**bits
    assert np.abs(image.pixels[..., 0] / (255 if bits == 8 else 65535) - expected).max() < 0.03


def test_every_decoder_named_is_installed_and_none_is_gpl() -> None:
    for syntax, plugin in dicom._PLUGINS.items():
        assert plugin in get_decoder(syntax).available_plugins
    # The GPL part, pylibjpeg-libjpeg, would serve exactly these through the plugin of that name.
    jpeg = (*made.LOSSLESS[2:5], uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless)
    assert all(dicom._PLUGINS[syntax] != "pylibjpeg" for syntax in jpeg)


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = made.grey_values(12)
    dataset = made.compress(made.dataset(values, bits=12), uid.JPEGLosslessSV1, values)
    path = made.save(dataset, tmp_path / "a.dcm")
    monkeypatch.setattr(get_decoder(uid.JPEGLosslessSV1), "_available", {})
    with pytest.raises(ImageReadError, match="needs the decoder imagecodecs"):
        read_image(path)


def test_a_jpeg_of_another_size_than_its_header(tmp_path: Path) -> None:
    values = made.grey_values(8)
    dataset = made.compress(made.dataset(values), uid.JPEGBaseline8Bit, values)
    dataset.Rows = 47
    with pytest.raises(ImageReadError, match=r"\(48, 64\) where the header says \(47, 64\)"):
        read_image(made.save(dataset, tmp_path / "a.dcm"))


# Frames, colour, other pixel kinds


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless])
def test_frames(tmp_path: Path, syntax: uid.UID) -> None:
    frames = np.stack([made.grey_values(12, seed=seed) for seed in range(3)])
    dataset = made.dataset(frames, bits=12, frames=3)
    if syntax.is_encapsulated:
        made.compress(dataset, syntax, frames)
    path = made.save(dataset, tmp_path / "a.dcm")
    for frame in range(3):
        check_grey(path, frame)
        by_reference = read_reference(f"a.dcm#{frame}", tmp_path)
        assert np.array_equal(by_reference.pixels, read_image(path, frame=frame).pixels)
    assert not np.array_equal(read_image(path, frame=1).pixels, read_image(path).pixels)
    assert read_image(path).meta["frames"] == 3
    with pytest.raises(ImageReadError, match="frame 3 asked for, but it has 3"):
        read_image(path, frame=3)


def test_transforms_of_enhanced_frames(tmp_path: Path) -> None:
    """Per-frame groups win over shared ones, and both over the data set."""
    frames = np.stack([made.grey_values(12)] * 2)
    dataset = made.dataset(frames, bits=12, frames=2)
    shared, groups = Dataset(), []
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -100
    shared.PixelValueTransformationSequence = [rescale]
    for centre in (1000, 5000):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, 1500
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = groups
    path = made.save(dataset, tmp_path / "a.dcm")
    for frame, centre in enumerate((1000, 5000)):
        flat = made.dataset(frames[frame], bits=12, RescaleSlope=2, RescaleIntercept=-100)
        flat.WindowCenter, flat.WindowWidth = centre, 1500
        expected = check_grey(made.save(flat, tmp_path / "b.dcm"))
        assert np.array_equal(read_image(path, frame=frame).pixels[..., 0], expected)


# pydicom converts YBR of 8 bits only.
@pytest.mark.parametrize(("photometric", "bits"), [("RGB", 8), ("RGB", 16), ("YBR_FULL", 8)])
def test_colour(tmp_path: Path, photometric: str, bits: int) -> None:
    grey = made.grey_values(bits)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    path = made.save(made.dataset(colour, bits=bits, photometric=photometric), tmp_path / "a.dcm")
    expected = colour if photometric == "RGB" else convert_color_space(colour, "YBR_FULL", "RGB")
    image = read_image(path)
    assert np.array_equal(image.pixels, expected) and image.pixels.dtype == colour.dtype
    equal = made.dataset(np.stack([grey] * 3, -1), bits=bits, photometric="RGB")
    assert read_image(made.save(equal, tmp_path / "b.dcm")).pixels.shape == (48, 64, 1)


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.JPEGLossless]
)
def test_compressed_colour(tmp_path: Path, syntax: uid.UID) -> None:
    grey = made.grey_values(8)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    dataset = made.compress(made.dataset(colour, photometric="RGB"), syntax, colour)
    assert np.array_equal(read_image(made.save(dataset, tmp_path / "a.dcm")).pixels, colour)


def test_jpeg_colour_follows_its_photometric_interpretation(tmp_path: Path) -> None:
    grey = made.grey_values(8)
    colour = np.stack([grey, 255 - grey, grey // 2], -1)
    dataset = made.dataset(colour, photometric="YBR_FULL_422")
    made.compress(dataset, uid.JPEGBaseline8Bit, colour)
    pixels = read_image(made.save(dataset, tmp_path / "a.dcm")).pixels
    assert np.abs(pixels.astype(int) - colour).mean() < 12  # subsampled chroma of noisy pixels
    assert np.array_equal(pixels, dcmread(tmp_path / "a.dcm").pixel_array)


@pytest.mark.parametrize("depth", [8, 16])
def test_palettes(tmp_path: Path, depth: int) -> None:
    dataset = made.dataset(made.grey_values(8), photometric="PALETTE COLOR")
    tables = [np.arange(256), 255 - np.arange(256), np.arange(256) // 2]
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, depth])
        scaled = table if depth == 8 else table * 257
        setattr(dataset, f"{name}PaletteColorLookupTableData", scaled.astype(f"u{depth // 8}").tobytes())
    path = made.save(dataset, tmp_path / "a.dcm")
    colours = apply_color_lut(dcmread(path).pixel_array, dcmread(path)) // (1 if depth == 8 else 257)
    assert np.array_equal(read_image(path).pixels, colours.astype(np.uint8))


def test_one_bit_thirty_two_bits_and_floats(tmp_path: Path) -> None:
    mask = made.grey_values(8, shape=(16, 16)) > 100
    dataset = made.dataset(mask.astype(np.uint8))
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit, dataset.PixelData = 0, np.packbits(mask.ravel(), bitorder="little").tobytes()
    image = read_image(made.save(dataset, tmp_path / "bits.dcm"))
    assert np.array_equal(image.pixels[..., 0], mask * np.uint8(255))

    deep = made.grey_values(32)
    check_grey(made.save(made.dataset(deep, bits=32), tmp_path / "deep.dcm"))

    floats = np.linspace(-2, 6, 48 * 64, dtype=np.float32).reshape(48, 64)
    dataset = made.dataset(deep)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        dataset.pop(keyword)
    dataset.FloatPixelData = floats.tobytes()
    pixels = read_image(made.save(dataset, tmp_path / "floats.dcm")).pixels[..., 0]
    assert np.abs(pixels - (floats.astype(float) + 2) / 8 * 65535).max() <= 1


# Files and headers


@pytest.mark.parametrize("syntax", made.NATIVE[:3], ids=lambda syntax: syntax.keyword)
def test_a_dataset_without_preamble(tmp_path: Path, syntax: uid.UID) -> None:
    path = made.save(made.dataset(made.grey_values(12), bits=12, syntax=syntax), tmp_path / "a.dcm")
    expected = read_image(path).pixels
    data = path.read_bytes()
    without = tmp_path / "IM0001"
    without.write_bytes(data[132:])  # file meta information first
    assert np.array_equal(read_image(without).pixels, expected)
    group = int.from_bytes(data[140:144], "little")
    without.write_bytes(data[144 + group :])  # the data set alone
    assert np.array_equal(read_image(without).pixels, expected)
    assert looks_like_dicom(path) and not looks_like_dicom(without)
    without.rename(tmp_path / "a.png")
    with pytest.raises(ImageReadError):
        read_image(tmp_path / "a.png")


def test_header(tmp_path: Path) -> None:
    dataset = made.dataset(np.stack([made.grey_values(12)] * 2), bits=12, frames=2)
    dataset.ViewPosition, dataset.BodyPartExamined, dataset.ImageLaterality = "PA", "CHEST", "L"
    dataset.InstitutionName, dataset.PatientSex, dataset.PatientAge = "General Hospital", "F", "018M"
    path = made.save(dataset, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-5000])  # the pixels are not needed
    header = read_header(path)
    assert (header.patient_id, header.study_uid, header.series_uid) == ("ID-PLANTED", "1.2.3", "1.2.3.1")
    assert (header.modality, header.view, header.body_part, header.laterality) == ("CR", "PA", "CHEST", "L")
    assert (header.site, header.sex, header.age_years) == ("General Hospital", "F", 1.5)
    assert (header.frames, header.rows, header.columns) == (2, 48, 64)
    assert "PLANTED" not in repr(header) and "1.2.3" not in repr(header)
    bare = read_header(made.save(made.dataset(made.grey_values(8)), tmp_path / "b.dcm"))
    assert (bare.view, bare.sex, bare.age_years, bare.frames) == (None, None, None, 1)


@pytest.mark.parametrize(
    ("age", "years"),
    [("045Y", 45), ("006M", 0.5), ("026W", 0.498), ("007D", 0.019), ("45", None), ("", None)],
)
def test_ages(age: str, years: float | None) -> None:
    assert dicom._age_years(age) == years


def test_header_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("patient,label\n" * 20)
    for path, reason in (("a.dcm", "not a DICOM"), ("b.dcm", "no such file"), (".", "folder")):
        with pytest.raises(ImageReadError, match=reason):
            read_header(tmp_path / path)


def test_meta_identifies_nobody(tmp_path: Path) -> None:
    dataset = made.dataset(made.grey_values(12), bits=12)
    for keyword in (
        "PatientName",
        "PatientID",
        "AccessionNumber",
        "InstitutionName",
        "StationName",
        "StudyDescription",
        "ReferringPhysicianName",
        "OperatorsName",
        "DeviceSerialNumber",
        "ImageComments",
        "PatientAddress",
    ):
        setattr(dataset, keyword, "Planted")
    dataset.PatientBirthDate, dataset.PixelSpacing = "19480203", [0.2, 0.15]
    dataset.ViewPosition = "AP"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.BodyPartExamined = "Planted, Name 1948"
        meta = read_dicom(made.save(dataset, tmp_path / "a.dcm")).meta
    assert "lanted" not in str(meta) and "1948" not in str(meta) and "1.2.3" not in str(meta)
    assert meta["view_position"] == "AP" and "body_part" not in meta
    assert (meta["row_spacing"], meta["column_spacing"]) == (0.2, 0.15)
    assert all(isinstance(value, (str, int, float)) for value in meta.values())
