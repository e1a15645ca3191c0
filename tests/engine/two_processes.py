"""Run by the launcher of several processes: trains the toy problem and saves the weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.toy import ToySource, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    model = train(out, source=ToySource(weighted=True), clip=0.1, ema=0.9)
    if int(torch.distributed.get_rank()) == 0:
        save_file(model.state_dict(), out / "weights.safetensors")
