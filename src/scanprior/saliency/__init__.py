"""Where a trained classifier looks: maps over its input, and whether they follow what it has learned."""

from scanprior.saliency.attention import attention_rollout, gradient_attention
from scanprior.saliency.gradcam import FEW_CELLS, cells_along, gradcam
from scanprior.saliency.layercam import layercam
from scanprior.saliency.methods import AUTO, METHODS, Method, check_method, choose_method, saliency_maps
from scanprior.saliency.occlusion import occlusion
from scanprior.saliency.randomisation import Randomised, likeness, randomised_maps, structural_similarity

__all__ = [
    "AUTO",
    "FEW_CELLS",
    "METHODS",
    "Method",
    "Randomised",
    "attention_rollout",
    "cells_along",
    "check_method",
    "choose_method",
    "gradcam",
    "gradient_attention",
    "layercam",
    "likeness",
    "occlusion",
    "randomised_maps",
    "saliency_maps",
    "structural_similarity",
]
