"""Networks that are made to be filled: as drawn ones once they are, and nothing else is touched."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.engine.undrawn import undrawn
from scanprior.errors import ConfigError

NETWORKS = (
    "dinov2-s", "hiera-t", "sam2-t-fpn", "swin-t", "convnext-t", "vmamba-t", "vit_tiny_patch16_224", "resnet18",
    "tf_efficientnet_lite0", "densenet121", "test_convnext.r160_in1k",
)  # fmt: skip


def made(name: str):
    size = 56 if name == "dinov2-s" else 64
    return create_encoder(EncoderConfig(name=name), size=size, channels=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_filled_it_is_the_network_that_was_drawn(name):
    drawn = made(name).eval()
    generator = torch.get_rng_state()
    empty = undrawn(lambda: made(name))
    assert torch.equal(torch.get_rng_state(), generator) == (name != "swin-t")  # which is made a second time
    assert [(n, p.shape, p.stride(), p.requires_grad) for n, p in empty.named_parameters()] == [
        (n, p.shape, p.stride(), p.requires_grad) for n, p in drawn.named_parameters()
    ]
    empty.load_state_dict(drawn.state_dict())
    for (n, one), (_, other) in zip(drawn.named_buffers(), empty.named_buffers(), strict=True):
        assert torch.equal(one, other), n  # those that no file keeps are among them
    images = torch.rand(2, 1, drawn.size, drawn.size)
    with torch.no_grad():
        assert torch.equal(empty.eval()(images).pooled, drawn(images).pooled)


def test_what_layers_share_they_still_share():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.again = self.one.weight

    network = undrawn(Tied)
    assert network.one.weight is network.other.weight is network.again
    assert not any(p.is_meta for p in network.parameters())
    assert network.one.bias is not network.other.bias


def test_a_network_that_needs_its_values_draws_them():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scale = float(self.layer.weight.detach().abs().max())

    assert 0 < undrawn(Looks).scale <= 0.5


def test_an_error_is_the_builder_s_own_and_nothing_lasts():
    with pytest.raises(ConfigError, match="no network 'no_such_net'"):
        undrawn(lambda: made("no_such_net"))
    assert not nn.Linear(2, 2).weight.is_meta


def test_layers_that_another_thread_makes_meanwhile_are_drawn():
    found = []

    def build():
        other = threading.Thread(target=lambda: found.append(nn.Linear(3, 3)))
        other.start()
        other.join()
        return nn.Linear(5, 5)

    undrawn(build)
    assert not found[0].weight.is_meta
