"""Encoders: published ones and any timm network as image → tokens, feature pyramid, pooled vector."""

from scanprior.encoders.adapters import LoraConfig
from scanprior.encoders.base import Encoder, EncoderConfig, Features, PyramidEncoder, Trained
from scanprior.encoders.creation import create_encoder
from scanprior.encoders.descriptor import descriptor
from scanprior.encoders.drop_path import KeyedDropPath, sample_positions, seed_drop_path
from scanprior.encoders.layers import blocks_of, layers_of
from scanprior.encoders.masked_convnext import MaskedConvNext
from scanprior.encoders.timm_encoder import ConvEncoder, VitEncoder
from scanprior.encoders.vmamba import VMamba
from scanprior.encoders.weights import LoadReport, load_weights, read_weights

__all__ = [
    "ConvEncoder",
    "Encoder",
    "EncoderConfig",
    "Features",
    "KeyedDropPath",
    "LoadReport",
    "LoraConfig",
    "MaskedConvNext",
    "PyramidEncoder",
    "Trained",
    "VMamba",
    "VitEncoder",
    "blocks_of",
    "create_encoder",
    "descriptor",
    "layers_of",
    "load_weights",
    "read_weights",
    "sample_positions",
    "seed_drop_path",
]
