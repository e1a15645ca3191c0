"""ConvNets on a part of the image: nothing of what is hidden is seen, and two equal ways through them."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scanprior import objectives
from scanprior.encoders import ConvEncoder, EncoderConfig, MaskedConvNext, create_encoder, sample_positions
from scanprior.errors import ConfigError
from scanprior.objectives.masked_convnet import channel_diversity

NETWORKS = ["convnext_atto", "convnext_tiny", "convnextv2_atto"]


def network(name: str, size: int = 64, channels: int = 1, drop_path: float = 0.0) -> ConvEncoder:
    """A network whose scales, biases and response norms are not at their first values, which hide mistakes."""
    made = create_encoder(EncoderConfig(name=name, drop_path=drop_path), size=size, channels=channels, seed=0)
    torch.manual_seed(1)
    for parameter in made.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, std=0.5)
    assert isinstance(made, ConvEncoder)
    return made


def masked_images(size: int, unit: int, channels: int = 1, count: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    side = size // unit
    hidden = torch.rand(count, side, side) < 0.6
    hidden[0] = True
    hidden[:, 0, 0] = False  # one image shows a single unit
    return torch.randn(count, channels, size, size), hidden


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize(("name", "unit"), list(itertools.product(NETWORKS, [16, 32])))
def test_hidden_pixels_change_nothing(name: str, unit: int, gathered: bool) -> None:
    masked = MaskedConvNext(network(name), unit)
    images, hidden = masked_images(64, unit)
    pixels = hidden.repeat_interleave(unit, 1).repeat_interleave(unit, 2)[:, None]
    with torch.no_grad():
        before = masked(images, hidden, gathered=gathered)
        for other in (torch.randn_like(images) * 1e3, torch.zeros_like(images)):
            after = masked(torch.where(pixels, other, images), hidden, gathered=gathered)
            assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
        changed = masked(images + 0.1 * ~pixels, hidden, gathered=gathered)
    assert not torch.equal(before[-1], changed[-1]), "what is seen does change it"
    for stride, features in zip(masked.strides, before, strict=True):
        shown = masked.shown(hidden, stride)
        assert features.shape[-2:] == shown.shape[-2:] == (64 // stride, 64 // stride)
        assert (features * (1 - shown)).abs().max() == 0
        assert features.abs().sum(1, keepdim=True)[shown > 0].min() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_gathered_equals_dense_in_output_and_gradient(name: str) -> None:
    encoder = network(name, drop_path=0.3).train()
    images, hidden = masked_images(64, 16)
    found = []
    for gathered in (False, True):
        images.requires_grad_()
        with sample_positions(torch.arange(4)):
            maps = MaskedConvNext(encoder, 16)(images, hidden, gathered=gathered)
        loss = sum((part.square().mean() + part.mean() for part in maps), torch.zeros(()))
        weights = [p for name, p in encoder.named_parameters() if not name.startswith("net.head")]
        found.append((maps, torch.autograd.grad(loss, [images, *weights])))
    for part in (0, 1):
        for one, two in zip(found[0][part], found[1][part], strict=True):
            assert (one - two).detach().abs().max() <= 1e-5 * max(1.0, float(one.detach().abs().max()))


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_with_nothing_hidden_it_is_timms_network(name: str, gathered: bool) -> None:
    encoder = network(name, channels=3).eval()
    images, hidden = masked_images(64, 16, channels=3)
    with torch.no_grad():
        ours = MaskedConvNext(encoder, 16)(images, torch.zeros_like(hidden), gathered=gathered)
        theirs = encoder(images).pyramid
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_masked_image_is_the_visible_part_alone() -> None:
    """Two units far apart: what one holds does not reach the features of the other, however deep."""
    encoder = network(
        "convnext_atto", size=256
    ).eval()  # no response norm, which looks at all that is visible
    hidden = torch.ones(1, 8, 8, dtype=torch.bool)
    hidden[0, 0, 0] = hidden[0, 7, 7] = False
    images = torch.randn(1, 1, 256, 256)
    other = images.clone()
    other[..., 224:, 224:] = 5.0
    masked = MaskedConvNext(encoder, 32)
    with torch.no_grad():
        one, two = (masked(x, hidden, gathered=True)[-1] for x in (images, other))
        dense = [encoder(x).pyramid[-1] for x in (images, other)]
    assert torch.equal(one[..., 0, 0], two[..., 0, 0]) and not torch.equal(one[..., 7, 7], two[..., 7, 7])
    assert not torch.equal(dense[0][..., 0, 0], dense[1][..., 0, 0]), "an ordinary pass does see it"


def test_cells_coarser_than_units_are_visible_where_any_unit_is() -> None:
    masked = MaskedConvNext(network("convnext_atto"), 16)
    hidden = torch.ones(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, 0] = False
    assert masked.shown(hidden, 32)[0, 0].tolist() == [[1, 0], [0, 0]]
    assert masked.shown(hidden, 16)[0, 0].nonzero().tolist() == [[1, 0]]
    assert masked.shown(hidden, 8).sum() == 4


@pytest.mark.parametrize(
    ("name", "size", "unit", "what"),
    [
        ("resnet18", 64, 32, "need a ConvNeXt and resnet18 is a ResNet"),
        ("vit_tiny_patch16_224", 64, 16, "need a ConvNeXt"),
        ("convnext_pico_ols", 64, 32, "the stem of convnext_pico_ols overlaps"),
        ("convnext_atto", 64, 24, "units of 24 px do not fit"),
        ("convnext_atto", 64, 2, "units of 2 px do not fit the cells of convnext_atto; use 4, 8, 16, 32"),
        ("convnext_atto", 80, 16, "size 80 is not divisible by 32"),
        ("convnext_atto", 96, 64, "size 96 is not divisible by 64"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, size: int, unit: int, what: str) -> None:
    encoder = create_encoder(EncoderConfig(name=name), size=size, channels=1, seed=0)
    with pytest.raises(ConfigError, match=what):
        MaskedConvNext(encoder, unit)


def test_channel_diversity_is_the_mean_distance_of_pairs() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 6, 4, 4)
    flat = maps.flatten(2)
    pairs = [
        (1 - torch.cosine_similarity(flat[b, i], flat[b, j], dim=0).item()) / 2
        for b in range(3) for i, j in itertools.combinations(range(6), 2)
    ]  # fmt: skip
    assert channel_diversity(maps).item() == pytest.approx(np.mean(pairs), abs=1e-6)
    assert channel_diversity(maps[:, :1].expand(-1, 6, -1, -1)).item() == pytest.approx(0, abs=1e-6)


def objective(**settings: object) -> objectives.Objective:
    kind = objectives.get("masked_convnet")
    return kind(network("convnextv2_atto"), kind.Config(decoder_dim=32, **settings), seed=0)


def batch(count: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {"views": torch.randn(1, count, 1, 64, 64), "position": torch.arange(count) + 7}


@pytest.mark.parametrize("decoder", ["light", "unet"])
def test_the_loss_equals_a_loop_over_units(decoder: str) -> None:
    made = objective(decoder=decoder, guidance={"loss_weight": 0.7, "warmup": 0.0}).eval()
    given = batch()
    hidden, scores = made.mask(given["views"][0], given["position"])  # type: ignore[operator]
    assert made.unit == 16 and hidden.shape == (4, 4, 4) and (hidden.flatten(1).sum(1) == 10).all()
    shown = [made.masked.shown(hidden, stride) for stride in made.masked.strides]  # type: ignore[operator, union-attr]
    with torch.no_grad():
        rebuilt = made.decoder(made.encode(given["views"][0], hidden), shown)  # type: ignore[operator]
    losses, counts = [], []
    for b, row, column in hidden.nonzero().tolist():
        here = (b, slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        target = given["views"][0][here].double().numpy()
        target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
        losses.append(np.square(rebuilt[here].double().numpy() - target).mean())
        counts.append(max(0.0, 1 + 0.7 * float(scores[b, 4 * row + column])))
    out = made(given)
    assert out["loss"].item() == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    assert out["weight"].item() == pytest.approx(sum(counts), rel=1e-5)


def test_no_gradient_reaches_what_is_rebuilt_where_nothing_was_hidden() -> None:
    made = objective().eval()
    given = batch()
    hidden, _ = made.mask(given["views"][0], given["position"])  # type: ignore[operator]
    rebuilt = torch.zeros(4, 1, 64, 64, requires_grad=True)
    error = made._error(rebuilt, given["views"][0])[hidden.flatten(1)]  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(error.sum(), rebuilt)
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    assert (gradient[~pixels] == 0).all() and (gradient[pixels] != 0).float().mean() > 0.99


def test_a_decoder_fills_what_is_hidden_with_its_token() -> None:
    """Where all is hidden but one unit, most of what the light decoder reads is its token."""
    made = objective().eval()
    decoder = made.decoder
    maps = [torch.zeros(1, 320, 2, 2)]
    shown = [torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])]
    with torch.no_grad():
        first = decoder(maps, shown)  # type: ignore[operator]
        decoder.token += 1.0  # type: ignore[operator]
        second = decoder(maps, shown)  # type: ignore[operator]
    assert first.shape == (1, 1, 64, 64) and not torch.equal(first, second)


def test_the_way_is_measured_once_said_and_kept() -> None:
    made = objective(path="auto").train()
    before = copy.deepcopy(made.state_dict())
    said = made.prepare(batch())
    assert said is not None and "times as fast here" in said
    after = made.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name != "gathered")
    assert all(p.grad is None for p in made.parameters())
    made.gathered.fill_(False)  # type: ignore[operator]
    other = objective(path="auto")
    other.load_state_dict(made.state_dict())
    assert not other.gathered, "a resumed training goes on the same way"
    for path, expected in (("dense", False), ("gathered", True)):
        fixed = objective(path=path)
        assert fixed.prepare(batch()) is None and bool(fixed.gathered) == expected


def test_both_ways_have_the_same_loss() -> None:
    losses = [objective(path=path).train()(batch())["loss"].item() for path in ("dense", "gathered")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_guidance_is_on_by_default_and_warms_up() -> None:
    made, plain = objective().eval(), objective(guidance={"beta": 0.0}).eval()
    given = batch(32)
    images = given["views"][0] * torch.linspace(0.01, 1, 64)  # holds more on the right

    def right(one: objectives.Objective) -> float:
        return float(one.mask(images, given["position"])[0][:, :, 2:].float().mean())  # type: ignore[operator]

    assert right(made) == right(plain)
    made.after_step(99, 100)
    assert right(made) > right(plain) + 0.05


@pytest.mark.parametrize(("ratio", "said"), [(0.99, "leaves none visible"), (0.01, "hides none")])
def test_a_mask_ratio_without_two_sides_is_refused(ratio: float, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"mask_ratio: {ratio} of 16 .* {said}; use more than 0.0312"):
        objective(mask_ratio=ratio)
