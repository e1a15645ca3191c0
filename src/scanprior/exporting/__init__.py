"""Models as files that need no scanprior: ONNX, TorchScript, and folders that timm and transformers load."""

from scanprior.exporting.graph import ClassifierGraph, Graph, SegmenterGraph
from scanprior.exporting.timm_layout import TimmForm, open_timm, timm_form, write_timm
from scanprior.exporting.written import open_file, refuse_unfit, require_packages, write_file

__all__ = [
    "ClassifierGraph",
    "Graph",
    "SegmenterGraph",
    "TimmForm",
    "open_file",
    "open_timm",
    "refuse_unfit",
    "require_packages",
    "timm_form",
    "write_file",
    "write_timm",
]
