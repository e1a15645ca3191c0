"""Exported runs are loaded without scanprior and compared with ``predict``; what cannot be exported says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from api.conftest import Command
from api.exporting.conftest import files_of, squares
from scanprior import api
from scanprior.api.export_check import CheckImages, Parity, Sides, compare_sides, unresized
from scanprior.api.models import load_predictor, load_segmenter
from scanprior.data.inputs import resize, to_input
from scanprior.data.preprocessing import Form, Preprocessing, prepare_image
from scanprior.data.readers import ImageData
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.errors import RunError
from scanprior.evaluation import Combination
from scanprior.exporting import ClassifierGraph, SegmenterGraph, open_file, timm_form, write_file, written
from scanprior.exporting.graph import Input, combined
from scanprior.reporting.model_card import model_card
from scanprior.reporting.weights_origin import known_licence, origins
from scanprior.run import Run
from scanprior.tasks.classify import Classifier, ClassifyConfig
from scanprior.tasks.segment import MaskClasses, SegmentConfig, Segmenter

CLOSE = 1e-4


@pytest.fixture(scope="module")
def exported(finetuned: Run, home: Path) -> Path:
    return api.export(finetuned.path, format="onnx", out=home / "vit.onnx").path


def session(path: Path) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """What a user of the file has: ONNX Runtime alone."""
    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (out,) = made.get_inputs(), made.get_outputs()
    assert (given.name, out.name) == ("images", "probabilities")
    return lambda images: made.run(None, {"images": images})[0]


def predicted(run: Run, files: list[Path]) -> NDArray[np.float64]:
    table = api.predict(run.path, files)
    assert table["error"].isna().all()
    return table.filter(like="prob:").to_numpy()


def test_an_onnx_file_is_the_run(exported: Path, finetuned: Run, phantoms: Path) -> None:
    files, compute = files_of(phantoms), session(exported)
    wanted = predicted(finetuned, files)
    pixels = squares(files, load_predictor(finetuned).preprocessing)
    assert pixels.dtype == np.uint8 and np.ptp(wanted[:, 0]) > 1e-3  # the images are told apart
    np.testing.assert_allclose(compute(pixels), wanted, atol=CLOSE)
    for batch in (1, 3):
        np.testing.assert_allclose(compute(pixels[:batch]), wanted[:batch], atol=CLOSE)


def test_an_onnx_file_takes_any_size_and_resizes_as_pytorch(exported: Path, finetuned: Run) -> None:
    predictor, draws = load_predictor(finetuned), np.random.default_rng(0)
    (member,) = predictor.members
    for height, width in ((48, 48), (75, 31), (20, 200)):
        pixels = draws.integers(0, 256, (2, 1, height, width), dtype=np.uint8)
        square = resize(torch.from_numpy(pixels).float(), member.preprocessing.form.size).round().byte()
        wanted = member.model.predict([to_input(square, member.preprocessing)])
        np.testing.assert_allclose(
            session(exported)(pixels), wanted, atol=10 * CLOSE
        )  # a grey level may fall apart


def test_an_onnx_file_says_what_it_is(exported: Path, finetuned: Run) -> None:
    model = onnx.load(str(exported))
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["classes"]) == finetuned.card["task"]["classes"]
    assert said["fingerprint"] == finetuned.fingerprint() and said["kind"] == "multiclass"
    assert "Research use only" in said["use"]
    assert not list(exported.parent.glob("*.data"))  # the weights are inside
    (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
    assert {a.name: a.i for a in resize.attribute}["antialias"] == 1


def test_the_card_says_how_to_load_it_and_how_well_it_agrees(exported: Path, finetuned: Run) -> None:
    text = exported.with_name("vit.onnx.md").read_text()
    result = json.loads((finetuned.path / "evaluations" / "test.json").read_text())
    auroc = next(row for row in result["metrics"] if row["metric"] == "auroc")
    for part in (
        'InferenceSession("vit.onnx")', "test images of the run", "Research use only", finetuned.fingerprint(),
        f"{auroc['value']:.3f}", f"{auroc['low']:.3f}–{auroc['high']:.3f}", "not tested on images of another source",
        "given at their own size, so that the file resizes them",
    ):  # fmt: skip
        assert part in text, part
    used = pd.read_parquet(finetuned.path / "data.parquet")
    assert not [name for name in {*used["patient"], *used["image"]} if str(name) in text]
    assert str(finetuned.path.parent) not in text and "phantoms/images" not in text


def test_colour_and_images_standardised_by_themselves(colour: Run, phantoms: Path, home: Path) -> None:
    path = api.export(colour.path, format="onnx", out=home / "colour.onnx").path
    files = files_of(phantoms)
    pixels = squares(files, load_predictor(colour).preprocessing)
    assert pixels.shape[1:] == (3, 40, 40)
    np.testing.assert_allclose(session(path)(pixels), predicted(colour, files), atol=CLOSE)


def test_findings(findings: Run, phantoms: Path, home: Path) -> None:
    path = api.export(findings.path, format="onnx", out=home / "findings.onnx").path
    files = files_of(phantoms)
    found = session(path)(squares(files, load_predictor(findings).preprocessing))
    np.testing.assert_allclose(found, predicted(findings, files), atol=CLOSE)
    assert found.shape == (8, 4) and np.abs(found.sum(axis=1) - 1).min() > 1e-3


@pytest.mark.parametrize("method", ["geometric", "calibrated"])
def test_ensembles(method: str, finetuned: Run, resnet: Run, phantoms: Path, home: Path) -> None:
    run = api.ensemble([finetuned.path, resnet.path], out=home / method, method=method)
    kind = "onnx" if method == "calibrated" else "torchscript"
    written = api.export(run.path, format=kind, out=home / f"{method}{'.onnx' if kind == 'onnx' else '.pt'}")  # type: ignore[arg-type]
    files = files_of(phantoms)
    pixels = squares(files, load_predictor(run).preprocessing)
    found = open_file(written.path, kind)(pixels)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, predicted(run, files), atol=CLOSE)
    assert f"Member {run.card['ensemble']['members'][1]['name']}" in written.card.read_text()


def test_an_ensemble_of_several_forms_names_what_one_image_for_all_changes(
    finetuned: Run, colour: Run, home: Path
) -> None:
    run = api.ensemble([finetuned.path, colour.path], out=home / "forms")
    done = api.export(run.path, format="torchscript", out=home / "forms.pt")
    assert not done.parity.one_form and done.parity.computed is not None and done.parity.computed <= CLOSE
    assert "one for each form of its members" in done.card.read_text()
    module = torch.jit.load(str(done.path))
    assert module(torch.zeros(3, 3, 40, 40, dtype=torch.uint8)).shape == (3, 2)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_combinations_are_those_of_the_evaluation(kind: Any) -> None:
    """Logits of ordinary and of hopeless certainty, against the NumPy definition on their probabilities."""
    draws = torch.Generator().manual_seed(0)
    logits = [torch.randn(40, 4, generator=draws) * scale for scale in (1.0, 8.0, 60.0)]
    made = [each.softmax(1) if kind == "multiclass" else each.sigmoid() for each in logits]
    members = np.stack([each.double().numpy() for each in made])
    for combination in (
        Combination("mean"), Combination("geometric"), Combination("weighted", weights=(0.5, 0.2, 0.3)),
        Combination("calibrated", temperatures=(0.05, 1.7, 20.0)),
    ):  # fmt: skip
        found = combined(logits, combination, kind).numpy()
        np.testing.assert_allclose(found, combination(members, kind), atol=2e-6, err_msg=combination.method)


def test_masks(segmented: Run, phantoms: Path, home: Path) -> None:
    done = api.export(segmented.path, format="onnx", out=home / "masks.onnx", images=phantoms / "images")
    assert done.parity.said == "images given for the check" and done.parity.images == 24
    model, preprocessing = load_segmenter(segmented)
    pixels = squares(files_of(phantoms), preprocessing)
    (wanted,) = model.predict([to_input(pixels, preprocessing)])
    found = session(done.path)(pixels)
    assert found.shape == (8, 1, 32, 32)
    np.testing.assert_allclose(found, wanted.numpy(), atol=CLOSE)
    np.testing.assert_allclose(session(done.path)(pixels[:1]), wanted[:1].numpy(), atol=CLOSE)


def test_masks_of_a_convnet_that_exclude_one_another(tmp_path: Path) -> None:
    table = np.zeros((1, 256), np.int64)
    table[0, [1, 2]] = 1, 2
    encoder = create_encoder(EncoderConfig(name="test_convnext.r160_in1k"), size=64, channels=3, seed=0)
    model = Segmenter(encoder, MaskClasses(["a", "b"], "multiclass", table), SegmentConfig(width=4)).eval()
    pre = Preprocessing(size=64, channels=3, mean=[0.4] * 3, std=[0.2] * 3, stored_size=70)
    graph = SegmenterGraph(model, pre)
    write_file(graph, tmp_path / "m.pt", "torchscript", {})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 70, 70), dtype=np.uint8)
    found = open_file(tmp_path / "m.pt", "torchscript")(pixels)
    (wanted,) = model.predict([to_input(pixels, pre)])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(("head", "form"), [("knn", "onnx"), ("ordinal", "torchscript")])
def test_other_heads_at_sixteen_bits(head: str, form: Any, tmp_path: Path) -> None:
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=8, depth=2, embed_dim=32, num_heads=2, pool="mean"
    )
    encoder = create_encoder(config, size=32, channels=1, seed=0)
    model = Classifier(encoder, ["0", "1", "2"], "multiclass", ClassifyConfig(head=head), bank_images=30)  # type: ignore[arg-type]
    if head == "knn":
        draws = torch.Generator().manual_seed(0)
        model.head.fill(torch.randn(30, 32, generator=draws), torch.eye(3)[torch.arange(30) % 3])  # type: ignore[operator]
    pre = Preprocessing(size=32, channels=1, depth=16, mean=[0.5], std=[0.2])
    graph = ClassifierGraph([(model, pre)], model.classes, None)
    write_file(graph, tmp_path / "m", form, {})
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 1, 50, 32), dtype=np.uint16)
    found = open_file(tmp_path / "m", form)(pixels)
    np.testing.assert_allclose(found, model.predict([to_input(pixels, pre)]), atol=CLOSE)


def test_a_state_space_network_is_refused(tmp_path: Path) -> None:
    encoder = create_encoder(EncoderConfig(name="vmamba-t"), size=32, channels=1)
    model = Classifier(encoder, ["a", "b"], "multiclass", ClassifyConfig())
    pre = Preprocessing(size=32, channels=1, mean=[0.5], std=[0.2])
    with pytest.raises(RunError, match="VMamba reads an image in a loop"):
        write_file(ClassifierGraph([(model, pre)], model.classes, None), tmp_path / "m.onnx", "onnx", {})
    with pytest.raises(RunError, match="no network of timm's"):
        timm_form(model, pre, EncoderConfig(name="vmamba-t"))


def test_a_file_that_is_another_function_is_not_left_behind(
    finetuned: Run, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = ClassifierGraph.forward

    def wrong(self: ClassifierGraph, images: torch.Tensor) -> torch.Tensor:
        made = true(self, images)
        return made + 0.001 * (torch.arange(made.shape[1]) - 0.5)

    monkeypatch.setattr(ClassifierGraph, "forward", wrong)
    said = refused("export", finetuned.path, "--format", "torchscript", "--out", tmp_path / "m.pt")
    assert "differ from the run's by up to 5.0e-04" in said and not list(tmp_path.iterdir())


def test_a_fixed_batch_does_not_pass() -> None:
    """Right on the batch and wrong on one image alone is wrong."""
    images = [ImageData(np.full((4, 4, 1), n, np.uint8), 8, {}) for n in range(8)]

    def right(count: int) -> NDArray[np.float64]:
        return np.full((count, 2), 0.5)

    def squares_of(pixels: NDArray[Any]) -> NDArray[np.float64]:
        return right(len(pixels)) + (0.01 if len(pixels) == 1 else 0)

    sides = Sides(lambda given: right(len(given)), squares_of, None, lambda image: right(1), "")
    found = compare_sides(sides, CheckImages(images, "made"), Form(4, 1, 8, "squash"), one_form=True)
    assert found.stored == pytest.approx(0.01) and found.raw is None
    with pytest.raises(RunError, match=r"up to 1\.0e-02"):
        found.refuse_large("m.onnx")
    with pytest.raises(RunError, match="nan"):
        Parity(8, "", float("nan"), True, None, None, 0, "").refuse_large("m.onnx")


def test_phantoms_stand_in_for_images_that_are_gone(finetuned: Run, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(finetuned.path, moved)
    card = json.loads((moved / "model.json").read_text())
    card["data"]["sources"][0]["root"] = str(tmp_path / "gone")
    (moved / "model.json").write_text(json.dumps(card))
    done = api.export(moved, format="torchscript", out=tmp_path / "m.pt")
    assert "synthetic phantoms" in done.card.read_text() and done.parity.images >= 8


def test_what_the_command_refuses(
    finetuned: Run, pretrained: Run, phantoms: Path, tmp_path: Path, refused: Callable[..., str],
    scanprior: Command, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, file = finetuned.path, tmp_path / "m.onnx"
    assert "choose one of onnx, torchscript, timm, hf" in refused(
        "export", run, "--format", "tflite", "--out", file
    )
    assert "ends with .onnx" in refused("export", run, "--out", tmp_path / "m.pt")
    image = files_of(phantoms)[0]
    assert "1 images can be read" in refused("export", run, "--out", file, "--images", image)
    assert "pretrained encoder cannot predict" in refused("export", pretrained.path, "--out", file)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    assert "something is here" in refused("export", run, "--format", "timm", "--out", tmp_path / "full")
    monkeypatch.setattr(written, "find_spec", lambda name: None if name == "onnxscript" else True)
    said = refused("export", run, "--out", file)
    assert said == "--format onnx needs onnxscript; pip install 'scanprior[export]'"
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


def test_cards_of_runs(pretrained: Run, segmented: Run, home: Path) -> None:
    """Without an export; a pretrained encoder has no task and no numbers."""
    assert "It has not been evaluated." in model_card(pretrained)
    assert "Dice" in model_card(segmented.path)
    assert "first values drawn at random" in model_card("scanprior:cxr-tiny")
    assert "mean of the probabilities" in model_card(home / "forms")


def test_licences_of_first_weights(pretrained: Run) -> None:
    """Of a run, and through the stages behind it; a file is known by its name."""

    def run(parent: str | None = None, **encoder: Any) -> Run:
        return Run(Path(), {"encoder": encoder, "parent": {"path": parent} if parent else None})

    published = run(name="mae-b", pretrained=True)
    assert known_licence(published) == "CC-BY-NC-4.0" and "mae-b" in origins(published)[0].what
    assert known_licence(run(name="vit_tiny_patch16_224.augreg_in21k", pretrained=True)) == "apache-2.0"
    file = run(name="rad-dino", weights="/somewhere/RETFound_mae_natureCFP.pth")
    assert origins(file)[0].licence == "CC-BY-NC-4.0" and "/somewhere" not in origins(file)[0].what
    assert known_licence(run(name="vit_tiny_patch16_224", weights="own.pth")) is None
    assert known_licence(run("scanprior:cxr-tiny", name="vit_tiny_patch16_224")) == "Apache-2.0"
    assert origins(run(str(pretrained.path), name="x"))[0].what.startswith("first values")
    assert known_licence(run("gone", name="vit_tiny_patch16_224")) is None


def test_images_at_their_own_size() -> None:
    """In the channels and bits of the run, and square where the run pads or crops; no pixel is resampled."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    image = ImageData(pixels, 8, {})
    padded = unresized(image, Form(32, 3, 8, "pad"))
    assert padded.shape == (3, 10, 10) and not padded[:, [0, 1, 8, 9]].any()
    np.testing.assert_array_equal(padded[:, 2:8], pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(unresized(image, Form(32, 3, 8, "crop")), pixels[:, 2:8].transpose(2, 0, 1))
    grey = unresized(image, Form(32, 1, 16, "squash"))
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    assert grey.dtype == np.uint16
    np.testing.assert_array_equal(grey[0], luma.astype(np.uint16) * 257)
    deep = ImageData(grey.transpose(1, 2, 0).copy(), 16, {})
    np.testing.assert_array_equal(unresized(deep, Form(32, 3, 8, "squash")), np.stack([luma] * 3))


def test_the_command_says_what_it_found_and_wrote(resnet: Run, tmp_path: Path, scanprior: Command) -> None:
    said = scanprior("export", resnet.path, "--format", "torchscript", "--out", tmp_path / "m.pt")
    assert said.code == 0 and "largest difference of a probability" in said.text
    assert f"wrote {tmp_path / 'm.pt'} and {tmp_path / 'm.pt.md'}" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"m.pt", "m.pt.md"}


def test_an_image_of_any_size_becomes_the_stored_square_first() -> None:
    """Like ``predict`` to two grey levels, where one resize to the network's size alone is more than six away."""
    pre = Preprocessing(size=24, channels=1, stored_size=40, mean=[0.0], std=[1.0])
    pixels = np.random.default_rng(0).integers(0, 256, (100, 90, 1), dtype=np.uint8)
    expected = to_input(prepare_image(ImageData(pixels, 8, {}), pre)[None].copy(), pre)
    given = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    assert (Input(pre)(given) - expected).abs().max() < 2.01 / 255
    assert (to_input(given, pre) - expected).abs().max() > 6 / 255
