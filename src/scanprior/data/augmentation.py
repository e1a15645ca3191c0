"""How training images are varied: the settings, and presets of them.

Numbers marked [ours] are not from a publication.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from scanprior.config import Config


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"a range needs 0 < low <= high, found {value[0]} to {value[1]}")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Augmentation(Config):
    """Random variation of the training images; everything is off unless said.

    Geometry comes first and is one resampling: rotation, zoom and shift of the image about its
    centre, then the crop, then the mirror. What lies outside the image is black. Then brightness,
    contrast, saturation, hue and gamma (always in this order [ours]; torchvision shuffles the first
    four), grey, blur, solarise and noise.
    """

    crop_scale: Range = Field(
        (1.0, 1.0), description="area of a random resized crop, as a share of the image; 1 1 = no crop"
    )
    crop_ratio: Range = Field((3 / 4, 4 / 3), description="width by height of the crop, log-uniform")
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="of crop, rotation and zoom"
    )
    rotate: float = Field(0.0, ge=0, le=180, description="greatest rotation either way, in degrees")
    translate: float = Field(0.0, ge=0, le=1, description="greatest shift either way, as a share of the side")
    zoom: Range = Field((1.0, 1.0), description="magnification, log-uniform")
    hflip: Probability = Field(0.0, description="probability of mirroring left and right")
    vflip: Probability = Field(0.0, description="probability of mirroring top and bottom")
    jitter_p: Probability = Field(1.0, description="probability that brightness to gamma apply at all")
    brightness: float = Field(0.0, ge=0, le=1, description="b: factor from 1-b to 1+b")
    contrast: float = Field(0.0, ge=0, le=1, description="c: factor from 1-c to 1+c about the mean grey")
    saturation: float = Field(0.0, ge=0, le=1, description="s: factor from 1-s to 1+s; colour images only")
    hue: float = Field(
        0.0, ge=0, le=0.5, description="greatest turn of the hue, in turns; colour images only"
    )
    gamma: float = Field(0.0, ge=0, description="g: exponent from 1/(1+g) to 1+g, log-uniform")
    grey_p: Probability = Field(0.0, description="probability of turning grey; colour images only")
    blur_p: Probability = Field(0.0, description="probability of a Gaussian blur")
    blur_sigma: Range = Field(
        (0.1, 2.0), description="its deviation in pixels of a 224 px image; scaled with the size [ours]"
    )
    solarize_p: Probability = Field(0.0, description="probability of inverting the pixels of 0.5 and above")
    noise: float = Field(0.0, ge=0, le=1, description="greatest deviation of Gaussian noise, white being 1")
    views: list[dict[str, Any]] = Field(
        [], description="what differs for the first, second, ... view of an image"
    )

    @model_validator(mode="after")
    def _views_are_valid(self) -> Augmentation:
        for number, own in enumerate(self.views):
            for name in own:
                if name not in Augmentation.model_fields or name == "views":
                    raise ValueError(f"views[{number}].{name}: not a setting that a view can have")
            try:
                self.for_view(number)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                raise ValueError(f"views[{number}].{place}: {first['input']!r} will not do") from None
        return self

    @property
    def is_off(self) -> bool:
        """Whether every view of an image is the image."""
        fixed = Augmentation().model_dump()
        own = self.model_dump()
        return all(own[name] == value for name, value in fixed.items())

    def for_view(self, view: int) -> Augmentation:
        """Return the settings of view number ``view``."""
        settings = {name: getattr(self, name) for name in Augmentation.model_fields if name != "views"}
        return Augmentation.model_validate(settings | (self.views[view] if view < len(self.views) else {}))


# A chest radiograph is not mirrored by default: the heart lies on one side. `hflip: 0.5` is the
# published value of gmml, sit and mae.
presets: dict[str, Augmentation] = {
    "none": Augmentation(),
    # [ours], for fine-tuning; after DeiT.
    "chest_xray": Augmentation(crop_scale=(0.7, 1.0), rotate=10, brightness=0.2, contrast=0.2),
    # [ours], for pretraining on some thousand images: the whole chest stays in view.
    "chest_xray_mild": Augmentation(
        rotate=7, translate=0.05, zoom=(0.9, 1.15), brightness=0.15, contrast=0.15
    ),
    # [ours], for breast ultrasound and the like. Never upside down, as sound comes from above; gain varies.
    "ultrasound": Augmentation(crop_scale=(0.8, 1.0), hflip=0.5, brightness=0.15, contrast=0.15),
    # [ours]. A lesion has no upright; its colour is part of the diagnosis and changes least.
    "dermoscopy": Augmentation(
        crop_scale=(0.8, 1.0), rotate=180, hflip=0.5, vflip=0.5, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.01
    ),
    # [ours]. The endoscope turns freely, and its light comes and goes.
    "endoscopy": Augmentation(
        crop_scale=(0.8, 1.0), rotate=180, hflip=0.5, vflip=0.5, brightness=0.2, contrast=0.2, saturation=0.1, hue=0.02
    ),
    # GMML without local crops; interpolation [ours], not published.
    "gmml": Augmentation(
        crop_scale=(0.05, 1.0), jitter_p=0.3, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.01, blur_p=0.1
    ),
    "sit": Augmentation(
        crop_scale=(0.2, 1.0), interpolation="bicubic", jitter_p=0.8, brightness=0.4, contrast=0.4,
        saturation=0.2, hue=0.1, grey_p=0.2, views=[{"blur_p": 1.0}, {"blur_p": 0.1, "solarize_p": 0.2}],
    ),
    "mae": Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic"),
    # As in Medical-Transfer-Learning (arXiv 2505.19779, its code), as far as it can be said here. There the image is
    # first cut to the middle 224 of 256 pixels, in training and in testing, and nothing of that is done here. Its
    # crop is of 0.8 to 1.2 of the area; torchvision draws again until one lies inside, so that it is 0.8 to 1 at most.
    # Brightness, contrast, saturation and hue come in a shuffled order there, and in a fixed one here.
    "medical_transfer": Augmentation(
        crop_scale=(0.8, 1.0), hflip=0.5, vflip=0.5, jitter_p=0.8, brightness=0.2, contrast=0.2, saturation=0.1, hue=0.1
    ),
    # The usual settings for photographs.
    "natural": Augmentation(
        crop_scale=(0.08, 1.0), hflip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8
    ),
}  # fmt: skip


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return list(presets)
