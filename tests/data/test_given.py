"""Images as a person has them: whatever holds them, the same pixels; what is no image is told by a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

# isort: split
import mlx.core as mx

from mlx_peft.core.errors import UserError
from mlx_peft.data import eval_image, given
from mlx_peft.vit.architecture import Preprocessing

RECIPE = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)
SIZE = 24


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def one(image, layout="NHWC"):
    (found,), alone = given.taken(image, layout)
    return given.seen(found, RECIPE, SIZE), alone


def test_a_picture_is_the_same_whatever_holds_it(picture, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(picture).save(file)
    expected = eval_image(file, RECIPE, SIZE)
    for image in (file, str(file), Image.open(file), picture, mx.array(picture), torch.tensor(picture), picture + 0):
        found, alone = one(image)
        assert alone
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(one(picture.transpose(2, 0, 1), "NCHW")[0], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA", "I;16"])
def test_pillows_image_is_read_as_its_file(picture, tmp_path, mode):
    image = Image.fromarray(picture).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(picture[..., 0].astype(np.uint16) << 8)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    np.testing.assert_array_equal(one(image)[0], one(file)[0])


def test_a_turned_photo_is_turned_back(picture, tmp_path):
    image, exif = Image.fromarray(picture), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        (found,), _ = given.taken(opened)
    assert found.shape == (56, 40, 3)


def test_an_array_of_the_models_size_is_as_it_should_be(picture):
    ready = picture[:SIZE, :SIZE]
    np.testing.assert_array_equal(one(ready)[0], ready)


def test_lists_folders_and_batches_are_several(picture, tmp_path):
    for name in ("b.png", "a.jpg", "in/c.PNG", "in/._d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name, format="PNG")
    found, alone = given.taken(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.jpg", "b.png", "in/c.PNG"] and not alone
    batch = np.stack([picture, picture])
    assert len(given.taken(batch)[0]) == 2 and not given.taken(batch[:1])[1]
    found, alone = given.taken([tmp_path / "a.jpg", batch, Image.fromarray(picture), tmp_path / "in"])
    assert len(found) == 5 and not alone
    assert given.taken([]) == ([], False)


def test_grey_is_one_channel_thrice(picture):
    grey = picture[..., :1]
    for image in (grey, grey[..., 0]):
        (found,), alone = given.taken(image)
        assert alone and found.shape == (40, 56, 3) and (found == grey).all()
    assert len(given.taken(np.stack([grey, grey]).astype(np.int64))[0]) == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.linspace(-2, 2, 48).reshape(4, 4, 3), r"float64 from -2 to 2, normalised already"),
        (np.linspace(0, 1, 48, dtype=np.float32).reshape(4, 4, 3), r"from 0 to 1: give \(255 \* images\)"),
        (np.linspace(0, 200, 48).reshape(4, 4, 3), r"give images\.round\(\)"),
        (np.full((4, 4, 3), 300), "int64 from 300 to 300"),
        (np.full((4, 4, 3), -1), "from -1 to -1"),
        (np.full((4, 4, 3), np.nan), "nan to nan"),
        (np.zeros((4, 4, 3), bool), "not 48 times bool"),
        (np.zeros((3, 8, 8), np.uint8), "say layout='NCHW'"),
        (np.zeros((2, 3, 8, 8), np.uint8), "say layout='NCHW'"),
        (np.zeros((7, 8, 8), np.uint8), r"images\[\.\.\., None\]"),
        (np.zeros((8, 8, 4), np.uint8), r"images\[\.\.\., :3\]"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), r"\(height, width, 3\) is one"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (torch.zeros(4, 4, 3, requires_grad=True), "Tensor is no image: .*requires grad"),
        (object(), "images should be|is no image"),
        (None, "images should be|is no image"),
    ],
)
def test_what_is_no_image_is_told(image, message):
    with pytest.raises(UserError, match=message):
        given.taken(image)


def test_so_is_another_layout_and_a_folder_without_images(picture, tmp_path):
    with pytest.raises(UserError, match="layout should be NHWC or NCHW, not 'CHW'"):
        given.taken(picture, "CHW")
    with pytest.raises(UserError, match="no one or three channels first: leave layout out"):
        given.taken(picture, "NCHW")
    with pytest.raises(UserError, match="a folder without images"):
        given.taken(tmp_path)
    with pytest.raises(UserError, match=r"mode F have no agreed range"):
        given.taken(Image.fromarray(picture[..., 0].astype(np.float32)))
