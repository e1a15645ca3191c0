"""The verbs of the command line as Python functions, each imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanprior.api.browsing import runs
    from scanprior.api.data import check, index, prepare
    from scanprior.api.ensembling import ensemble
    from scanprior.api.evaluation import compare, evaluate
    from scanprior.api.explanation import Explainer, explain
    from scanprior.api.exporting import export
    from scanprior.api.finetuning import finetune, plan_finetuning, probe
    from scanprior.api.mask_pictures import mask_preview
    from scanprior.api.pointing_game import pointing
    from scanprior.api.prediction import predict
    from scanprior.api.pretraining import plan_pretraining, pretrain
    from scanprior.api.reporting import report
    from scanprior.api.robustness import drift, shift
    from scanprior.api.sanity import sanity_check

_MODULES = {
    "check": "data", "index": "data", "prepare": "data",
    "pretrain": "pretraining", "plan_pretraining": "pretraining",
    "finetune": "finetuning", "plan_finetuning": "finetuning", "probe": "finetuning",
    "evaluate": "evaluation", "compare": "evaluation", "ensemble": "ensembling",
    "explain": "explanation", "Explainer": "explanation",
    "pointing": "pointing_game", "sanity_check": "sanity", "export": "exporting",
    "mask_preview": "mask_pictures", "runs": "browsing",
    "predict": "prediction", "report": "reporting", "drift": "robustness", "shift": "robustness",
}  # fmt: skip

__all__ = [
    "Explainer", "check", "compare", "drift", "ensemble", "evaluate", "explain", "export", "finetune", "index",
    "mask_preview", "plan_finetuning", "plan_pretraining", "pointing", "predict", "prepare", "pretrain", "probe",
    "report", "runs", "sanity_check", "shift",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(f"scanprior.api.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'scanprior.api' has no attribute {name!r}")
