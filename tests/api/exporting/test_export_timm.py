"""Runs as folders of timm and transformers: the same logits, and reasons where there is no such folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from api.exporting.conftest import files_of, squares
from scanprior import api
from scanprior.api.models import load_predictor
from scanprior.data.inputs import to_input
from scanprior.data.preprocessing import Preprocessing
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.errors import RunError
from scanprior.exporting import timm_form
from scanprior.run import Run
from scanprior.tasks.classify import Classifier, ClassifyConfig


def inputs(run: Run, files: list[Path]) -> torch.Tensor:
    preprocessing = load_predictor(run).preprocessing
    return to_input(squares(files, preprocessing), preprocessing)


@pytest.mark.parametrize("name", ["finetuned", "resnet", "findings"])
def test_timm_and_transformers_load_a_folder(
    name: str, phantoms: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A pretrained ViT with the default head, a ResNet with timm's own, and findings."""
    run: Run = request.getfixturevalue(name)
    model = load_predictor(run).members[0].model
    given = inputs(run, files_of(phantoms))
    wanted = model.logits(given).detach()
    for kind in ("timm", "hf"):
        api.export(run.path, format=kind, out=tmp_path / kind)  # type: ignore[arg-type]
        assert {path.name for path in (tmp_path / kind).iterdir()} == {
            "README.md", "config.json", "model.safetensors"
        }  # fmt: skip
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        torch.testing.assert_close(theirs(given), wanted, atol=1e-5, rtol=1e-4)
        wrapped = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path / "hf")).eval()
        torch.testing.assert_close(wrapped(pixel_values=given).logits, wanted, atol=1e-5, rtol=1e-4)
    assert wrapped.config.id2label == dict(enumerate(run.card["task"]["classes"]))
    assert theirs.pretrained_cfg["input_size"] == (1, 32, 32)
    assert set(load_file(tmp_path / "timm" / "model.safetensors")) == set(theirs.state_dict())


def test_timm_preprocesses_as_the_run_did(finetuned: Run, phantoms: Path, tmp_path: Path) -> None:
    api.export(finetuned.path, format="timm", out=tmp_path / "m")
    net = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    files = files_of(phantoms)
    made = torch.stack([transform(Image.open(file)) for file in files])
    torch.testing.assert_close(made, inputs(finetuned, files), atol=0.02, rtol=0)


TINY = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {**TINY, "pool": "mean"}),
        ("vit_tiny_patch16_224", {**TINY, "pool": "cls", "output_block": 1}),
        ("dinov2-s", {**TINY, "patch_size": None}),  # layer scale
        ("dinov2-s-reg", {**TINY, "patch_size": None}),  # positions of the patches alone
        ("mae-b", {**TINY, "patch_size": 16}),
    ],
)
def test_vision_transformers_as_timm_has_them(name: str, settings: dict[str, Any], normalise: bool) -> None:
    """Weights as large as trained ones, so that every part matters; biases of keys among them."""
    size = {"dinov2-s": 28, "dinov2-s-reg": 28}.get(name, 32)
    config = EncoderConfig(name=name, **settings)
    encoder = create_encoder(config, size=size, channels=1, seed=0)
    model = Classifier(encoder, ["a", "b", "c"], "multiclass", ClassifyConfig(normalise=normalise)).eval()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
    pre = Preprocessing(size=size, channels=1, mean=[0.5], std=[0.2])
    form = timm_form(model, pre, config)
    assert form.rewritten == normalise
    images = torch.randn(4, 1, size, size, generator=draws)
    with torch.no_grad():
        torch.testing.assert_close(form.build(3)(images), model.logits(images), atol=2e-5, rtol=1e-4)


def test_what_timm_has_no_classifier_for(
    colour: Run, resnet: Run, segmented: Run, home: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def why(run: Run | Path, form: str = "timm") -> str:
        path = run if isinstance(run, Path) else run.path
        said = refused("export", path, "--format", form, "--out", tmp_path / "no")
        assert not list(tmp_path.iterdir())
        return said

    assert "standardises each image by itself" in why(colour)
    assert "the run is a segmenter" in why(segmented, "hf")
    ensemble = api.ensemble([colour.path, resnet.path], out=home / "both")
    assert "the run is an ensemble" in why(ensemble)
    pre = Preprocessing(size=32, channels=1, mean=[0.5], std=[0.2])

    def form(name: str, **task: Any) -> None:
        settings = TINY if name.startswith("vit") else {"pool": task.pop("pool", "auto")}
        config = EncoderConfig(name=name, **settings)
        encoder = create_encoder(config, size=32, channels=1, seed=0)
        timm_form(Classifier(encoder, ["a", "b"], "multiclass", ClassifyConfig(**task)), pre, config)

    for reason, name, task in (
        ("task.normalise=false", "test_resnet.r160_in1k", {}),
        ("pooling=attention", "vit_tiny_patch16_224", {"pooling": "attention"}),
        ("the head is ordinal", "vit_tiny_patch16_224", {"head": "ordinal"}),
        (
            "pools its features in another way",
            "test_convnext.r160_in1k",
            {"normalise": False, "pool": "mean"},
        ),
    ):
        with pytest.raises(RunError, match=reason):
            form(name, **task)
