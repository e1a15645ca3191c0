"""Foundation encoders by the names they are known by: what each is, and where its official weights come from.

This module imports no network library, so that the list is there at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Provider = Literal["timm", "open_clip", "scanprior"]


@dataclass(frozen=True)
class Listed:
    """One published encoder.

    Attributes:
        name: how ``encoder.name`` calls it.
        network: name of the architecture at its provider.
        provider: whose implementation runs.
        parameters: of the encoder with three input channels at its published size, without classification or
            pretraining heads.
        size: side in pixels of the images it was pretrained on, or published for.
        licence: of the official weights, as its authors or timm's hub card give it.
        hub: repository of the weights on the Hugging Face hub; "" where they are not there.
        file: name of the file, there or where the authors release it.
        source: where the file comes from, for people.
    """

    name: str
    network: str
    provider: Provider
    parameters: int
    size: int
    licence: str
    hub: str
    file: str
    source: str

    @property
    def family(self) -> str:
        """What stands before the first hyphen: the method's name where a size follows it."""
        return self.name.split("-")[0]


def _timm(
    name: str, network: str, tag: str, parameters: int, size: int, licence: str, source: str = ""
) -> Listed:
    hub = f"timm/{network}.{tag}"
    return Listed(
        name, network, "timm", parameters, size, licence, hub, "model.safetensors", source or f"hub {hub}"
    )


_META_DINOV2 = "dinov2_vit{}14{}_pretrain.pth of facebookresearch/dinov2"


def _dinov2() -> list[Listed]:
    sizes = [
        ("s", "small", 22_056_192), ("b", "base", 86_579_712),
        ("l", "large", 304_367_616), ("g", "giant", 1_136_479_232),
    ]  # fmt: skip
    widths = {"s": 384, "b": 768, "l": 1024, "g": 1536}
    made = []
    for letter, word, parameters in sizes:
        for suffix, registers in (("", 0), ("-reg", 4)):
            more = registers * widths[letter] - (widths[letter] if registers else 0)
            network = f"vit_{word}_patch14_{'reg4_' if registers else ''}dinov2"
            source = _META_DINOV2.format(letter, "_reg4" if registers else "")
            made.append(
                _timm(
                    f"dinov2-{letter}{suffix}", network, "lvd142m", parameters + more, 518, "Apache-2.0",
                    f"{source}; hub timm/{network}.lvd142m",
                )
            )  # fmt: skip
    return made


def _mae() -> list[Listed]:
    rows = [
        ("b", "vit_base_patch16_224", "base", 85_798_656),
        ("l", "vit_large_patch16_224", "large", 303_301_632),
        ("h", "vit_huge_patch14_224", "huge", 630_764_800),
    ]
    return [
        _timm(
            f"mae-{letter}", network, "mae", parameters, 224, "CC-BY-NC-4.0",
            f"mae_pretrain_vit_{word}.pth of facebookresearch/mae; hub timm/{network}.mae",
        )
        for letter, network, word, parameters in rows
    ]  # fmt: skip


def _sam2() -> list[Listed]:
    rows = [
        ("t", "tiny", 26_851_008, 96), ("s", "small", 33_948_864, 96),
        ("b+", "base_plus", 68_677_504, 112), ("l", "large", 212_151_600, 144),
    ]  # fmt: skip
    made = []
    for letter, word, parameters, width in rows:
        hub, file = f"facebook/sam2-hiera-{word.replace('_', '-')}", f"sam2_hiera_{word}.pt"
        # four lateral convolutions with a bias, instead of the last norm
        neck = 256 * width * (1 + 2 + 4 + 8) + 4 * 256 - 2 * 8 * width
        kinds: tuple[tuple[str, Provider, int], ...] = (
            ("", "timm", parameters), ("-fpn", "scanprior", parameters + neck),
        )  # fmt: skip
        for suffix, provider, count in kinds:
            made.append(
                Listed(
                    f"sam2-{letter}{suffix}", f"sam2_hiera_{word}", provider, count, 1024, "Apache-2.0", hub, file,
                    f"hub {hub}, {file}",
                )
            )  # fmt: skip
    return made


def _others() -> list[Listed]:
    rows = [
        ("aimv2-l", "aimv2_large_patch14_224", "apple_pt", 309_197_824, 224, "Apple ASCL"),
        ("aimv2-h", "aimv2_huge_patch14_224", "apple_pt", 680_851_968, 224, "Apple ASCL"),
        ("dinov3-s", "vit_small_patch16_dinov3", "lvd1689m", 21_586_944, 256, "DINOv3 licence"),
        ("dinov3-s+", "vit_small_plus_patch16_dinov3", "lvd1689m", 28_683_264, 256, "DINOv3 licence"),
        ("dinov3-b", "vit_base_patch16_dinov3", "lvd1689m", 85_641_216, 256, "DINOv3 licence"),
        ("dinov3-l", "vit_large_patch16_dinov3", "lvd1689m", 303_079_424, 256, "DINOv3 licence"),
        ("dinov3-h+", "vit_huge_plus_patch16_dinov3", "lvd1689m", 840_509_440, 256, "DINOv3 licence"),
        ("dinov3-7b", "vit_7b_patch16_dinov3", "lvd1689m", 6_716_030_976, 256, "DINOv3 licence"),
        ("hiera-t", "hiera_tiny_224", "mae", 27_141_216, 224, "CC-BY-NC-4.0"),
        ("hiera-s", "hiera_small_224", "mae", 34_239_072, 224, "CC-BY-NC-4.0"),
        ("hiera-b", "hiera_base_224", "mae", 50_755_968, 224, "CC-BY-NC-4.0"),
        ("hiera-b+", "hiera_base_plus_224", "mae", 68_999_616, 224, "CC-BY-NC-4.0"),
        ("hiera-l", "hiera_large_224", "mae", 212_586_912, 224, "CC-BY-NC-4.0"),
        ("hiera-h", "hiera_huge_224", "mae", 670_730_752, 224, "CC-BY-NC-4.0"),
        ("swin-t", "swin_tiny_patch4_window7_224", "ms_in1k", 27_519_354, 224, "MIT"),
        ("swin-s", "swin_small_patch4_window7_224", "ms_in1k", 48_837_258, 224, "MIT"),
        ("swin-b", "swin_base_patch4_window7_224", "ms_in22k", 86_743_224, 224, "MIT"),
        ("swin-l", "swin_large_patch4_window7_224", "ms_in22k", 194_995_476, 224, "MIT"),
        ("convnext-t", "convnext_tiny", "fb_in22k", 27_820_128, 224, "Apache-2.0"),
        ("convnext-s", "convnext_small", "fb_in22k", 49_454_688, 224, "Apache-2.0"),
        ("convnext-b", "convnext_base", "fb_in22k", 87_566_464, 224, "Apache-2.0"),
        ("convnext-l", "convnext_large", "fb_in22k", 196_230_336, 224, "Apache-2.0"),
        ("vgg19", "vgg19", "tv_in1k", 139_570_240, 224, "BSD-3-Clause"),
    ]
    listed = [_timm(*row) for row in rows]
    listed += [
        Listed(
            "retfound", "vit_large_patch16_224", "timm", 303_301_632, 224, "CC-BY-NC-4.0",
            "YukunZhou/RETFound_mae_natureCFP", "RETFound_mae_natureCFP.pth",
            "hub YukunZhou/RETFound_mae_natureCFP (access on request)",
        ),
        Listed(
            "rad-dino", "vit_base_patch14_dinov2", "timm", 86_579_712, 518, "MSRLA (research)",
            "microsoft/rad-dino", "model.safetensors", "hub microsoft/rad-dino",
        ),
        Listed(
            "coca-b32", "coca_ViT-B-32", "open_clip", 89_164_032, 224, "MIT",
            "laion/CoCa-ViT-B-32-laion2B-s13B-b90k", "open_clip_pytorch_model.bin",
            "hub laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
        ),
        Listed(
            "coca-l14", "coca_ViT-L-14", "open_clip", 306_724_864, 224, "MIT",
            "laion/CoCa-ViT-L-14-laion2B-s13B-b90k", "open_clip_pytorch_model.bin",
            "hub laion/CoCa-ViT-L-14-laion2B-s13B-b90k",
        ),
        Listed(
            "vmamba-t", "vmamba_tiny", "scanprior", 29_480_064, 224, "MIT", "",
            "vssm1_tiny_0230s_ckpt_epoch_264.pth", "releases of MzeroMiko/VMamba (v2cls)",
        ),
        Listed(
            "vmamba-s", "vmamba_small", "scanprior", 49_378_752, 224, "MIT", "",
            "vssm_small_0229_ckpt_epoch_222.pth", "releases of MzeroMiko/VMamba (v2cls)",
        ),
        Listed(
            "vmamba-b", "vmamba_base", "scanprior", 87_532_800, 224, "MIT", "",
            "vssm_base_0229_ckpt_epoch_237.pth", "releases of MzeroMiko/VMamba (v2cls)",
        ),
    ]  # fmt: skip
    return listed


_LISTED: dict[str, Listed] = {entry.name: entry for entry in [*_dinov2(), *_mae(), *_sam2(), *_others()]}


def listed(name: str) -> Listed | None:
    """Return the published encoder of a name; None where the name is timm's own or unknown."""
    return _LISTED.get(name)


def all_listed() -> tuple[Listed, ...]:
    """Return every published encoder, families together, small ones first."""
    return tuple(sorted(_LISTED.values(), key=lambda entry: (entry.family, entry.parameters)))


def similar(name: str) -> list[str]:
    """Return listed names that look like a misspelt one."""
    return difflib.get_close_matches(name, _LISTED, n=2, cutoff=0.6)


def network_of(name: str) -> str:
    """Return the architecture's name of a listed name; any other name is its own, without its tag."""
    entry = _LISTED.get(name)
    return name.split(".", 1)[0] if entry is None else entry.network
