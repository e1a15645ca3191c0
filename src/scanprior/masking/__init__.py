"""What is hidden from the network, as pure functions.

Masks are boolean and **True means hidden**. Every draw is keyed by (seed, purpose, position), so the
mask of a sample does not depend on the other samples of its batch, on workers or on processes.
"""

from scanprior.masking.entropy import (
    Guidance,
    GuidedMask,
    guided_patch_mask,
    unit_complexity,
    unit_scores,
    unit_weights,
)
from scanprior.masking.groups import CHUNK, Corruption, GroupMask, Kind, corrupt, group_mask
from scanprior.masking.patches import (
    PatchMask,
    hidden_count,
    patch_mask_from_scores,
    patches_to_pixels,
    random_patch_mask,
)

__all__ = [
    "CHUNK", "Corruption", "GroupMask", "Guidance", "GuidedMask", "Kind", "PatchMask", "corrupt", "group_mask",
    "guided_patch_mask", "hidden_count", "patch_mask_from_scores", "patches_to_pixels", "random_patch_mask",
    "unit_complexity", "unit_scores", "unit_weights",
]  # fmt: skip
