"""How training images are changed from epoch to epoch: what may be asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlx_peft.config.section import Section
from mlx_peft.vit.architecture import MOST_PIXELS


class RandAugment(Section):
    """RandAugment (Cubuk et al. 2020), torchvision's operations and magnitudes."""

    ops: int = Field(2, ge=1, le=100, description="operations on an image, one after the other")
    magnitude: int = Field(9, ge=0, le=30, description="of each, from none to 30")


class ColorJitter(Section):
    """Random changes of colour, torchvision's: factors in 1 - x to 1 + x; the hue turned by -x to x of the circle."""

    brightness: float = Field(0.4, ge=0, le=100)
    contrast: float = Field(0.4, ge=0, le=100)
    saturation: float = Field(0.4, ge=0, le=100)
    hue: float = Field(0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _does_something(self) -> ColorJitter:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("changes nothing: leave it out")
        return self


class Erasing(Section):
    """Random erasing (Zhong et al. 2020) of a box, timm's."""

    probability: float = Field(0.25, gt=0, le=1)
    area: tuple[float, float] = Field((0.02, 1 / 3), description="of the box, share of the image's")
    ratio: tuple[float, float] = Field((0.3, 10 / 3), description="of the box, height / width")
    fill: Literal["mean", "noise"] = Field("mean", description="the weights' mean colour, or noise around it")

    @model_validator(mode="after")
    def _intervals(self) -> Erasing:
        an_interval(self.area)
        an_interval(self.ratio)
        if self.area[1] > 1:
            raise ValueError(f"area: should be at most 1, not {self.area[1]}")
        return self


FARTHEST = 1e4
"""The ratio of two sides, or of two areas, is at most this: a side of an image has no more pixels than about that."""


def an_interval(interval: tuple[float, float]) -> tuple[float, float]:
    if not 0 < interval[0] <= interval[1]:
        raise ValueError(f"should be a smaller and a larger number above 0, not {list(interval)}")
    if interval[0] < 1 / FARTHEST or interval[1] > FARTHEST:
        raise ValueError(f"should be between {1 / FARTHEST:g} and {FARTHEST:g}, not {list(interval)}")
    return interval


class Augment(Section):
    crop: Literal["none", "padded", "random_resized"] = "none"
    padding: int = Field(4, ge=0, le=MOST_PIXELS, description="padded: stored pixels on each side, reflected")
    scale: tuple[float, float] = Field((0.08, 1.0), description="random_resized: share of the area")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="random_resized: width / height")
    flip: bool = Field(False, description="horizontal, with probability 1/2")
    randaugment: RandAugment | None = None
    color_jitter: ColorJitter | None = None
    erasing: Erasing | None = None
    mixup: float = Field(0.0, ge=0, le=1e6, description="of its Beta distribution: timm's is 0.8; 0: off")
    cutmix: float = Field(0.0, ge=0, le=1e6, description="of its Beta distribution: timm's is 1; 0: off")
    mix_probability: float = Field(1.0, gt=0, le=1, description="that a batch is mixed")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="of the batches that are mixed, where both are on")
    repeats: int = Field(1, ge=1, le=1000, description="copies of an image in an epoch, of so many fewer images")

    @field_validator("scale", "ratio")
    @classmethod
    def _an_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        return an_interval(interval)

    @model_validator(mode="after")
    def _fit_together(self) -> Augment:
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.randaugment and self.color_jitter:
            raise ValueError("randaugment changes colours itself: choose it or color_jitter")
        if "mix_probability" in given and not self.mixes:
            raise ValueError("mix_probability needs mixup or cutmix")
        if "cutmix_share" in given and not (self.mixup and self.cutmix):
            raise ValueError("cutmix_share needs both mixup and cutmix")
        if self.repeats > 1 and not self.changes_image:
            raise ValueError("repeats without another augmentation would show the same pixels again")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)

    @property
    def changes_image(self) -> bool:
        """Whether an image differs from epoch to epoch before it meets another."""
        return self.flip or self.crop != "none" or bool(self.randaugment or self.color_jitter or self.erasing)

    @property
    def changes_pixels(self) -> bool:
        """Whether what the model sees differs from epoch to epoch."""
        return self.changes_image or self.mixes
