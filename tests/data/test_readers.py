"""Raster files and arrays: what is read equals what was written, and nothing damaged gets through."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import bad_files, made_dicom
from scanprior.data.readers import (
    ImageData,
    Upload,
    at_most,
    is_image_path,
    looks_like_dicom,
    read_image,
    read_reference,
)
from scanprior.data.readers.array import npz_members, open_array
from scanprior.data.readers.image import MAX_PIXELS, _png_bytes
from scanprior.errors import ImageReadError

GREY = made_dicom.grey_values(8)
DEEP = made_dicom.grey_values(16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def check_contract(image: ImageData) -> None:
    assert image.pixels.ndim == 3 and image.pixels.shape[2] in (1, 3)
    assert image.pixels.dtype in (np.uint8, np.uint16) and image.pixels.dtype.isnative
    assert image.pixels.flags.c_contiguous and image.pixels.size


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_files_keep_every_pixel(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    image = read_image(saved(tmp_path / f"a.{suffix}", pixels))
    check_contract(image)
    assert np.array_equal(image.pixels, pixels.reshape(48, 64, -1)) and image.pixels.dtype == np.uint8
    assert image.source_bits == 8


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_sixteen_bit_tiff_keeps_its_depth(tmp_path: Path, compression: str | None) -> None:
    image = read_image(saved(tmp_path / "a.tif", DEEP, compression=compression))
    assert image.pixels.dtype == np.uint16 and image.source_bits == 16
    assert np.array_equal(image.pixels[..., 0], DEEP)


def test_sixteen_bit_png_and_plain_tiff(tmp_path: Path) -> None:
    (tmp_path / "b.tif").write_bytes(bad_files.plain_tiff(DEEP))
    for path in (saved(tmp_path / "a.png", DEEP), tmp_path / "b.tif"):
        image = read_image(path)
        check_contract(image)
        assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels[..., 0], DEEP)


def test_white_is_zero_is_inverted_at_every_depth(tmp_path: Path) -> None:
    (tmp_path / "deep.tif").write_bytes(bad_files.plain_tiff(DEEP, "<", photometric=0))
    assert np.array_equal(read_image(tmp_path / "deep.tif").pixels[..., 0], 65535 - DEEP)
    saved(tmp_path / "grey.tif", GREY, tiffinfo={262: 0})
    stored = (tmp_path / "grey.tif").read_bytes()
    assert struct.pack("<HHIH", 262, 3, 1, 0) in stored  # Pillow wrote WhiteIsZero, hence inverted samples
    pixels = read_image(tmp_path / "grey.tif").pixels[..., 0]
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "grey.tif")))


def test_one_bit_palette_and_alpha(tmp_path: Path) -> None:
    bits = GREY > 100
    image = read_image(saved(tmp_path / "bits.png", Image.fromarray(bits)))
    assert np.array_equal(image.pixels[..., 0], bits * np.uint8(255)) and image.source_bits == 1
    palette = Image.fromarray(COLOUR).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path / "palette.png", palette)).pixels, expected)
    clear = saved(tmp_path / "clear.png", palette, transparency=0)
    assert np.array_equal(read_image(clear).pixels, expected)  # dropped, not composited
    alpha = np.dstack([COLOUR, GREY])
    assert np.array_equal(read_image(saved(tmp_path / "rgba.png", alpha)).pixels, COLOUR)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())])
    assert np.array_equal(read_image(saved(tmp_path / "la.png", grey_alpha)).pixels[..., 0], GREY)


def test_three_equal_channels_become_one(tmp_path: Path) -> None:
    equal = np.stack([GREY] * 3, -1)
    assert read_image(saved(tmp_path / "a.png", equal)).pixels.shape == (48, 64, 1)
    assert read_image(saved(tmp_path / "a.jpg", equal)).pixels.shape == (48, 64, 1)
    equal[-1, -1, 2] ^= 1
    assert read_image(saved(tmp_path / "b.png", equal)).pixels.shape == (48, 64, 3)
    grey_palette = Image.fromarray(GREY).convert("P")
    assert np.array_equal(read_image(saved(tmp_path / "p.png", grey_palette)).pixels[..., 0], GREY)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_equals_pillow(tmp_path: Path, options: dict[str, object]) -> None:
    path = saved(tmp_path / "a.jpg", COLOUR, quality=80, **options)
    assert np.array_equal(read_image(path).pixels, np.asarray(Image.open(path)))


def test_cmyk_jpeg_is_rgb_and_right_way_up(tmp_path: Path) -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 250
    path = saved(tmp_path / "a.jpg", Image.fromarray(red).convert("CMYK"), quality=95)
    assert np.abs(read_image(path).pixels.astype(int) - red).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    # Where EXIF says that the stored row 0 and column 0 lie on the upright picture.
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.fliplr(np.rot90(a, -1)),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.fliplr(np.rot90(a, 1)),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", GREY, exif=exif)
    stored = np.asarray(Image.open(path))
    assert np.array_equal(read_image(path).pixels[..., 0], turned(stored))
    path = saved(tmp_path / "a.tif", DEEP, exif=exif)
    assert np.array_equal(read_image(path).pixels[..., 0], turned(DEEP))


def test_values_without_a_display_range_are_stretched(tmp_path: Path) -> None:
    values = np.linspace(-3.5, 7.25, 48 * 64, dtype=np.float32).reshape(48, 64)
    image = read_image(saved(tmp_path / "f.tif", values))
    assert image.pixels.dtype == np.uint16
    expected = np.rint((values.astype(float) + 3.5) / 10.75 * 65535)
    assert np.abs(image.pixels[..., 0] - expected).max() <= 1
    constant = read_image(saved(tmp_path / "c.tif", np.full((8, 8), 3.0, np.float32)))
    assert not constant.pixels.any()
    large = np.array([[0, 2**31], [2**32 - 1, 1]], np.uint32)  # Pillow reads these as negative
    signed = saved(tmp_path / "u.tif", large.view(np.int32)).read_bytes()
    sample_format = struct.pack("<HHIH", 339, 3, 1, 2)
    assert sample_format in signed
    (tmp_path / "u.tif").write_bytes(signed.replace(sample_format, struct.pack("<HHIH", 339, 3, 1, 1)))
    assert read_image(tmp_path / "u.tif").pixels[..., 0].tolist() == [[0, 32768], [65535, 0]]


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(DEEP), Image.fromarray(COLOUR)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert np.array_equal(read_image(path).pixels[..., 0], GREY)
    assert np.array_equal(read_image(path, frame=1).pixels[..., 0], DEEP)
    assert np.array_equal(read_reference(f"{path}#2").pixels, COLOUR)
    for frame in (3, -1):
        with pytest.raises(ImageReadError, match="frame"):
            read_image(path, frame=frame)
    with pytest.raises(ImageReadError, match="frame 1"):
        read_image(saved(tmp_path / "b.png", GREY), frame=1)


@pytest.mark.parametrize(("size", "expected"), [(None, 512), (20, 64), (33, 128), (100, 256), (129, 512)])
def test_draft_keeps_twice_the_size_asked_for(tmp_path: Path, size: int | None, expected: int) -> None:
    smooth = np.asarray(Image.fromarray(GREY).resize((640, 512), Image.Resampling.BICUBIC))
    path = saved(tmp_path / "a.jpg", smooth, quality=95)
    image = read_image(path, min_size=size)
    assert image.pixels.shape[0] == expected
    reduced = Image.fromarray(smooth).resize(image.pixels.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(image.pixels[..., 0].astype(int) - np.asarray(reduced)).mean() < 3
    assert read_image(saved(tmp_path / "a.png", smooth), min_size=20).pixels.shape[0] == 512


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    png = saved(tmp_path / "a.png", GREY)
    for name in ("b.jpg", "c.dcm", "d", "e.png#1"):
        (tmp_path / name).write_bytes(png.read_bytes())
        assert np.array_equal(read_reference(name, tmp_path).pixels[..., 0], GREY)


def test_a_reason_names_what_was_found(tmp_path: Path) -> None:
    for name, content, reason in (
        ("a.png", b"", "empty"),
        ("b.png", "kein Bild: ä".encode(), "content is text"),
        ("c.png", b"%PDF-1.4", "PDF"),
        ("d.png", bad_files._png(60_000, 60_000), str(MAX_PIXELS)),
        ("e.png", saved(tmp_path / "z.png", GREY).read_bytes()[:-30], "truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_interlaced_and_short_png_rows(tmp_path: Path) -> None:
    """A black last row is no sign of missing data, a short stream is, interlaced or not."""
    for depth, colour, channels in ((8, 0, 1), (8, 2, 3), (1, 0, 1), (4, 3, 1)):
        for interlaced in (False, True):
            needed = _png_bytes(13, 7, depth, colour, interlaced=interlaced)
            if not interlaced:
                assert needed == 7 * (1 + -(-13 * depth * channels // 8))
            for missing in (0, 1):
                header = struct.pack(">IIBBBBB", 13, 7, depth, colour, 0, 0, interlaced)
                palette = bad_files._chunk(b"PLTE", bytes(48)) if colour == 3 else b""
                path = tmp_path / "a.png"
                path.write_bytes(
                    b"\x89PNG\r\n\x1a\n"
                    + bad_files._chunk(b"IHDR", header)
                    + palette
                    + bad_files._chunk(b"IDAT", zlib.compress(bytes(needed - missing)))
                    + bad_files._chunk(b"IEND", b"")
                )
                if missing:
                    with pytest.raises(ImageReadError):
                        read_image(path)
                else:
                    assert read_image(path).pixels.shape == (7, 13, 1)


def test_pipes_and_odd_paths_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageReadError, match="regular"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(ImageReadError):
        read_image("a\0b.png")
    assert not looks_like_dicom(tmp_path / "pipe.png") and not looks_like_dicom(tmp_path)
    assert is_image_path("A.PNG") and is_image_path("b.dcm") and not is_image_path("labels.csv")


def test_references_stay_beneath_their_root(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", GREY)
    (tmp_path / "inner").mkdir()
    for reference in ("../a.png", "x/../../a.png", "../a.npz[images][0]"):
        with pytest.raises(ImageReadError, match="out of the root"):
            read_reference(reference, tmp_path / "inner")
    assert read_reference("inner/../a.png", tmp_path).pixels.shape == (48, 64, 1)
    assert read_reference(str(tmp_path / "a.png"), tmp_path / "inner").pixels.shape == (48, 64, 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_pixels_survive_png_and_tiff(tmp_path_factory, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    kind = data.draw(st.sampled_from(["u1", "u2", "rgb"]))
    shape = (height, width, 3) if kind == "rgb" else (height, width)
    count = int(np.prod(shape)) * (2 if kind == "u2" else 1)
    raw = data.draw(st.binary(min_size=count, max_size=count))
    pixels = np.frombuffer(raw, "u2" if kind == "u2" else "u1").reshape(shape)
    expected = pixels.reshape(height, width, -1)
    if kind == "rgb" and (pixels == pixels[..., :1]).all():
        expected = expected[..., :1]
    path = tmp_path_factory.mktemp("any") / "image"
    for format_ in ("PNG", "TIFF"):
        Image.fromarray(pixels).save(path, format_)
        assert np.array_equal(read_image(path).pixels, expected)


# Arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_npz_elements(tmp_path: Path, save) -> None:
    grey = np.stack([GREY, GREY[::-1]])
    arrays = {
        "grey": grey,
        "deep": np.stack([DEEP]).astype(">u2"),
        "colour": COLOUR[None],
        "column": grey[..., None],
        "fortran": np.asfortranarray(grey),
        "bits": grey > 99,
        "unit": grey / 255,
        "labels": np.arange(2),
    }
    path = tmp_path / "a.npz"
    save(path, **arrays)
    for key, expected in {
        "grey": grey[1][..., None],
        "colour": COLOUR,
        "column": grey[1][..., None],
        "fortran": grey[1][..., None],
        "bits": (grey > 99)[1][..., None] * np.uint8(255),
        "unit": np.rint(grey[1] / 255 * 65535).astype(np.uint16)[..., None],
        "deep": DEEP[..., None],
    }.items():
        image = read_reference(f"a.npz[{key}][{len(arrays[key]) - 1}]", tmp_path)
        check_contract(image)
        assert np.array_equal(image.pixels, expected), key
    assert npz_members(path) == {key: (array.shape, array.dtype.name) for key, array in arrays.items()}
    assert np.array_equal(open_array(path, "labels"), [0, 1])
    for reference in ("a.npz[grey][2]", "a.npz[nothing][0]"):
        with pytest.raises(ImageReadError):
            read_reference(reference, tmp_path)


def test_an_array_is_unpacked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch) -> None:
    import zipfile

    opened = []
    original = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, *a, **k: opened.append(1) or original(self, *a, **k)
    )
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.stack([GREY] * 5))
    before = len(opened)
    first = [read_reference(f"{path}[images][{i}]").pixels for i in range(5)]
    assert len(opened) == before + 2  # the header, then the content
    first[0][:] = 0  # handed out as a copy
    assert read_reference(f"{path}[images][0]").pixels.any()
    np.savez_compressed(path, images=np.stack([255 - GREY] * 4))
    assert np.array_equal(read_reference(f"{path}[images][0]").pixels[..., 0], 255 - GREY)


def test_npy_elements(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.stack([DEEP, DEEP.T.reshape(48, 64)]))
    assert np.array_equal(read_reference("a.npy[0]", tmp_path).pixels[..., 0], DEEP)
    with pytest.raises(ImageReadError, match="NumPy"):
        read_image(tmp_path / "a.npy")


def test_pickles_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    objects = np.empty(2, object)
    objects[:] = [GREY, DEEP]
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=objects)
    for reference in ("a.npy[0]", "a.npz[images][0]"):
        with pytest.raises(ImageReadError, match="pickled"):
            read_reference(reference, tmp_path)
    assert npz_members(tmp_path / "a.npz")["images"].dtype == "object"


# The corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return bad_files.make_bad_files(tmp_path_factory.mktemp("bad"), seed=7)


def test_every_bad_file_is_refused_with_one_sentence(corpus: list[Path]) -> None:
    assert len(set(corpus)) == len(corpus) >= 200
    slipped = []
    for path in corpus:
        try:
            read_reference(bad_files.reference(path))
            slipped.append(path.name)
        except ImageReadError as error:
            assert error.reason and "\n" not in str(error) and len(error.reason) < 300, path.name
    assert not slipped


def test_good_files_of_the_same_making_are_read(tmp_path: Path) -> None:
    """Otherwise the corpus would show nothing."""
    for name, data in bad_files.good_files(seed=7).items():
        (tmp_path / name).write_bytes(data)
        check_contract(read_reference(bad_files.reference(tmp_path / name)))


def test_an_upload_is_read_as_the_file_is(corpus: list[Path], tmp_path: Path) -> None:
    """Or refused as it is, with the same reason."""
    good = [tmp_path / name for name in bad_files.good_files(seed=7)]
    for path in good:
        path.write_bytes(bad_files.good_files(seed=7)[path.name])
    seen = {True: 0, False: 0}
    for path in [*corpus, *good]:
        if not path.is_file() or path.suffix in (".npz", ".npy"):
            continue
        of_file, of_upload = (_read(source) for source in (path, Upload(path.read_bytes(), str(path))))
        assert type(of_file) is type(of_upload), path.name
        if isinstance(of_file, str):
            assert of_file == of_upload, path.name
        else:
            np.testing.assert_array_equal(of_file, of_upload, err_msg=path.name)
        seen[isinstance(of_file, str)] += 1
    assert seen[True] > 150 and seen[False] >= 8


def _read(source: Path | Upload) -> str | np.ndarray:
    try:
        return read_image(source).pixels
    except ImageReadError as error:
        return error.reason


def test_fewer_pixels_can_be_allowed(tmp_path: Path) -> None:
    good = bad_files.good_files(seed=7)
    for name in [name for name in good if name.endswith((".png", ".dcm"))]:
        upload = Upload(good[name], name)
        height, width = read_image(upload).pixels.shape[:2]
        with at_most(height * width):
            read_image(upload)
        with at_most(height * width - 1), pytest.raises(ImageReadError, match="more than the limit"):
            read_image(upload)


def test_the_corpus_is_reproducible(tmp_path: Path) -> None:
    first = bad_files.make_bad_files(tmp_path / "a", seed=1)
    second = bad_files.make_bad_files(tmp_path / "b", seed=1)
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True) if a.is_file())


def test_random_damage_is_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    good = list(bad_files.good_files(seed=5).items())
    for seed in range(600):
        chance, (name, sound) = random.Random(seed), good[seed % len(good)]
        data = bytearray(sound)
        for _ in range(chance.choice([1, 2, 5])):
            place = chance.randrange(min(len(data), 700) if seed % 3 else len(data))
            data[place] = chance.randrange(256)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            check_contract(read_reference(bad_files.reference(path)))
        except ImageReadError as error:
            assert "\n" not in str(error)
