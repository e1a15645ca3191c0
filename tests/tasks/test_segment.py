"""The segmentation task: values to classes, decoders of every family, learning, the same result any way."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import ndimage

from scanprior.data.masks import MaskValues
from scanprior.encoders import Encoder, EncoderConfig, create_encoder
from scanprior.errors import ConfigError, DataError
from scanprior.tasks.segment import MaskClasses, SegmentConfig, Segmenter

VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3}
ENCODERS = [
    (VIT, 32),
    ({**VIT, "patch_size": 16}, 48),
    ({**VIT, "patch_size": 14}, 42),  # no power of two
    ({"name": "convnext_atto"}, 64),
    ({"name": "resnet18"}, 64),
]


def encoder(settings: dict[str, object] = VIT, size: int = 32) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_encoder(EncoderConfig.model_validate(settings), size=size, channels=1)


def counted(*masks: tuple[int, ...], column: str = "mask") -> MaskValues:
    """The values of several masks, called 0.png, 1.png, ..."""
    present = np.zeros((len(masks), 256), bool)
    for row, values in enumerate(masks):
        present[row, list(values)] = True
    return MaskValues(column, [f"{number}.png" for number in range(len(masks))], present)


EVERY = counted(tuple(range(256)))


def classes(kind: str) -> MaskClasses:
    if kind == "multilabel":
        return MaskClasses.find(
            [counted((0, 255), column="mask:heart"), counted((0, 1), column="mask:lungs")], SegmentConfig()
        )
    found = counted((0, 255)) if kind == "binary" else counted((0, 7, 9))
    return MaskClasses.find([found], SegmentConfig())


def batch(kind: str, images: int = 4, size: int = 32) -> dict[str, torch.Tensor]:
    """Discs brighter than the rest; the masks are the discs."""
    draw = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size]
    made, masks = [], []
    for _ in range(images):
        (a, b), r = draw.uniform(0.3, 0.7, 2) * size, size / 5
        disc = (y - a) ** 2 + (x - b) ** 2 < r**2
        ring = ndimage.binary_dilation(disc, iterations=3) & ~disc
        made.append(disc * 2.0 + ring * -2.0 + draw.normal(0, 0.3, (size, size)))
        values = {
            "binary": [disc * 255],
            "multiclass": [disc * 7 + ring * 9],
            "multilabel": [disc * 255, ring * 1],
        }
        masks.append(np.stack(values[kind]).astype(np.uint8))
    return {
        "views": torch.from_numpy(np.stack(made)[None, :, None]).float(),
        "mask": torch.from_numpy(np.stack(masks)),
        "position": torch.arange(images),
    }


# values


def test_values_become_classes() -> None:
    binary, multiclass, multilabel = (classes(kind) for kind in ("binary", "multiclass", "multilabel"))
    assert (binary.names, binary.kind, binary.channels) == (["foreground"], "binary", 1)
    assert (multiclass.names, multiclass.channels) == (["value 7", "value 9"], 3)
    assert (multilabel.names, multilabel.kind, multilabel.channels) == (["heart", "lungs"], "multilabel", 2)
    truth = multiclass.truth(np.array([[[0, 7], [9, 7]]], np.uint8))
    assert truth.tolist() == [[[False, True], [False, True]], [[False, False], [True, False]]]
    again = MaskClasses.from_dict(multiclass.to_dict())
    assert again.names == multiclass.names and (again.table == multiclass.table).all()
    named = MaskClasses.find([counted((0, 9))], SegmentConfig(classes={"heart": 7, "lung": 9}))
    assert named.names == ["heart", "lung"] and named.table[0, 9] == 2
    blurred = MaskClasses.find([EVERY], SegmentConfig(mask_threshold=128))
    assert blurred.table[0].tolist() == [0] * 128 + [1] * 128


@pytest.mark.parametrize(
    ("found", "settings", "said"),
    [
        (EVERY, {}, r"255 values besides 0.*0.png \(1, 2, 3, 4, 5, 6 ...\).*task.mask_threshold=128"),
        (counted((0, 9), (0, 3, 9)), {"classes": {"lung": 9}}, "1.png: the mask holds the value 3, which is no class"),
        (counted((0, 3, 9), column="mask:a"), {}, r"mask:a: the masks hold 2 values.*0.png \(3, 9\)"),
        (counted((0, 255), (0, 255), (0, 7, 254, 255), (0, 255)), {},
         r"1 of 4 masks hold more than one value besides 0, such as 2.png \(7, 254, 255\).*task.classes"),
        (counted((0, 255), (0, 1)), {}, r"0 of 2 masks hold more than one value.*all values are 1, 255; name the"),
    ],
)  # fmt: skip
def test_values_that_are_no_classes(found: MaskValues, settings: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        MaskClasses.find([found], SegmentConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("trained", "settings", "there", "said"),
    [
        (counted((0, 255)), {}, counted((0, 1), (1,)), None),  # another way to write the one class
        (counted((0, 255)), {}, counted((0, 1), (0, 1, 254)), r"1.png \(1, 254\): the mask holds more than one value"),
        (counted((0, 255)), {"mask_threshold": 128}, counted((0, 1, 254)), None),
        (counted((0, 9)), {"classes": {"lung": 9}}, counted((0, 9), (0, 3)), "1.png: the mask holds the value 3, the"),
        (counted((0, 7, 9)), {}, counted((0, 7), (8, 9)), "1.png: the mask holds the value 8, the run knows 0 and 7"),
    ],
)  # fmt: skip
def test_values_that_a_run_does_not_know(
    trained: MaskValues, settings: dict, there: MaskValues, said: str | None
) -> None:
    config = SegmentConfig.model_validate(settings)
    found = MaskClasses.find([trained], config).unknown(0, there, config)
    assert found is None if said is None else re.match(said, str(found))


def test_a_value_that_is_not_possible() -> None:
    with pytest.raises(ConfigError, match="the value 300 is not possible"):
        MaskClasses.find([counted((0,))], SegmentConfig(classes={"lung": 300}))


# networks


@pytest.mark.parametrize(("settings", "size"), ENCODERS)
def test_every_family_gives_a_map_of_every_pixel(settings: dict[str, object], size: int) -> None:
    model = Segmenter(encoder(settings, size), classes("multiclass"), SegmentConfig(width=8)).train()
    out = model(batch("multiclass", 2, size))
    assert torch.isfinite(out["loss"]) and 0 <= float(out["dice"]) <= 1
    out["loss"].backward()
    for part in (model.encoder.net, model.decoder, model.head):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    (maps,) = model.predict([batch("multiclass", 2, size)["views"][0]])
    assert maps.shape == (2, 3, size, size)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, size, size))


def test_a_decoder_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="unet does not fit vit_tiny_patch16_224; use unetr"):
        Segmenter(encoder(), classes("binary"), SegmentConfig(decoder="unet"))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_it_learns_to_draw(kind: str) -> None:
    torch.manual_seed(0)
    model = Segmenter(encoder(), classes(kind), SegmentConfig(width=8)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = batch(kind)
    for _ in range(60):
        out = model(data)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert float(model.eval()(data)["dice"]) > 0.85
    (maps,) = model.predict([data["views"][0]])
    found = model.chosen_of(maps.numpy())
    assert (found == model.chosen(model.logits(data["views"][0])).numpy()).all()


def test_the_loss_is_the_mean_over_images() -> None:
    """So that accumulation and processes, which weight by images, change nothing."""
    model = Segmenter(encoder(), classes("binary"), SegmentConfig(width=8)).eval()
    data = batch("binary")
    whole = float(model(data)["loss"])
    parts = []
    for i in range(4):
        parts.append(
            float(
                model({k: v[:, i : i + 1] if k == "views" else v[i : i + 1] for k, v in data.items()})["loss"]
            )
        )
    assert whole == pytest.approx(np.mean(parts), abs=1e-5)


def test_a_frozen_encoder_stays() -> None:
    model = Segmenter(encoder(), classes("binary"), SegmentConfig(width=8))
    model.encoder.restrict("none")
    model.train()
    model(batch("binary"))["loss"].backward()
    assert all(p.grad is None for p in model.encoder.parameters()) and not model.encoder.training
    assert model.layer_depth("head.weight") == 0 < model.layer_depth("encoder.net.blocks.0.attn.qkv.weight")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_an_answer_is_the_prediction_with_its_features(kind: str) -> None:
    model = Segmenter(encoder(), classes(kind), SegmentConfig(width=4))
    images = batch(kind)["views"][0]
    maps, features = model.answer(images)
    (predicted,) = model.predict([images])
    np.testing.assert_array_equal(maps, predicted.numpy())
    with torch.no_grad():
        torch.testing.assert_close(features.pooled, model.encoder(images).pooled, rtol=0, atol=0)
    total = maps.sum(1)
    assert np.allclose(total, 1, atol=1e-5) if kind == "multiclass" else total.max() < model.classes.channels
