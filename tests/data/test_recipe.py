"""The evaluation recipe: timm's, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from mlx_peft.config.architecture import Preprocessing
from mlx_peft.data import eval_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int) -> Image.Image:
    small = np.random.default_rng(height).integers(0, 256, (1 + height // 5, 1 + width // 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [(250, 250), (301, 200), (97, 260), (31, 17), (9, 300)])
def test_the_pixels_are_timms(interpolation: str, crop_mode: str, crop_pct: float, size: tuple[int, int]) -> None:
    image = picture(*size)
    preprocessing = Preprocessing(
        mean=MEAN, std=STD, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
    )
    for image_size in (112, 75):
        theirs = create_transform(
            image_size,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            mean=MEAN,
            std=STD,
            normalize=False,
        )(image)
        ours = eval_image(np.asarray(image), preprocessing, image_size)
        assert ours.shape == (image_size, image_size, 3)
        assert np.array_equal(ours, theirs.numpy().transpose(1, 2, 0))


def test_a_path_and_its_pixels_give_the_same(tmp_path: Path) -> None:
    preprocessing = Preprocessing(mean=MEAN, std=STD)
    picture(60, 80).save(tmp_path / "image.png")
    ours = eval_image(tmp_path / "image.png", preprocessing, 32)
    assert np.array_equal(ours, eval_image(np.asarray(picture(60, 80)), preprocessing, 32))
