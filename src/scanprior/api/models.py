"""Networks of runs: built from a card, filled with weights, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scanprior.allocation import keep_freed_memory
from scanprior.api.predictor import Member, Predictor
from scanprior.api.settings import AdaptConfig, FinetuneConfig, PretrainConfig
from scanprior.catalogue import network_of
from scanprior.data.transforms import Augmentation, Preprocessing
from scanprior.encoders import Encoder, EncoderConfig, create_encoder
from scanprior.encoders import load_weights as load_encoder_weights
from scanprior.engine import EngineConfig, Reporter
from scanprior.engine.checkpoint import load_weights, replace_weights
from scanprior.engine.settings import Precision
from scanprior.engine.undrawn import undrawn
from scanprior.errors import RunError
from scanprior.evaluation import Combination
from scanprior.run import Run
from scanprior.tasks.classify import Classifier, ClassifyConfig
from scanprior.tasks.segment import MaskClasses, SegmentConfig, Segmenter

Network = TypeVar("Network", Classifier, Segmenter)


_TRANSFORMERS = ("vit", "ViT", "deit", "aimv2", "swin", "hiera")
"""What is in the names of networks whose time goes into large matrix products."""


def resolve_precision(config: EngineConfig, encoder: str) -> Precision:
    """Return the precision that ``auto`` stands for on this machine.

    bf16 on GPUs that support it, and for transformers on CPUs with native bf16 arithmetic; 32
    elsewhere (small ConvNets lose by it on a CPU).
    """
    if config.precision != "auto":
        return config.precision
    if config.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "16"
    flags = torch.backends.cpu.get_cpu_capability()
    native = "AVX512" in flags and cpu_computes_bf16()
    network = network_of(encoder)
    return "bf16" if native and any(word in network for word in _TRANSFORMERS) else "32"


def cpu_computes_bf16() -> bool:
    """Return whether the processor multiplies bf16 natively (as far as Linux tells)."""
    path = Path("/proc/cpuinfo")
    return path.exists() and ("avx512_bf16" in (text := path.read_text()) or "amx_bf16" in text)


def starting_encoder(
    config: PretrainConfig | FinetuneConfig, preprocessing: Preprocessing, reporter: Reporter
) -> Encoder:
    """Build the encoder that a training begins with: of a file or its parent, what is not trained held fast.

    Raises:
        ScanpriorError: weights that cannot be had, or a network without what ``adapt.train`` names.
    """
    encoder = create_encoder(config.encoder, size=preprocessing.size, channels=preprocessing.channels)
    if encoder.loaded is not None:
        reporter.note(f"encoder.weights: {encoder.loaded}")
    if config.parent is not None:
        load_encoder_weights(encoder, Run.open(config.parent).encoder_weights)
    encoder.restrict(config.adapt.train, config.adapt.from_block, config.adapt.lora)
    return encoder


def adaptation(encoder: Encoder, network: nn.Module, adapt: AdaptConfig) -> dict[str, Any]:
    """Return what a card says of what is trained: the settings, and numbers of parameters.

    Args:
        encoder: with its adapters, if any: they are trained, and count to nothing else.
        network: what is trained: the encoder with its head, decoder or objective.
        adapt: the settings.

    Returns:
        The settings, and for ``encoder`` and ``head``, which is all the rest but an averaged teacher, how many
        parameters were ``trained``, ``of`` how many.
    """
    trained, whole = encoder.count_parameters()
    rest = [p for name, p in network.named_parameters() if not name.startswith(("encoder.", "teacher."))]
    return {
        **adapt.model_dump(mode="json"),
        "encoder": {"trained": trained, "of": whole},
        "head": {
            "trained": sum(p.numel() for p in rest if p.requires_grad),
            "of": sum(p.numel() for p in rest),
        },
    }


def encoder_card(config: EncoderConfig, encoder: Encoder) -> dict[str, Any]:
    """Return what a card says of the network: its settings, and of weights from the hub which ones they were."""
    settings = config.model_dump(mode="json")
    if encoder.fetched is None:
        return settings
    return {**settings, "revision": encoder.fetched.revision, "sha256": encoder.fetched.sha256}


def built_anew(run: Run) -> EncoderConfig:
    """Return the settings of a run's encoder without where its first weights were from."""
    nowhere = {"pretrained": False, "revision": None, "sha256": None, "weights": None}
    return EncoderConfig.model_validate({**run.card["encoder"], **nowhere})


def save_encoder(encoder: nn.Module, path: Path) -> None:
    """Write the weights of an encoder under ``encoder.``."""
    replace_weights({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, path)


def load_encoder(run: Run) -> Encoder:
    """Build the encoder of a run and fill it with the run's weights.

    Raises:
        RunError: the run is an ensemble, or not all weights are there.
    """
    run.refuse_ensemble()
    preprocessing = Preprocessing.model_validate(run.card["preprocessing"])
    encoder = undrawn(lambda: _unfilled(run, preprocessing))
    if missing := load_encoder_weights(encoder, run.encoder_weights).missing:
        raise RunError(
            f"{run.encoder_weights}: weights of the network in model.json are missing ({missing[0]})"
        )
    keep_freed_memory()
    return encoder.eval()


def load_classifier(run: Run) -> tuple[Classifier, Preprocessing]:
    """Build the classifier of a run and fill it with the run's weights.

    Raises:
        RunError: the run holds no classifier.
        WeightsError: its weights do not fit.
    """
    task, pre = _task(run, "classify")
    settings = ClassifyConfig.model_validate({**task["settings"], "transformer_weights": None})
    state = _state(run)
    images = len(state["head.bank"]) if "head.bank" in state else 0
    model = undrawn(
        lambda: Classifier(_unfilled(run, pre), task["classes"], task["kind"], settings, bank_images=images)
    )
    return _filled(model, state, run), pre


def load_predictor(run: Run) -> Predictor:
    """Build what predicts the classes of a run: its classifier, or the members of an ensemble.

    Raises:
        RunError: the run predicts no classes, or a member is missing or no longer what it was.
        WeightsError: weights do not fit.
    """
    if not run.is_ensemble:
        return Predictor([Member(*load_classifier(run), augmentation=augmentation_of(run))])
    members = []
    for path, said in zip(run.members(), run.card["ensemble"]["members"], strict=True):
        member = Run.open(path)
        if (member.fingerprint(), member.card_fingerprint()) != (said["fingerprint"], said["card"]):
            raise RunError(
                f"{path}: has changed since it became a member of {run.path}; make the ensemble again"
            )
        members.append(Member(*load_classifier(member), said["name"], augmentation=augmentation_of(member)))
    return Predictor(members, Combination.of_card(run.card["ensemble"]), run.card["task"]["classes"])


def augmentation_of(run: Run) -> Augmentation:
    """Return how the images varied that a run was trained on."""
    kept = run.config().get("augment") or {}
    return Augmentation.model_validate({name: value for name, value in kept.items() if name != "preset"})


def load_segmenter(run: Run) -> tuple[Segmenter, Preprocessing]:
    """Build the segmenter of a run and fill it with the run's weights; errors as ``load_classifier``."""
    task, pre = _task(run, "segment")
    classes = MaskClasses.from_dict(
        {"names": task["classes"], "kind": task["kind"], "table": task["mask_values"]}
    )
    settings = SegmentConfig.model_validate(task["settings"])
    model = undrawn(lambda: Segmenter(_unfilled(run, pre), classes, settings))
    return _filled(model, _state(run), run), pre


_KINDS = {"classify": "a classifier", "segment": "a segmenter", "pretrain": "a pretrained encoder"}


def _task(run: Run, kind: str) -> tuple[dict[str, Any], Preprocessing]:
    """Return the task and the preprocessing of a run of some kind."""
    run.refuse_ensemble()
    task = run.card.get("task")
    if task is None:
        raise RunError(
            f"{run.path}: a pretrained encoder cannot predict; fine-tune it with --from {run.path}"
        )
    if run.card["kind"] != kind:
        found = _KINDS.get(run.card["kind"], run.card["kind"])
        raise RunError(f"{run.path}: this run is {found}, and {_KINDS[kind]} is needed here")
    return task, Preprocessing.model_validate(run.card["preprocessing"])


def _unfilled(run: Run, preprocessing: Preprocessing) -> Encoder:
    """Return the encoder of a run with other weights than the run's."""
    return create_encoder(built_anew(run), size=preprocessing.size, channels=preprocessing.channels)


def _state(run: Run) -> dict[str, Tensor]:
    return {name: tensor for file in run.weight_files for name, tensor in load_weights(file).items()}


def _filled(model: Network, state: dict[str, Tensor], run: Run) -> Network:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{run.weights}: these weights are not of the network in model.json ({reason})"
        ) from error
    keep_freed_memory()
    return model.eval()
