"""The evaluation recipe: timm's, pixel for pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import FileImages, Split, eval_batches, eval_image, train_batches
from mlx_peft.data.limits import Limits
from mlx_peft.vit.architecture import Preprocessing

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


@pytest.mark.parametrize("size", [(100, 1), (1, 100)])
@pytest.mark.parametrize(
    ("crop_mode", "side", "becomes"), [("center", 1024, "1137 x 113700|113700 x 1137"), ("border", 32, "0 x 35|35 x 0")]
)
def test_an_image_too_narrow_for_the_recipe_is_refused_by_name(
    tmp_path: Path, size: tuple[int, int], crop_mode: str, side: int, becomes: str
) -> None:
    """The longest file that is read at all would become an image of 400 MB, or of no pixels."""
    preprocessing = Preprocessing(mean=MEAN, std=STD, crop_pct=0.9, crop_mode=crop_mode)
    Image.new("RGB", size).save(tmp_path / "image.png")
    message = (
        rf"image\.png: {size[0]} x {size[1]} pixels would become ({becomes}), and should become 1 to 89,478,485 in all"
    )
    with pytest.raises(UserError, match=message):
        eval_image(tmp_path / "image.png", preprocessing, side)
    split = Split("train", FileImages(tmp_path, ("image.png",)), np.zeros(1, np.int64))
    config = schema.Data(name="folder", batch_size=1, threads=1)
    flipped = schema.Data(name="folder", batch_size=1, threads=1, augment={"flip": True})
    for batches in (
        eval_batches(split, config, preprocessing, side),
        train_batches(split, config, preprocessing, side, seed=0, epoch=0),
        train_batches(split, flipped, preprocessing, side, seed=0, epoch=0),
    ):
        with pytest.raises(UserError, match=message):
            next(batches)


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("side", [50, 224, 518])
@pytest.mark.parametrize("shape", [(Limits.ratio, 1), (1, Limits.ratio)])
def test_what_is_read_fits_every_recipe_that_is_in_use(
    crop_mode: Literal["center", "border", "squash"], side: int, shape: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(mean=MEAN, std=STD, crop_pct=0.9, crop_mode=crop_mode)
    assert eval_image(np.zeros((*shape, 3), np.uint8), preprocessing, side).shape == (side, side, 3)


def test_the_longest_image_that_may_be_resized_is() -> None:
    preprocessing = Preprocessing(mean=MEAN, std=STD, crop_pct=1.0)
    assert eval_image(np.zeros((10_000, 1, 3), np.uint8), preprocessing, 64).shape == (64, 64, 3)
