"""What of an encoder a training changes: after one step, the tensors that were to change, and no others."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn

from scanprior import keyed
from scanprior.encoders import Encoder, EncoderConfig, LoraConfig, create_encoder, sample_positions
from scanprior.errors import ConfigError
from scanprior.tasks.classify import Classifier, ClassifyConfig

VIT, SWIN, RESNET = "vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "resnet18"
TINY = {"depth": 3, "embed_dim": 48, "num_heads": 3}
SIZES = {VIT: 28, "eva02_tiny_patch14_224": 28, SWIN: 64}


def make(name: str, **settings: object) -> Encoder:
    sizes = TINY if name.startswith(("vit", "eva")) else {}
    config = EncoderConfig.model_validate({"name": name, **sizes, **settings})
    made = create_encoder(config, size=SIZES.get(name, 32), channels=1, seed=0)
    for key, weight in made.named_parameters():
        if re.search(
            r"layer\d\.\d\.bn2\.weight", key
        ):  # 0 in a new ResNet: no gradient passes to the layers before
            nn.init.ones_(weight)
    return made


def images(encoder: Encoder) -> torch.Tensor:
    made = torch.Generator().manual_seed(1)
    return torch.randn(3, 1, encoder.size, encoder.size, generator=made)


def step(encoder: Encoder) -> None:
    """One optimiser step on everything that the encoder gives."""
    encoder.train()
    with sample_positions([0, 1, 2]):
        made = encoder(images(encoder))
    loss = made.pooled.square().sum() + sum(part.square().sum() for part in [made.tokens, *made.pyramid])
    loss.backward()
    torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1).step()


def needs(train: str) -> None:
    if train == "lora":
        pytest.importorskip("peft")


# The names are written here once more, by hand; {0} and {1} are the numbers of the trained blocks, from 0 and from 1.
NORMS = {
    VIT: r"net\.(blocks\.{0}\.norm\d|norm)\..*",
    SWIN: r"net\.(patch_embed\.norm|layers\.{0}\..*norm\d?|norm)\..*",
    RESNET: r"net\.(bn1|layer{1}\..*(bn\d|downsample\.1))\..*",
}
BLOCKS = {
    VIT: r"net\.(blocks\.{0}|norm)\..*",
    SWIN: r"net\.(layers\.{0}|norm)\..*",
    RESNET: r"net\.layer{1}\..*",
}
ADAPTED = {
    VIT: r"net\.blocks\.{0}\.attn\.(qkv|proj)\.weight",
    SWIN: r"net\.layers\.{0}\..*attn\.(qkv|proj)\.weight",
}


@pytest.mark.parametrize(
    ("name", "train", "block", "pattern"),
    [
        (VIT, "all", None, ".*"),
        (VIT, "none", None, "nothing"),
        (VIT, "norm", None, NORMS[VIT]),
        (VIT, "lora", None, ADAPTED[VIT]),
        (VIT, "all", 1, BLOCKS[VIT]),
        (VIT, "all", 3, BLOCKS[VIT]),
        (VIT, "norm", 2, NORMS[VIT]),
        (VIT, "lora", 2, ADAPTED[VIT]),
        (SWIN, "norm", None, NORMS[SWIN]),
        (SWIN, "all", 3, BLOCKS[SWIN]),
        (SWIN, "lora", 4, ADAPTED[SWIN]),
        (RESNET, "all", 4, BLOCKS[RESNET]),
        (RESNET, "norm", None, NORMS[RESNET]),
        (RESNET, "norm", 3, NORMS[RESNET]),
        (RESNET, "none", None, "nothing"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_one_step_changes_what_it_should_and_nothing_else(
    name: str, train: str, block: int | None, pattern: str
) -> None:
    needs(train)
    encoder = make(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.restrict(train, block)
    if train != "none":
        step(encoder)
    else:
        encoder.train()
        encoder(images(encoder))
    encoder.merge_adapters()
    after = encoder.state_dict()
    assert list(after) == list(before)
    first = block or 1
    pattern = pattern.replace("{0}", f"[{first - 1}-9]").replace("{1}", f"[{first}-9]")
    if block is not None:  # what stands before the blocks
        pattern = rf"(?!net\.(patch_embed|bn1)\b){pattern}"
    expected = {key for key in before if re.fullmatch(pattern, key) and not key.endswith("_index")}
    assert {key for key in after if not torch.equal(after[key], before[key])} == expected


def test_parts_before_the_first_trained_block_are_as_in_inference() -> None:
    encoder = make(VIT, drop_path=0.9)
    encoder.restrict("all", 3)
    encoder.train()
    assert encoder.training and encoder.net.blocks[2].training and encoder.net.blocks[2].drop_path1.training
    still = [encoder.net.patch_embed, *encoder.net.blocks[:2]]
    assert not any(part.training for module in still for part in module.modules())
    assert not encoder.net.cls_token.requires_grad and not encoder.net.reg_token.requires_grad
    with sample_positions([0, 1, 2]):
        early = encoder(images(encoder)).pyramid[1]
    torch.testing.assert_close(early, encoder.eval()(images(encoder)).pyramid[1], rtol=0, atol=0)


# ---- low-rank adapters


def test_running_statistics_beside_adapters_stay() -> None:
    pytest.importorskip("peft")
    encoder = make("levit_128s")
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    assert any("running_mean" in key for key in before)
    encoder.restrict("lora")
    step(encoder)
    encoder.merge_adapters()
    assert all(torch.equal(value, before[key]) for key, value in encoder.named_buffers())


@pytest.mark.parametrize("name", [VIT, "eva02_tiny_patch14_224", "vit_base_patch16_siglip_224"])
def test_merged_weights_equal_the_adapted_network(name: str) -> None:
    """EVA multiplies with a weight of its own accord unless told otherwise; SigLIP pools by attention, too."""
    pytest.importorskip("peft")
    encoder = make(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.restrict("lora", 2, LoraConfig(rank=3, alpha=12, targets=("attention", "mlp")))
    encoder.eval()
    first = encoder(images(encoder)).pooled
    with torch.no_grad():
        for key, weight in encoder.named_parameters():
            if "lora_B" in key:
                assert not weight.any()
                nn.init.normal_(weight, std=0.3)
    trained, whole = encoder.count_parameters()
    parts = dict(encoder.named_parameters())
    adapted = encoder(images(encoder))
    encoder.merge_adapters()
    merged = encoder(images(encoder))
    assert not torch.allclose(adapted.pooled, first, atol=1e-3)  # every adapter counts
    for one, other in zip([adapted.pooled, adapted.tokens], [merged.pooled, merged.tokens], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    after = encoder.state_dict()
    assert list(after) == list(before) and whole == sum(p.numel() for p in encoder.parameters())
    count = 0
    for key, value in before.items():
        a = parts.get(f"{key.removesuffix('.weight')}.lora_A.default.weight")
        if a is None:
            assert torch.equal(after[key], value)
            continue
        b = parts[f"{key.removesuffix('.weight')}.lora_B.default.weight"]
        assert a.shape == (3, value.shape[1]) and b.shape == (value.shape[0], 3)
        torch.testing.assert_close(after[key], value + 4 * b @ a)
        count += a.numel() + b.numel()
    assert trained == count > 0
    attention = [key for key in before if re.search(r"(blocks\.[12]\.attn|attn_pool)\.\w+\.weight", key)]
    found = {key for key in before if not torch.equal(after[key], before[key])}
    assert {key for key in attention if "norm" not in key} <= found


def test_adapters_depend_on_the_seed_alone() -> None:
    pytest.importorskip("peft")

    def adapters(seed: int) -> torch.Tensor:
        torch.manual_seed(seed * 7)
        with keyed.seeded(keyed.key(seed, "initial weights")):
            encoder = make(VIT)
            encoder.restrict("lora")
        return encoder.net.blocks[1].attn.qkv.lora_A["default"].weight

    torch.testing.assert_close(adapters(1), adapters(1), rtol=0, atol=0)
    assert not torch.equal(adapters(1), adapters(2))


def test_adapters_are_of_the_layer_of_their_block() -> None:
    pytest.importorskip("peft")
    encoder = make(VIT)
    encoder.restrict("lora", lora=LoraConfig(targets=("attention", "mlp")))
    model = Classifier(encoder, ["a", "b"], "multiclass", ClassifyConfig())
    found = {key: model.layer_depth(key) for key, _ in model.named_parameters()}
    blocks = {key: int(match[1]) for key in found if (match := re.search(r"\.blocks\.(\d)\.", key))}
    assert sum("lora_" in key for key in blocks) == 3 * 4 * 2
    assert {key: found[key] for key in blocks} == {key: 3 - number for key, number in blocks.items()}
    assert found["head.linear.weight"] == 0 and found["encoder.net.patch_embed.proj.weight"] == 4


# ---- what cannot be done


@pytest.mark.parametrize(
    ("name", "train", "block", "sentence"),
    [
        ("convnext_atto", "lora", None, "convnext_atto has no attention to adapt; use norm or all"),
        (VIT, "all", 4, "adapt.from_block: vit_small_patch14_reg4_dinov2 has 3 blocks, and 4 is wanted"),
        ("convnext_atto", "norm", 5, "adapt.from_block: convnext_atto has 4 blocks"),
        ("vgg11", "norm", 2, "vgg11 has no normalisation layers with weights from block 2 on"),
    ],
)
def test_refusals(name: str, train: str, block: int | None, sentence: str) -> None:
    needs(train)
    with pytest.raises(ConfigError, match=sentence):
        make(name).restrict(train, block)


def test_attention_that_does_not_call_its_layers_is_refused() -> None:
    pytest.importorskip("peft")
    encoder = make(VIT)

    class Own(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor, **ignored: object) -> torch.Tensor:
            return super().forward(x, x, x)[0]

    encoder.net.blocks[1].attn = Own(48, 3, batch_first=True)
    with pytest.raises(ConfigError, match=r"its Own \(blocks.1.attn\) does not call its layer out_proj"):
        encoder.restrict("lora")


def test_adapters_need_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs peft; pip install 'scanprior\[lora\]'"):
        make(VIT).restrict("lora")
