"""Synthetic drifts: graded, independent of the batch, and equal to plain computations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from scanprior.data.drifts import DRIFTS, SEVERITIES, apply_drift
from scanprior.data.phantom import PhantomConfig, positions, render
from scanprior.errors import ConfigError

KINDS = list(DRIFTS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def phantoms() -> Tensor:
    """Sixteen images of 112 px."""
    config = PhantomConfig(patients=16, size=112, inverted=0)
    return torch.from_numpy(render(config, positions(config)[:16]).images)


def grain(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Noise, in which every pixel counts."""
    top = 256 if dtype == torch.uint8 else 65536
    return torch.from_numpy(np.random.default_rng(0).integers(0, top, shape)).to(dtype)


def drifted(images: Tensor, kind: str, severity: int, seed: int = 0, first: int = 0) -> Tensor:
    return apply_drift(images, kind, severity, seed=seed, positions=range(first, first + len(images)))


def change(images: Tensor, kind: str, severity: int) -> Tensor:
    """Mean absolute change of each image, (B,)."""
    return (drifted(images, kind, severity).double() - images.double()).abs().mean(dim=(1, 2, 3))


# --- what all kinds promise ------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("shape", [(3, 1, 37, 23), (2, 3, 16, 41), (2, 2, 9, 9), (1, 1, 1, 5)])
def test_type_shape_and_input_are_kept(kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    images = grain(shape, dtype)
    before = images.clone()
    for severity in (0, 1, 5):
        made = drifted(images, kind, severity)
        assert made.dtype == dtype and made.shape == images.shape
        assert made.data_ptr() != images.data_ptr()
        assert severity > 0 or torch.equal(made, images)
    assert torch.equal(images, before)


@EVERY_KIND
def test_every_severity_changes_more_than_the_one_below(kind: str, phantoms: Tensor) -> None:
    # Thrice, so that every share of inverted images meets some; at 224 px, where the mildest blur is seen.
    images = F.interpolate(phantoms, scale_factor=2, mode="bilinear").repeat(3, 1, 1, 1)
    changes = torch.stack([change(images, kind, severity) for severity in SEVERITIES])
    assert (changes.mean(dim=1).diff() > 0).all()
    assert (changes.diff(dim=0) >= 0).all()


@EVERY_KIND
def test_values_move_one_way(kind: str) -> None:
    steps = np.diff(DRIFTS[kind].values)
    assert (steps > 0).all() or (steps < 0).all()
    assert DRIFTS[kind].description and "\n" not in DRIFTS[kind].description and DRIFTS[kind].parameter


@EVERY_KIND
def test_an_image_does_not_depend_on_its_batch(kind: str, phantoms: Tensor) -> None:
    together = drifted(phantoms, kind, 3, seed=4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = apply_drift(phantoms[order], kind, 3, seed=4, positions=order)
    assert torch.equal(shuffled, together[order])
    for row in (0, 7, 15):
        assert torch.equal(
            drifted(phantoms[row : row + 1], kind, 3, seed=4, first=row), together[row : row + 1]
        )


@pytest.mark.parametrize("kind", ["noise", "border", "inversion"])
def test_draws_depend_on_seed_and_position_and_on_nothing_else(kind: str, phantoms: Tensor) -> None:
    same = phantoms[:1].expand(16, -1, -1, -1)
    first = drifted(same, kind, 3)
    assert torch.equal(first, drifted(same, kind, 3))
    assert not torch.equal(first, drifted(same, kind, 3, seed=1))
    assert not torch.equal(first, drifted(same, kind, 3, first=16))
    assert len(torch.unique(first, dim=0)) > 1


@EVERY_KIND
def test_16_bit_images_drift_as_8_bit_ones(kind: str, phantoms: Tensor) -> None:
    deep = (phantoms.to(torch.int32) * 257).to(torch.uint16)
    shallow = drifted(phantoms, kind, 3).double()
    # Rounded to 65,536 instead of 256 levels; at the same places.
    assert (drifted(deep, kind, 3).double() / 257 - shallow).abs().max() <= 0.501


@pytest.mark.parametrize("kind", ["gamma", "contrast", "noise", "blur", "resolution"])
def test_16_bit_images_keep_their_levels(kind: str) -> None:
    ramp = torch.arange(40_000, 40_000 + 64 * 64).reshape(1, 1, 64, 64).to(torch.uint16)
    assert len(torch.unique(drifted(ramp, kind, 1).to(torch.int32))) > 1000


def test_no_images_and_arrays_are_taken() -> None:
    assert drifted(grain((0, 1, 8, 8)), "blur", 3).shape == (0, 1, 8, 8)
    images = grain((2, 1, 8, 8))
    assert torch.equal(
        apply_drift(images.numpy(), "blur", 2, seed=0, positions=[0, 1]), drifted(images, "blur", 2)
    )
    across = grain((2, 1, 8, 12)).transpose(2, 3)
    assert torch.equal(drifted(across, "gamma", 2), drifted(across.contiguous(), "gamma", 2))


# --- each kind against a plain computation ---------------------------------------------------------------


@pytest.mark.parametrize("severity", range(1, 6))
def test_gamma_is_a_power(severity: int, phantoms: Tensor) -> None:
    expected = np.rint(255 * (phantoms.numpy() / 255.0) ** DRIFTS["gamma"].values[severity - 1])
    assert np.array_equal(drifted(phantoms, "gamma", severity).numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_keeps_the_mean_grey(channels: int) -> None:
    images = grain((4, channels, 31, 40))
    weights = [0.299, 0.587, 0.114] if channels == 3 else [1.0]
    pixels = images.numpy().astype(np.float64)
    mean = np.einsum("bchw,c->b", pixels, weights)[:, None, None, None] / (31 * 40)
    expected = (mean + DRIFTS["contrast"].values[2] * (pixels - mean)).clip(0, 255)
    assert np.abs(drifted(images, "contrast", 3).numpy() - expected).max() < 0.51


def test_noise_has_its_deviation_and_no_mean() -> None:
    flat = torch.full((4, 1, 200, 200), 128, dtype=torch.uint8)
    for severity, deviation in enumerate(DRIFTS["noise"].values, start=1):
        added = drifted(flat, "noise", severity).double() - 128
        assert abs(float(added.mean())) < 0.01 * 255 * deviation + 0.01
        # Rounding adds the variance of a uniform number; 3 deviations reach the end of the range.
        assert float(added.std()) == pytest.approx(np.hypot(255 * deviation, 12**-0.5), rel=0.01)
    side_by_side = np.corrcoef(added[:, :, :, 1:].flatten(), added[:, :, :, :-1].flatten())[0, 1]
    assert abs(side_by_side) < 0.01


@pytest.mark.parametrize("size", [(224, 224), (113, 131)])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_a_gaussian_that_grows_with_the_image(size: tuple[int, int], severity: int) -> None:
    images = grain((2, 1, *size))
    sigma = DRIFTS["blur"].values[severity - 1] * min(size) / 224
    radius = int(np.ceil(3 * sigma))
    for image, made in zip(
        images[:, 0].numpy(), drifted(images, "blur", severity)[:, 0].numpy(), strict=True
    ):
        expected = ndimage.gaussian_filter(image.astype(np.float64), sigma, radius=radius, mode="mirror")
        assert np.abs(made - expected).max() < 0.51


@pytest.mark.parametrize("severity", [1, 4])
def test_resolution_is_pillows_reduction_and_a_linear_enlargement(severity: int, phantoms: Tensor) -> None:
    share = DRIFTS["resolution"].values[severity - 1]
    side = round(share * 112)
    made = drifted(phantoms, "resolution", severity)
    for image, result in zip(phantoms[:, 0].numpy(), made[:, 0].numpy(), strict=True):
        small = Image.fromarray(image.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        large = np.asarray(small.resize((112, 112), Image.Resampling.BILINEAR))
        assert np.abs(result - large).max() < 0.52


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_the_file_of_that_quality(channels: int, phantoms: Tensor) -> None:
    images = torch.cat([phantoms[:2], phantoms[1:3], phantoms[2:4]], dim=1)[:, :channels]
    made = drifted(images, "jpeg", 3)
    for image, result in zip(images, made, strict=True):
        file = io.BytesIO()
        pixels = image[0] if channels == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=int(DRIFTS["jpeg"].values[2]))
        decoded = np.atleast_3d(np.asarray(Image.open(file))).transpose(2, 0, 1)
        # Another build of the same library may round otherwise.
        assert np.abs(result.numpy().astype(int) - decoded).mean() < 0.5


def test_jpeg_of_other_numbers_of_channels_is_grey_by_channel(phantoms: Tensor) -> None:
    pair = torch.cat([phantoms[:2], phantoms[2:4]], dim=1)
    apart = [drifted(part, "jpeg", 4) for part in (phantoms[:2], phantoms[2:4])]
    assert torch.equal(drifted(pair, "jpeg", 4), torch.cat(apart, dim=1))


def test_border_covers_one_edge_by_a_width_that_grows_with_the_image() -> None:
    for size in (112, 224):
        white = torch.full((400, 1, size, size), 255, dtype=torch.uint8)
        black = (drifted(white, "border", 3)[:, 0] == 0).numpy()
        edges = np.stack([black[:, 0], black[:, -1], black[:, :, 0], black[:, :, -1]]).all(axis=2)
        assert (edges.sum(axis=0) == 1).all()
        assert (edges.mean(axis=1) > 0.18).all()
        widths = black.sum(axis=(1, 2)) / size
        scaled = DRIFTS["border"].values[2] * size / 224
        assert widths.min() >= 0.75 * scaled - 0.5 and widths.max() <= 1.25 * scaled + 0.5
        assert widths.mean() == pytest.approx(scaled, rel=0.03)


def test_inversion_is_of_a_share_of_the_images_and_of_the_same_ones_again() -> None:
    images = grain((1000, 1, 4, 4))
    before = np.zeros(1000, dtype=bool)
    for severity, share in enumerate(DRIFTS["inversion"].values, start=1):
        made = drifted(images, "inversion", severity)
        turned = (made == 255 - images).flatten(1).all(dim=1).numpy()
        assert torch.equal(made[~turned], images[~turned])
        assert turned.mean() == pytest.approx(share, abs=0.05)
        assert turned[before].all()
        before = turned
    deep = grain((3, 1, 4, 4), torch.uint16)
    assert torch.equal(drifted(deep, "inversion", 5).to(torch.int32), 65535 - deep.to(torch.int32))


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "severity", "advice"),
    [
        ("gama", 1, "there is no kind 'gama'; did you mean gamma"),
        ("JPEG", 1, "did you mean jpeg"),
        ("sharpness of lungs", 1, "choose one of gamma, contrast, noise"),
        ("gamma", 6, "there is no severity 6; .* did you mean 5"),
        ("gamma", -1, "did you mean 0"),
        ("gamma", 2.5, "choose a whole number from 0"),
        ("gamma", True, "there is no severity True"),
        ("gamma", "3", "there is no severity '3'"),
        ("gamma", float("nan"), "there is no severity nan"),
    ],
)
def test_unknown_kinds_and_severities_are_errors_with_advice(kind: str, severity: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        apply_drift(grain((1, 1, 8, 8)), kind, severity, seed=0, positions=[0])


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"float32"):
        drifted(torch.zeros(1, 1, 8, 8), "blur", 1)
    with pytest.raises(ValueError, match="B positions"):
        apply_drift(grain((2, 1, 8, 8)), "blur", 1, seed=0, positions=[0])
    with pytest.raises(ValueError, match=r"B, C, H, W"):
        drifted(grain((2, 8, 8)), "blur", 1)
