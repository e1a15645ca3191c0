"""What of an encoder a run trains: what its card and report say, and what the configuration refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from api.conftest import FROM_PARENT, PRETRAINING, words
from scanprior import api
from scanprior.errors import ConfigError
from scanprior.run import Run


def test_an_adapted_teacher_is_an_ordinary_encoder(phantoms: Path, pretrained: Run, tmp_path: Path) -> None:
    """The run keeps the averaged encoder of SiT, whose adapters are averaged and merged like the student's."""
    pytest.importorskip("peft")
    options = {
        **{name: value for name, value in PRETRAINING.items() if not name.startswith("encoder.")},
        "engine.steps": 2, "engine.lr": 0.01, "objective.export": "teacher", "objective.momentum": 0.5,
        "objective.head_hidden": 32, "objective.head_out": 16,
        "adapt.train": "lora", "adapt.from_block": 2, "adapt.lora.targets": ["mlp"],
    }  # fmt: skip
    run = api.pretrain(
        phantoms, out=tmp_path / "run", objective="sit", parent=pretrained.path, options=options
    )
    before, after = load_file(pretrained.weights), load_file(run.weights)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"encoder.net.blocks.1.mlp.{layer}.weight" for layer in ("fc1", "fc2")}
    adapt = run.card["adapt"]
    assert adapt["encoder"] == {"trained": 2 * 8 * (32 + 128), "of": sum(t.numel() for t in before.values())}
    assert adapt["head"]["trained"] == adapt["head"]["of"] > 0  # without the teacher's copies


def test_the_card_and_the_report_say_what_was_trained(
    phantoms: Path, pretrained: Run, finetuned: Run, tmp_path: Path
) -> None:
    encoder = sum(tensor.numel() for tensor in load_file(pretrained.weights).values())
    assert finetuned.card["adapt"] == {
        "train": "all", "keep_features": True, "from_block": None, "lora": None,
        "encoder": {"trained": encoder, "of": encoder}, "head": {"trained": 66, "of": 66},
    }  # fmt: skip
    assert f"{encoder:,} of {encoder:,} (all)" in api.report(finetuned.path).read_text()
    shared = {"adapt.train": "norm", "adapt.from_block": 2}  # a probe trains nothing whatever they say
    options = {**FROM_PARENT, **shared}
    run = api.probe(phantoms, out=tmp_path / "probe", parent=pretrained.path, options=options)
    assert run.card["adapt"]["train"] == "none" and run.card["adapt"]["encoder"]["trained"] == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"train": "none", "from_block": 2}, "adapt: from_block: 2 says what is trained, and train: none"),
        ({"train": "norm", "lora": {"rank": 4}}, "adapt: lora: is for train: lora, found train: norm"),
        ({"from_block": 0}, "adapt.from_block: 0 will not do"),
        ({"train": "lora", "lora": {"dropout": 0.1}}, "adapt.lora.dropout: unknown configuration key"),
        ({"train": "lora", "lora": {"targets": ["stem"]}}, "adapt.lora.targets.0: 'stem' will not do"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        api.plan_finetuning("labels.csv", config={"adapt": settings})
    assert str(raised.value).startswith(sentence)
    assert api.plan_finetuning("labels.csv", config={"adapt": {"train": "lora"}}).adapt.lora is not None


def test_a_convnet_has_nothing_to_adapt(phantoms: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    pytest.importorskip("peft")
    options = {"data.size": 32, "data.workers": 0, "encoder.name": "convnext_atto", "adapt.train": "lora"}
    line = ["pretrain", phantoms, "--out", tmp_path / "run", "--objective", "masked_convnet", *words(options)]
    assert refused(*line) == "adapt.train: lora: convnext_atto has no attention to adapt; use norm or all"
    assert not (tmp_path / "run").exists()
