"""The one training loop."""

from scanprior.engine.central_processor import keep_few_kernels, use_plain_attention
from scanprior.engine.halves import Halves
from scanprior.engine.logs import Reporter
from scanprior.engine.loop import Training, read_metrics
from scanprior.engine.processes import first_alone, launch
from scanprior.engine.settings import EngineConfig
from scanprior.engine.stream import Batch, BatchSource, Order

__all__ = [
    "Batch", "BatchSource", "EngineConfig", "Halves", "Order", "Reporter", "Training", "first_alone",
    "keep_few_kernels", "launch", "read_metrics", "use_plain_attention",
]  # fmt: skip
