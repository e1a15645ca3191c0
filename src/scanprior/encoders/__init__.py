"""Encoders: published ones and any timm network as image → tokens, feature pyramid, pooled vector."""

from scanprior.encoders.base import Encoder, EncoderConfig, Features, Trained
from scanprior.encoders.creation import create_encoder
from scanprior.encoders.drop_path import KeyedDropPath, sample_positions, seed_drop_path
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
    "MaskedConvNext",
    "Trained",
    "VMamba",
    "VitEncoder",
    "create_encoder",
    "load_weights",
    "read_weights",
    "sample_positions",
    "seed_drop_path",
]
