"""scanprior: learn a prior from the scans you have, and spend your few labels well.

The verbs of the command line are functions here: ``scanprior.pretrain(...)``,
``scanprior.finetune(...)``, ``scanprior.evaluate(...)`` and so on (see ``scanprior.api``).
They are imported on first use, so that ``import scanprior`` costs next to nothing. It lets all threads of the process
allocate from one arena (``scanprior.allocation``), unless ``MALLOC_ARENA_MAX`` is set.
"""

from __future__ import annotations

from typing import Any

from scanprior.allocation import use_one_arena

__version__ = "0.1.0"

_VERBS = (
    "check", "compare", "drift", "ensemble", "evaluate", "explain", "export", "finetune", "index", "prepare",
    "predict", "pretrain", "probe", "report", "runs", "serve", "shift", "study",
)  # fmt: skip

__all__ = ["__version__", *_VERBS]


use_one_arena()  # before anything is imported that starts threads, as pyarrow does


def __getattr__(name: str) -> Any:
    if name == "study":
        from scanprior.studies import study

        return study
    if name == "serve":
        from scanprior.serving import serve

        return serve
    if name in _VERBS:
        from scanprior import api

        return getattr(api, name)
    raise AttributeError(f"module 'scanprior' has no attribute {name!r}")
