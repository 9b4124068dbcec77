"""transformers' ``preprocessor_config.json`` as our preprocessing, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import in_a_line
from mlx_peft.vit.architecture import Preprocessing

CONFIG = "preprocessor_config.json"
RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow numbers its filters so."""

LARGEST = 2**16
"""No side of an image has so many pixels."""

SQUASHED, CROPPED, SQUASHED_CROPPED = "ViTImageProcessor", "BitImageProcessor", "DeiTImageProcessor"
"""The image processor that prepares images so: both sides to the size; the shorter side, then the centre; both sides
to more than the size, then the centre."""

DEFAULTS: dict[str, dict[str, Any]] = {
    SQUASHED: {"size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": False},
    SQUASHED_CROPPED: {"size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True},
    CROPPED: {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True},
    "CLIPImageProcessor": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True},
    "BeitImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": False},
    "DINOv3ViTImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": False},
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": False},
}
"""A processor does this where its file does not say."""


class _Processor(BaseModel):
    """What of a file is read; anything else in it does not change an image."""

    model_config = ConfigDict(strict=True)

    size: int | dict[str, int | None]
    crop_size: int | dict[str, int | None] = 224
    resample: int
    do_center_crop: bool
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: float = 1 / 255
    image_mean: list[float]
    image_std: list[float]


def read(config: Mapping[str, Any], path: Path) -> tuple[Preprocessing, int]:
    """The preprocessing that a file describes, and the side of the images that it gives, in pixels.

    Raises:
        UserError: for a processor that does what our preprocessing has no words for.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or SQUASHED)
    kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor").removesuffix("Pil")
    if kind not in DEFAULTS:
        raise UserError(f"{path}: image_processor_type: {kind!r} is not supported (known: {', '.join(DEFAULTS)})")
    given = DEFAULTS[kind] | {key: value for key, value in config.items() if value is not None}
    if missing := [key for key in ("image_mean", "image_std") if key not in given]:
        raise UserError(f"{path} lacks {' and '.join(missing)}, without which images cannot be prepared")
    filters = {number: name for name, number in RESAMPLE.items()}
    try:
        values = _Processor.model_validate(given)
        for key in ("do_resize", "do_rescale", "do_normalize"):
            if not getattr(values, key):
                raise UserError(f"{path}: {key}: false is not supported")
        if not math.isclose(values.rescale_factor, 1 / 255, rel_tol=1e-6):
            raise UserError(f"{path}: rescale_factor: only 1/255 is supported, not {values.rescale_factor}")
        if values.resample not in filters:
            raise UserError(f"{path}: resample: only 2 (bilinear) and 3 (bicubic) are supported, not {values.resample}")
        scaled, mode = _size(values.size, "size", path)
        side = _size(values.crop_size, "crop_size", path)[0] if values.do_center_crop else scaled
        if side > scaled:
            raise UserError(f"{path}: crop_size {side} is larger than size {scaled}")
        if mode == "center" and not values.do_center_crop:
            raise UserError(f"{path}: size: a shortest_edge without do_center_crop gives images that are not square")
        preprocessing = Preprocessing.model_validate({
            "mean": values.image_mean, "std": values.image_std, "interpolation": filters[values.resample],
            "crop_pct": side / scaled, "crop_mode": mode,
        })  # fmt: skip
        return preprocessing, side
    except ValidationError as error:
        root = Preprocessing if error.title == Preprocessing.__name__ else _Processor
        raise UserError(f"{path}: {in_a_line(error, root)}") from error


def write(preprocessing: Preprocessing, image_size: int) -> dict[str, Any]:
    """The file for a preprocessing.

    Raises:
        UserError: for a crop_mode that no processor has.
    """
    scaled = math.floor(image_size / preprocessing.crop_pct)
    if preprocessing.crop_mode == "border":
        raise UserError("transformers has no image processor for crop_mode: border")
    crops = scaled != image_size or preprocessing.crop_mode == "center"
    if preprocessing.crop_mode == "center":
        kind, size = CROPPED, {"shortest_edge": scaled}
    else:
        kind, size = SQUASHED_CROPPED if crops else SQUASHED, {"height": scaled, "width": scaled}
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[preprocessing.interpolation],
        **({"do_center_crop": True, "crop_size": {"height": image_size, "width": image_size}} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _size(value: int | dict[str, int | None], key: str, path: Path) -> tuple[int, str]:
    """A side in pixels, and the crop mode it means."""
    sides = {"height": value, "width": value} if isinstance(value, int) else value
    found = {name: side for name, side in sides.items() if side is not None}
    if all(0 < side < LARGEST for side in found.values()):
        if found.keys() == {"shortest_edge"}:
            return found["shortest_edge"], "center"
        if found.keys() == {"height", "width"} and found["height"] == found["width"]:
            return found["height"], "squash"
    raise UserError(f"{path}: {key}: only squares and a shortest_edge are supported, not {value}")
