"""Image files: every format and mode becomes upright uint8 RGB, or is refused by name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from pictures import png
from PIL import Image

from mlx_peft.core.errors import UserError
from mlx_peft.data import read_image, reading

JPEG_ERROR = 12
"""Levels by which a smooth image may change in JPEG at quality 95."""


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 4, 255 - rows * 2 - columns], -1).astype(np.uint8)


def photograph(height: int = 120, width: int = 150, seed: int = 0) -> Image.Image:
    """Something with edges and texture, so that two decoders that differ do differ on it."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("jpg", {"quality": 95}, JPEG_ERROR),
        ("jpeg", {"quality": 95, "progressive": True}, JPEG_ERROR),
        ("png", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("tif", {}, 0),
        ("tiff", {"compression": "tiff_lzw"}, 0),
        ("bmp", {}, 0),
    ],
)
def test_each_format_gives_its_pixels(tmp_path: Path, suffix: str, options: dict[str, object], tolerance: int) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(smooth()).save(path, **options)  # type: ignore[arg-type]
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (40, 56, 3)
    assert np.abs(image.astype(int) - smooth()).max() <= tolerance


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "moving.gif"), np.asarray(frames[0]))


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.jpg")
    assert np.array_equal(read_image(tmp_path / "image.jpg"), smooth())


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(smooth()).convert("L").save(tmp_path / f"grey.{suffix}")
    image = read_image(tmp_path / f"grey.{suffix}")
    assert image.shape == (40, 56, 3)
    assert (image == image[..., :1]).all()


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(smooth()[..., 0] > 80).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 2], np.where(smooth()[..., 0] > 80, 255, 0))


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(smooth()).quantize(32)
    image.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    half = np.zeros((2, 3, 4), np.uint8)
    half[0, :, 3] = 128
    Image.fromarray(half).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png")[:, 0].tolist() == [[127] * 3, [255] * 3]
    Image.fromarray(half[..., 2:]).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[:, 0].tolist() == [[127] * 3, [255] * 3]


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "ink.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "ink.jpg").astype(int) - smooth()).max() <= JPEG_ERROR


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_taken(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    assert read_image(tmp_path / f"deep.{suffix}")[0, :, 1].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_range_that_nobody_agreed_on_is_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif: .* have no agreed range"):
        read_image(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(smooth()).save(tmp_path / f"turned.{suffix}", exif=exif, **options)
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](smooth())
    image = read_image(tmp_path / f"turned.{suffix}")
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() <= (JPEG_ERROR if suffix == "jpg" else 0)


TURNED = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def test_the_orientation_in_xmp_is_applied(tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "turned.jpg", quality=95, xmp=TURNED)
    image = read_image(tmp_path / "turned.jpg")
    assert np.abs(image.astype(int) - np.rot90(smooth(), -1)).max() <= JPEG_ERROR


def encoded(**options: object) -> bytes:
    file = io.BytesIO()
    photograph().save(file, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, form: str) -> None:
    data = encoded(format=form)
    path = tmp_path / "half.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"half\.img: not a readable image \(.+\)"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"text, not an image", b"\xff\xd8\xff\xd9", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "no.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"no\.jpg: not a readable image"):
        read_image(tmp_path / "no.jpg")


def test_a_file_that_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jpg: cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg"):
        with pytest.raises(UserError, match=f"{path.name}: (a folder, )?not a file"):
            read_image(path)


def test_of_16_bit_colours_the_upper_8_are_taken(tmp_path: Path) -> None:
    samples = np.array([[[0, 255, 256], [32768, 65535, 513]]], ">u2")
    data = png(2, 1, 16, 2, b"\0" + samples.tobytes())
    (tmp_path / "deep.png").write_bytes(data)
    assert read_image(tmp_path / "deep.png").tolist() == [[[0, 0, 1], [128, 255, 2]]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what it reads of a truncated TIFF
def test_bytes_are_read_as_the_file_is(tmp_path: Path, form: str) -> None:
    data = encoded(format=form)
    (tmp_path / "image").write_bytes(data)
    assert np.array_equal(reading.decode_image(data, "row 3"), read_image(tmp_path / "image"))
    assert reading.stored_as(data).split()[0] == form
    with pytest.raises(UserError, match=r"^row 3: not a readable image"):
        reading.decode_image(data[:30], "row 3")
