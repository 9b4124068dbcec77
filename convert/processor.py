"""transformers' ``preprocessor_config.json`` as our preprocessing, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlx_peft.config.architecture import Preprocessing
from mlx_peft.config.errors import UserError

CONFIG = "preprocessor_config.json"
RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers of the filters."""

SQUASHED, CROPPED, SQUASHED_CROPPED = "ViTImageProcessor", "BitImageProcessor", "DeiTImageProcessor"
"""The image processor that prepares images so: both sides to the size; the shorter side, then the centre; both sides
to more than the size, then the centre."""

DEFAULTS: dict[str, dict[str, Any]] = {
    SQUASHED: {"size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": False},
    SQUASHED_CROPPED: {"size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True},
    CROPPED: {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True},
    "CLIPImageProcessor": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True},
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": False},
}
"""What a processor does where its file does not say."""


def read(config: Mapping[str, Any], path: Path) -> Preprocessing:
    """The preprocessing that a file describes.

    Raises:
        UserError: for a processor that does what our preprocessing has no words for.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or SQUASHED)
    kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor").removesuffix("Pil")
    if kind not in DEFAULTS:
        raise UserError(f"{path}: image_processor_type: {kind!r} is not supported (known: {', '.join(DEFAULTS)})")
    values = DEFAULTS[kind] | {key: value for key, value in config.items() if value is not None}
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not values.get(key, True):
            raise UserError(f"{path}: {key}: false is not supported")
    if not math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UserError(f"{path}: rescale_factor: only 1/255 is supported, not {values['rescale_factor']}")
    if missing := [key for key in ("image_mean", "image_std") if key not in values]:
        raise UserError(f"{path}: {' and '.join(missing)} missing, without which images cannot be prepared")
    filters = {number: name for name, number in RESAMPLE.items()}
    if values["resample"] not in filters:
        raise UserError(f"{path}: resample: only 2 (bilinear) and 3 (bicubic) are supported, not {values['resample']}")
    scaled, mode = _size(values["size"], path)
    side = (
        _size(values.get("crop_size", {"height": 224, "width": 224}), path)[0] if values["do_center_crop"] else scaled
    )
    if side > scaled:
        raise UserError(f"{path}: crop_size {side} is larger than size {scaled}")
    if mode == "center" and not values["do_center_crop"]:
        raise UserError(f"{path}: size: a shortest_edge without do_center_crop gives images that are not square")
    try:
        return Preprocessing(
            mean=values["image_mean"], std=values["image_std"], interpolation=filters[values["resample"]],
            crop_pct=side / scaled, crop_mode=mode,
        )  # fmt: skip
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"{path}: {faults}") from error


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


def _size(value: Any, path: Path) -> tuple[int, str]:
    """A side in pixels, and the crop mode it means."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, "squash"
    if isinstance(value, dict):
        sides = {key: side for key, side in value.items() if side is not None}
        if all(isinstance(side, int) and side > 0 for side in sides.values()):
            if sides.keys() == {"shortest_edge"}:
                return sides["shortest_edge"], "center"
            if sides.keys() == {"height", "width"} and sides["height"] == sides["width"]:
                return sides["height"], "squash"
    raise UserError(f"{path}: size: only squares and a shortest_edge are supported, not {value}")
