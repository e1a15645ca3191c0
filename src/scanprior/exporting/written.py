"""Graphs as files: ONNX and TorchScript, written and opened again."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scanprior.encoders import VMamba
from scanprior.errors import ConfigError, RunError
from scanprior.exporting.graph import Graph

FileFormat = Literal["onnx", "torchscript"]
Opened = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Pixels (B, C, H, W) to probabilities, by a file alone."""

OPSET = 20
"""The first version of ONNX's operators that has ``Gelu``: ONNX Runtime does not join the five that make one up.

``Resize`` can be antialiased since version 18."""
METADATA = "scanprior.json"
"""Name of what a TorchScript file says of itself."""

_LARGEST = 2 * 1000**3
"""Bytes of weights that go into one ONNX file: its format ends at 2 GiB."""


_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "hf": ("transformers",)}


def require_packages(format: str) -> None:
    """See that what writes and opens a format is installed.

    Raises:
        ConfigError: names what is missing.
    """
    missing = [name for name in _PACKAGES.get(format, ()) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format {format} needs {', '.join(missing)}; pip install 'scanprior[export]'")


def refuse_unfit(graph: Graph, kind: FileFormat) -> None:
    """Raise where a network cannot become a graph.

    Raises:
        RunError: VMamba, or too many weights for one file.
    """
    if any(isinstance(module, VMamba) for module in graph.modules()):
        raise RunError(
            f"--format {kind}: VMamba reads an image in a loop of thousands of small steps, whose number depends on "
            "the batch, and a graph holds no such loop; predict with scanprior"
        )
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if kind == "onnx" and size > _LARGEST:
        raise RunError(
            f"--format onnx: the weights are {size / 1000**3:.1f} GB, and one file holds 2; use --format torchscript"
        )


def write_file(graph: Graph, path: Path, kind: FileFormat, metadata: Mapping[str, str]) -> None:
    """Write a graph with its weights and what is to be known of it.

    Args:
        graph: in evaluation mode.
        path: the file.
        kind: its format.
        metadata: kept in the file.

    Raises:
        RunError: the network cannot become a graph; with the reason.
    """
    refuse_unfit(graph, kind)
    (_write_onnx if kind == "onnx" else _write_torchscript)(graph, path, metadata)


def open_file(path: Path, kind: FileFormat, threads: int | None = None) -> Opened:
    """Return what a file computes, run by ONNX Runtime or TorchScript on the CPU, without this package's networks.

    Args:
        path: the file.
        kind: its format.
        threads: of ONNX Runtime; None = as many as PyTorch has.
    """
    if kind == "onnx":
        onnxruntime: Any = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"images": pixels})[0]
    with _quiet():
        module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]

    def compute(pixels: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    return compute


def _write_onnx(graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    """Export through ``torch.export``; where an operator is in the way, once more with attention in single steps."""
    try:
        program = _exported(graph)
    except Exception:  # torch.onnx raises whatever the step that failed raises
        try:
            with _plain_attention(graph):
                program = _exported(graph)
        except Exception as error:
            raise RunError(f"--format onnx: this network cannot be exported ({_reason(error)})") from error
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _exported(graph: Graph) -> Any:
    dimension = torch.export.Dim
    axes = {0: dimension("batch"), 2: dimension("height"), 3: dimension("width")}
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            graph,
            (graph.example(),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities"],
            opset_version=OPSET,
            dynamic_shapes={"images": axes},
        )


def _reason(error: BaseException) -> str:
    """Return the first line of the deepest cause: torch.onnx wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _plain_attention(graph: nn.Module) -> Iterator[None]:
    """Let timm's attention layers compute without the fused operator, which ONNX has for four dimensions alone."""
    fused: list[Any] = [module for module in graph.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say of their own progress from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _write_torchscript(graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    import json

    with (
        _quiet(),
        torch.no_grad(),
    ):  # tracing warns of every shape that it takes for fixed, and of its own age
        try:
            traced = torch.jit.trace(graph, (graph.example(),), check_trace=False)  # type: ignore[no-untyped-call]
            traced = torch.jit.freeze(traced.eval())
        except RuntimeError as error:
            raise RunError(
                f"--format torchscript: this network cannot be traced ({_reason(error)})"
            ) from error
        torch.jit.save(traced, str(path), _extra_files={METADATA: json.dumps(dict(metadata))})
