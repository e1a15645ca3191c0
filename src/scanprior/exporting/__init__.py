"""Models as files that need no scanprior: ONNX, TorchScript, and folders that timm and transformers load."""

from scanprior.exporting.graph import ClassifierGraph, Graph, SegmenterGraph
from scanprior.exporting.timm_layout import TimmForm, timm_form, write_timm
from scanprior.exporting.written import open_file, write_file

__all__ = [
    "ClassifierGraph",
    "Graph",
    "SegmenterGraph",
    "TimmForm",
    "open_file",
    "timm_form",
    "write_file",
    "write_timm",
]
