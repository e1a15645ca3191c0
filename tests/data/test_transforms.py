"""Augmentation against torchvision's functional kernels, and its independence of the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from scanprior import keyed
from scanprior.data import intensity
from scanprior.data.draws import Draws
from scanprior.data.geometry import placements, warp
from scanprior.data.transforms import Augmentation, Preprocessing, augment, preset_names, presets, to_input

POSITIONS = np.arange(100, 112, dtype=np.int64)


def made_images(count: int = 12, channels: int = 1, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth images with noise on them, so that both shape and detail can differ."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.random((count, channels, 5, 5), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    grain = torch.from_numpy(random.random((count, channels, size, size), dtype=np.float32))
    return ((0.8 * smooth + 0.2 * grain) * 255).to(torch.uint8)


def made_preprocessing(channels: int = 1, size: int = 32, **more: object) -> Preprocessing:
    facts = {"size": size, "channels": channels, "mean": [0.4] * channels, "std": [0.25] * channels}
    return Preprocessing.model_validate(facts | more)


def view(images: Tensor, config: Augmentation, pre: Preprocessing, number: int = 0, seed: int = 7) -> Tensor:
    positions = POSITIONS[: len(images)]
    return augment(images, config, pre, seed=seed, purpose="augment", positions=positions, view=number)


# --- without variation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_to_input_is_the_plain_formula(channels: int) -> None:
    images = made_images(channels=channels)
    expected = (images.numpy().astype(np.float64) / 255 - 0.4) / 0.25
    np.testing.assert_allclose(to_input(images, made_preprocessing(channels)).numpy(), expected, atol=1e-6)


def test_16_bit_and_8_bit_of_the_same_image_are_the_same() -> None:
    images = made_images()
    deep = (images.numpy().astype(np.uint16) * 257).astype(np.uint16)
    config = presets["chest_xray"]
    torch.testing.assert_close(to_input(deep, made_preprocessing()), to_input(images, made_preprocessing()))
    for_both = [
        view(torch.from_numpy(deep), config, made_preprocessing()),
        view(images, config, made_preprocessing()),
    ]
    torch.testing.assert_close(*for_both, atol=1e-5, rtol=0)


def test_to_input_resizes_antialiased_like_torchvision() -> None:
    images = made_images(size=48)
    unit = TF.resize(images.float() / 255, [20, 20], antialias=True)
    found = to_input(images, made_preprocessing(size=20))
    torch.testing.assert_close(found, (unit - 0.4) / 0.25, atol=1e-5, rtol=0)


def test_channels_are_matched_to_the_model() -> None:
    colour = made_images(channels=3)
    luma = TF.rgb_to_grayscale(colour.float() / 255)
    torch.testing.assert_close(
        to_input(colour, made_preprocessing(1)), (luma - 0.4) / 0.25, atol=2e-3, rtol=0
    )
    repeated = to_input(made_images(channels=1), made_preprocessing(3))
    assert repeated.shape[1] == 3
    assert torch.equal(repeated[:, 0], repeated[:, 2])


def test_standardising_each_image() -> None:
    images = made_images(channels=3)
    images[0] = 77  # a blank image stays finite
    found = to_input(images, made_preprocessing(3, standardize="image"))
    flat = found[1:].flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(1, unbiased=False), torch.ones(11), atol=1e-4, rtol=0)
    assert torch.equal(found[0], torch.zeros_like(found[0]))


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(TypeError, match="float32"):
        to_input(torch.rand(1, 1, 8, 8), made_preprocessing(size=8))


def test_preprocessing_survives_json_and_refuses_what_does_not_fit() -> None:
    pre = made_preprocessing(3, mean=[0.1, 1 / 3, 0.7])
    assert Preprocessing.model_validate_json(pre.model_dump_json()) == pre
    with pytest.raises(ValidationError, match="std needs 3"):
        made_preprocessing(3, std=[0.2])
    with pytest.raises(ValidationError, match="extra"):
        made_preprocessing(sizes=3)


# --- geometry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 37])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_no_variation_gives_the_input_exactly(size: int, interpolation: str) -> None:
    images, pre = made_images(size=size), made_preprocessing(size=size)
    config = Augmentation.model_validate({"interpolation": interpolation})
    assert torch.equal(view(images, config, pre), to_input(images, pre))


def test_mirrors_move_pixels_exactly() -> None:
    images, pre = made_images(), made_preprocessing()
    plain = to_input(images, pre)
    assert torch.equal(view(images, Augmentation(hflip=1.0), pre), plain.flip(-1))
    assert torch.equal(view(images, Augmentation(vflip=1.0), pre), plain.flip(-2))
    half = view(images, Augmentation(hflip=0.5), pre)
    mirrored = [bool(torch.equal(row, other.flip(-1))) for row, other in zip(half, plain, strict=True)]
    same = [bool(torch.equal(row, other)) for row, other in zip(half, plain, strict=True)]
    assert any(mirrored) and any(same)
    assert all(a != b for a, b in zip(mirrored, same, strict=True))


def crop_placement(left: int, top: int, width: int, height: int, size: int) -> np.ndarray:
    across, down = width / size, height / size
    return np.array(
        [[[across, 0, (2 * left + width) / size - 1], [0, down, (2 * top + height) / size - 1]]],
        dtype=np.float64,
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_torchvisions_resized_crop(interpolation: str) -> None:
    images = made_images(1).float() / 255
    found = warp(images, crop_placement(5, 9, 16, 20, 32), 32, interpolation)
    mode = InterpolationMode(interpolation)
    expected = TF.resized_crop(images, 9, 5, 20, 16, [32, 32], mode, antialias=False).clamp(0, 1)
    # torchvision repeats the crop's edge, ours interpolates with what lies beyond it.
    rim = slice(5, -5)
    torch.testing.assert_close(found[..., rim, rim], expected[..., rim, rim], atol=1e-4, rtol=0)


def test_a_crop_at_the_edge_of_the_image_does_not_darken() -> None:
    white = torch.ones(1, 1, 32, 32)
    for interpolation in ("bilinear", "bicubic"):
        for left, top in ((0, 0), (22, 22)):
            found = warp(white, crop_placement(left, top, 10, 10, 32), 32, interpolation)
            torch.testing.assert_close(found, torch.ones(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("angle", "shift", "zoom"), [(10.0, 0, 1.0), (-33.0, 0, 1.0), (0.0, 3, 1.0), (0.0, 0, 1.3), (8.0, 2, 0.9)]
)
def test_rotation_shift_and_zoom_are_torchvisions_affine(angle: float, shift: int, zoom: float) -> None:
    images = made_images(1).float() / 255
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / zoom
    offset = matrix @ np.array([-2 * shift / 32, 0.0])
    found = warp(images, np.concatenate([matrix, offset[:, None]], 1)[None], 32, "bilinear")
    expected = TF.affine(images, -angle, [float(shift), 0.0], zoom, [0.0, 0.0], InterpolationMode.BILINEAR)
    inside = slice(10, -10) if abs(angle) > 20 else slice(6, -6)
    torch.testing.assert_close(found[..., inside, inside], expected[..., inside, inside], atol=1e-3, rtol=0)


def test_drawn_placements_compose_as_a_step_by_step_calculation_says() -> None:
    config = Augmentation(
        crop_scale=(0.3, 0.9), rotate=20, translate=0.1, zoom=(0.8, 1.25), hflip=0.5, vflip=0.5
    )
    draws = Draws(3, POSITIONS)
    found = placements(config, draws)
    areas = np.abs(np.linalg.det(found[:, :, :2]))
    for row, matrix in enumerate(found):
        angle = np.deg2rad(-20 + 40 * draws.unit("rotate")[row])
        zoom = 0.8 * (1.25 / 0.8) ** draws.unit("zoom")[row]
        shift = -0.1 + 0.2 * np.array([draws.unit("translate_x")[row], draws.unit("translate_y")[row]])
        # Take the middle of the crop back: the image was turned and magnified, then shifted.
        straight = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        middle = straight @ matrix[:, 2] + 2 * shift
        corner = straight @ (matrix[:, :2] @ [1.0, 1.0])
        assert 0.3 <= areas[row] * zoom**2 <= 0.9
        assert (np.abs(middle) + np.abs(corner) <= 1 + 1e-9).all()
        assert 3 / 4 - 1e-9 <= abs(corner[0] / corner[1]) <= 4 / 3 + 1e-9
        assert (corner[0] < 0) == (draws.unit("hflip")[row] < 0.5)


def test_crops_are_distributed_as_torchvisions() -> None:
    count = 3000
    config = Augmentation(crop_scale=(0.2, 1.0))
    found = placements(config, Draws(5, np.arange(count)))
    torch.manual_seed(0)
    reference = RandomResizedCrop(512, scale=(0.2, 1.0))
    blank = torch.zeros(1, 512, 512)
    params = np.array([reference.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]) / 512
    ours = {
        "area": found[:, 0, 0] * found[:, 1, 1],
        "ratio": np.log(found[:, 0, 0] / found[:, 1, 1]),
        "left": (found[:, 0, 2] + 1) / 2 - found[:, 0, 0] / 2,
    }
    theirs = {
        "area": params[:, 2] * params[:, 3],
        "ratio": np.log(params[:, 3] / params[:, 2]),
        "left": params[:, 1],
    }
    for name in ours:
        error = 4 * ours[name].std() / np.sqrt(count)
        assert abs(ours[name].mean() - theirs[name].mean()) < error, name
        assert abs(ours[name].std() - theirs[name].std()) < error, name


def test_shrinking_does_not_alias() -> None:
    fine = torch.zeros(1, 1, 256, 256)
    fine[..., ::2, ::2] = fine[..., 1::2, 1::2] = 1.0  # a chessboard of single pixels
    turned = np.array([[[0.99, -0.1, 0.0], [0.1, 0.99, 0.0]]])
    inside = warp(fine, turned, 64, "bilinear")[..., 8:-8, 8:-8]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.5), atol=0.02, rtol=0)


def test_a_batch_that_mixes_levels_and_plain_rows_equals_single_rows() -> None:
    images = made_images(4, size=64).float() / 255
    rows = np.stack(
        [np.eye(2, 3), np.diag([-1.0, 1.0]) @ np.eye(2, 3), 0.4 * np.eye(2, 3), 0.97 * np.eye(2, 3)]
    )
    together = warp(images, rows, 24, "bilinear")
    for row in range(4):
        torch.testing.assert_close(together[row], warp(images[row, None], rows[row, None], 24, "bilinear")[0])


# --- intensity -------------------------------------------------------------------------------------------

FACTORS = torch.tensor([0.6, 0.9, 1.0, 1.35])


def one_by_one(kernel: Callable[[Tensor, float], Tensor], images: Tensor, values: Tensor) -> Tensor:
    return torch.stack([kernel(image, float(value)) for image, value in zip(images, values, strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        (intensity.adjust_brightness, TF.adjust_brightness, 1),
        (intensity.adjust_brightness, TF.adjust_brightness, 3),
        (intensity.adjust_contrast, TF.adjust_contrast, 1),
        (intensity.adjust_contrast, TF.adjust_contrast, 3),
        (intensity.adjust_saturation, TF.adjust_saturation, 3),
    ],
)
def test_factors_are_torchvisions(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], channels: int
) -> None:
    images = made_images(4, channels).float() / 255
    expected = one_by_one(theirs, images, FACTORS)
    found = ours(images.clone(), FACTORS[:, None, None, None])
    # torchvision's grey weights are 0.2989, 0.587, 0.114: they do not add up to one.
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_hue_is_torchvisions() -> None:
    images = made_images(4, 3).float() / 255
    images[0, :, :4] = 0.5  # grey pixels have no hue
    images[1, :, :4] = 0.0
    turns = torch.tensor([-0.5, -0.1, 0.0, 0.3])
    found = intensity.adjust_hue(images, turns[:, None, None, None])
    torch.testing.assert_close(found, one_by_one(TF.adjust_hue, images, turns), atol=1e-5, rtol=0)


def test_blur_is_torchvisions() -> None:
    images = made_images(4, 3).float() / 255
    sigma = np.array([0.1, 0.5, 1.1, 2.0])
    found = intensity.blur(images, sigma, 6)
    expected = one_by_one(
        lambda image, value: TF.gaussian_blur(image, [13, 13], [value, value]), images, torch.tensor(sigma)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_solarise_is_torchvisions() -> None:
    images = made_images(4).float() / 255
    torch.testing.assert_close(intensity.solarize(images), TF.solarize(images, 0.5))


def test_jitter_leaves_the_images_it_does_not_choose_as_they_are() -> None:
    images, pre = made_images(channels=3), made_preprocessing(3)
    config = Augmentation(jitter_p=0.5, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, gamma=0.5)
    on = Draws(keyed.key(7, "augment", 0), POSITIONS).happens("jitter", 0.5)
    same = [torch.equal(a, b) for a, b in zip(view(images, config, pre), to_input(images, pre), strict=True)]
    assert same == list(~on)
    assert any(same) and not all(same)


@pytest.mark.parametrize(
    "config",
    [
        Augmentation(gamma=0.5), Augmentation(noise=0.1), Augmentation(blur_p=1.0, blur_sigma=(5, 9)),
        Augmentation(solarize_p=1.0), Augmentation(grey_p=1.0), Augmentation(zoom=(0.6, 0.9)),
    ],
)  # fmt: skip
def test_every_variation_changes_the_image_and_keeps_its_range(config: Augmentation) -> None:
    images, pre = made_images(channels=3), made_preprocessing(3)
    found = view(images, config, pre)
    assert (found - to_input(images, pre)).abs().flatten(1).amax(1).min() > 1e-3
    unit = found * 0.25 + 0.4
    assert unit.min() >= -1e-6 and unit.max() <= 1 + 1e-6


def test_colour_settings_do_nothing_to_grey_images() -> None:
    images, pre = made_images(), made_preprocessing()
    assert torch.equal(
        view(images, Augmentation(saturation=0.5, hue=0.3, grey_p=1.0), pre), to_input(images, pre)
    )


# --- keyed draws -----------------------------------------------------------------------------------------


def test_presets_keep_what_a_modality_means() -> None:
    """Ultrasound stays upright and grey; a lesion or a polyp may lie in any direction."""
    images = np.full((12, 3, 32, 32), 40, dtype=np.uint8)
    images[:, :, :8] = 200
    pre = Preprocessing(size=32, channels=3, mean=[0, 0, 0], std=[1, 1, 1])
    for name, upright in (("ultrasound", True), ("dermoscopy", False), ("endoscopy", False)):
        made = view(torch.from_numpy(images), presets[name], pre)
        above, below = made[:, :, 2:6, 12:20].mean((1, 2, 3)), made[:, :, -6:-2, 12:20].mean((1, 2, 3))
        assert bool((above > below).all()) == upright, name
        if upright:
            assert torch.equal(made[:, 0], made[:, 1]) and torch.equal(made[:, 0], made[:, 2])


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_does_not_depend_on_the_batch(name: str, channels: int) -> None:
    images, pre = made_images(channels=channels), made_preprocessing(channels, standardize="image")
    for number in (0, 1):
        together = view(images, presets[name], pre, number)
        assert together.dtype == torch.float32 and together.shape == images.shape
        for row in range(len(images)):
            alone = augment(
                images[row, None], presets[name], pre,
                seed=7, purpose="augment", positions=POSITIONS[row, None], view=number,
            )  # fmt: skip
            torch.testing.assert_close(together[row], alone[0], atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 2**31))
def test_any_part_of_a_batch_in_any_order_gives_the_same_views(
    order: list[int], count: int, seed: int
) -> None:
    images, pre = made_images(size=16), made_preprocessing(size=16)
    config = presets["sit"].model_copy(update={"rotate": 15.0, "noise": 0.05})
    whole = view(images, config, pre, 1, seed)
    chosen = np.array(order[:count])
    part = augment(
        images[torch.from_numpy(chosen)], config, pre,
        seed=seed, purpose="augment", positions=POSITIONS[chosen], view=1,
    )  # fmt: skip
    torch.testing.assert_close(part, whole[torch.from_numpy(chosen)], atol=2e-6, rtol=0)


def test_seed_purpose_view_and_position_each_change_the_draws() -> None:
    images, pre, config = made_images(), made_preprocessing(), presets["chest_xray"]
    given_arguments = {"seed": 7, "purpose": "augment", "positions": POSITIONS, "view": 0}
    base = augment(images, config, pre, **given_arguments)
    assert torch.equal(base, augment(images, config, pre, **given_arguments))
    for change in ({"seed": 8}, {"purpose": "other"}, {"positions": POSITIONS + 1}, {"view": 1}):
        assert not torch.equal(base, augment(images, config, pre, **given_arguments | change))


def test_switching_one_variation_off_leaves_the_other_draws() -> None:
    draws = Draws(1, POSITIONS)
    mirrored = placements(Augmentation(rotate=10, hflip=0.5), draws)
    without = placements(Augmentation(rotate=10), draws)
    np.testing.assert_array_equal(mirrored[:, :, 1], without[:, :, 1])
    assert (mirrored[:, :, 0] != without[:, :, 0]).any()


# --- settings --------------------------------------------------------------------------------------------


def test_a_chest_radiograph_is_not_mirrored() -> None:
    for name in ("chest_xray", "chest_xray_mild", "gmml", "sit", "mae"):
        assert presets[name].hflip == presets[name].vflip == 0


def test_views_have_settings_of_their_own() -> None:
    sit = presets["sit"]
    assert [sit.for_view(number).blur_p for number in range(3)] == [1.0, 0.1, 0.0]
    assert [sit.for_view(number).solarize_p for number in range(3)] == [0.0, 0.2, 0.0]
    assert sit.for_view(1).crop_scale == (0.2, 1.0)
    assert Augmentation.model_validate(sit.model_dump(mode="json")) == sit


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rotation": 3}, "rotation"),
        ({"crop_scale": (0.9, 0.3)}, "low <= high"),
        ({"hflip": 1.5}, "hflip"),
        ({"views": [{"blurr": 1}]}, r"views\[0\].blurr"),
        ({"views": [{}, {"blur_p": 3}]}, r"views\[1\].blur_p: 3 will not do"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augmentation.model_validate(wrong)
