"""RandAugment and colour jitter, as torchvision has them for Pillow images, drawn from a generator of ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mlx_peft.config.augment import Augment, ColorJitter, RandAugment

BINS = 31
"""There are so many steps from no change to the largest; a magnitude of 9 is the tenth."""

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *inverse: float) -> Image.Image:
    """Where each pixel comes from: x' = a x + b y + c, y' = d x + e y + f; black where that is outside."""
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, change: kind(image).enhance(1 + change)


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, x: _affine(image, 1, x, 0, 0, 1, 0),
    "ShearY": lambda image, y: _affine(image, 1, 0, 0, y, 1, 0),
    "TranslateX": lambda image, x: _affine(image, 1, 0, -int(x), 0, 1, 0),
    "TranslateY": lambda image, y: _affine(image, 1, 0, 0, 0, 1, -int(y)),
    "Rotate": lambda image, degrees: image.rotate(degrees),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),  # type: ignore[arg-type]
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
"""The change of these operations is turned round in half of the cases."""


def change(operation: str, magnitude: int, size: tuple[int, int]) -> float:
    """How much an operation does at a magnitude of 0..30 to an image of `size` (width, height); 0 if it has no say."""
    share = magnitude / (BINS - 1)
    width, height = size
    ends = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150 / 331 * width,
        "TranslateY": 150 / 331 * height,
        "Rotate": 30.0,
    }
    if operation == "Posterize":
        return 8 - round(4 * share)
    if operation == "Solarize":
        return 255 * (1 - share)
    return share * ends.get(operation, 0.9 if operation in SIGNED else 0.0)


def changed(rng: np.random.Generator, image: np.ndarray, config: Augment) -> np.ndarray:
    """A uint8 ``(height, width, 3)`` image after whichever of the two is asked for; as it is where neither is."""
    if not (config.randaugment or config.color_jitter):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    if config.randaugment:
        picture = rand_augment(rng, picture, config.randaugment)
    if config.color_jitter:
        picture = color_jitter(rng, picture, config.color_jitter)
    return np.asarray(picture)


def rand_augment(rng: np.random.Generator, image: Image.Image, config: RandAugment) -> Image.Image:
    """RandAugment (Cubuk et al. 2020): `ops` operations, drawn alike and with replacement, each at one magnitude."""
    names = list(OPERATIONS)
    for _ in range(config.ops):
        name = names[rng.integers(len(names))]
        amount = change(name, config.magnitude, image.size)
        if name in SIGNED and rng.random() < 0.5:
            amount = -amount
        image = OPERATIONS[name](image, amount)
    return image


def color_jitter(rng: np.random.Generator, image: Image.Image, config: ColorJitter) -> Image.Image:
    """Brightness, contrast and saturation times factors in 1 - x .. 1 + x, the hue turned by -x .. x; in any order."""
    steps = list(JITTER.items())
    for number in rng.permutation(len(steps)):
        name, operation = steps[number]
        if reach := getattr(config, name):
            amount = rng.uniform(-reach if name == "hue" else max(-reach, -1.0), reach)
            image = operation(image, amount)
    return image


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    """The hue turned by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    step = math.trunc(share * 255) % 256
    turned = Image.fromarray(np.asarray(hue) + np.uint8(step))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


JITTER: dict[str, Operation] = {
    "brightness": OPERATIONS["Brightness"],
    "contrast": OPERATIONS["Contrast"],
    "saturation": OPERATIONS["Color"],
    "hue": _turn_hue,
}
"""The operations by the keys of ``data.augment.color_jitter``."""
