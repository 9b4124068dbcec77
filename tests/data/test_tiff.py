"""TIFF files and 16-bit ones: what their tags say of the pixels is what is read, or the file is refused by name.

Every file here is put together by hand, so that what is right is known without another reader.
"""

from __future__ import annotations

import numpy as np
import pytest
from pictures import DEFLATE, SHORT, png, tiff

from mlx_peft.core.errors import UserError
from mlx_peft.data import reading

ORDERS = ("<", ">")
ROUNDING = 1
"""Levels by which a sample laid over white may differ: Pillow's own rounding, and that of undoing association."""


def noise(*shape: int, bits: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, shape).astype(np.uint16 if bits > 8 else np.uint8)


def read(data: bytes) -> np.ndarray:
    return reading.decode_image(data, "file.tif")


def eight(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples of so many bits as levels of 0 to 255."""
    return samples.astype(int) >> bits - 8 if bits > 8 else samples.astype(int) * 255 // (2**bits - 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_is_read_the_way_round_that_its_tag_says(
    photometric: int, bits: int, compression: int, order: str
) -> None:
    samples = noise(7, 13, bits=bits)
    levels = eight(samples, bits)
    image = read(tiff(samples, photometric, bits=bits, order=order, compression=compression, rows=3))
    assert (image == image[..., :1]).all()
    assert np.array_equal(image[..., 0], levels if photometric else 255 - levels)


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
def test_grey_in_a_plane_of_its_own_is_grey(bits: int) -> None:
    samples = noise(7, 13, bits=bits)
    assert np.array_equal(read(tiff(samples, bits=bits, planar=2))[..., 0], eight(samples, bits))


def test_of_12_bits_the_upper_8_are_taken() -> None:
    samples = noise(4, 6, bits=12)
    assert np.array_equal(read(tiff(samples, bits=12))[..., 1], samples >> 4)


def test_16_bits_without_the_tag_are_read_as_fewer_are() -> None:
    """Pillow takes a missing tag for MinIsWhite."""
    for bits in (8, 16):
        samples = noise(4, 6, bits=bits)
        assert np.array_equal(read(tiff(samples, None))[..., 0], 255 - eight(samples, bits))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)])
def test_only_what_a_tag_calls_alpha_is_laid_over_white(
    extra: tuple[int, ...], bits: int, compression: int, order: str
) -> None:
    """1: the colours are multiplied by it already; 2: they are not; otherwise it is a band like an infrared one."""
    samples = noise(5, 6, 4, bits=bits)
    if extra == (1,):
        samples[..., :3] = np.minimum(samples[..., :3], samples[..., 3:])
    image = read(tiff(samples, 2, bits=bits, extra=extra, order=order, compression=compression)).astype(int)
    colour, cover = np.split(eight(samples, bits), [3], axis=2)
    over = {(1,): colour + 255 - cover, (2,): (colour * cover + 255 * (255 - cover)) / 255}.get(extra, colour)
    assert np.abs(image - over).max() <= (ROUNDING if extra in ((1,), (2,)) else 0)


def test_the_colour_under_a_fourth_band_is_kept() -> None:
    assert read(tiff(np.full((2, 2, 4), (200, 30, 40, 200), np.uint8), 2))[0, 0].tolist() == [200, 30, 40]


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_grey_with_a_second_sample(extra: int) -> None:
    samples = noise(5, 6, 2)
    samples[..., 0] = np.minimum(samples[..., 0], samples[..., 1])
    grey, cover = samples[..., 0].astype(int), samples[..., 1].astype(int)
    over = {0: grey, 1: grey + 255 - cover, 2: (grey * cover + 255 * (255 - cover)) / 255}[extra]
    assert np.abs(read(tiff(samples, 1, extra=(extra,)))[..., 2] - over).max() <= ROUNDING


@pytest.mark.parametrize(
    ("extra", "compression"), [((), 1), ((), DEFLATE), ((2,), 1), ((2,), DEFLATE), ((0,), DEFLATE)]
)
def test_planes_are_put_together(extra: tuple[int, ...], compression: int) -> None:
    samples = noise(5, 6, 3 + len(extra))
    samples[..., 3:] = 255
    assert np.array_equal(read(tiff(samples, 2, planar=2, extra=extra, compression=compression)), samples[..., :3])


NOT_READ = {
    "16 bits in planes": lambda: tiff(noise(5, 6, 3, bits=16), 2, planar=2),
    "16 bits in compressed planes": lambda: tiff(noise(5, 6, 3, bits=16), 2, planar=2, compression=DEFLATE),
    "a fourth plane without a tag": lambda: tiff(noise(5, 6, 4), 2, planar=2, compression=DEFLATE),
    "grey and alpha in planes": lambda: tiff(noise(5, 6, 2), 1, planar=2, extra=(2,), compression=DEFLATE),
    "alpha over inverted grey": lambda: tiff(noise(5, 6, 2), 0, extra=(2,)),
    "13 bands": lambda: tiff(noise(5, 6, 13, bits=16), 1),
    "a mixture of depths": lambda: tiff(noise(5, 6, 3), 2, changed={258: (SHORT, [8, 8, 16])}),
}


@pytest.mark.parametrize("name", NOT_READ)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, that it does not know the kind
def test_what_would_be_read_wrongly_is_refused_by_what_it_is(name: str) -> None:
    with pytest.raises(UserError, match=r"file\.tif: .*samples of .* bits.*not read; convert the file"):
        read(NOT_READ[name]())


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(("dtype", "form"), [("u4", 1), ("i4", 2), ("f4", 3), ("i2", 2), ("i1", 2)])
def test_samples_without_an_agreed_range_are_refused(dtype: str, form: int, photometric: int) -> None:
    with pytest.raises(UserError, match=r"file\.tif: .*have no agreed range"):
        read(tiff(np.ones((4, 4), dtype), photometric, form=form))


def test_a_png_is_transparent_where_its_own_bits_say_so() -> None:
    """The grey or colour that is transparent is written in the file's bits, of 2 as of 16."""
    two = png(4, 1, 2, 0, b"\0\x1b", [(b"tRNS", b"\0\1")])  # 0, 1, 2, 3
    assert reading.decode_image(two, "a.png")[0, :, 0].tolist() == [0, 255, 170, 255]
    four = png(2, 1, 4, 0, b"\0\x5a", [(b"tRNS", b"\0\5")])
    assert reading.decode_image(four, "a.png")[0, :, 0].tolist() == [255, 170]
    grey = png(2, 1, 16, 0, b"\0" + np.array([300, 301], ">u2").tobytes(), [(b"tRNS", (300).to_bytes(2, "big"))])
    assert reading.decode_image(grey, "a.png")[0, :, 0].tolist() == [255, 1]
    colours = np.array([[300, 400, 800], [900, 400, 800]], ">u2").tobytes()
    colour = png(2, 1, 16, 2, b"\0" + colours, [(b"tRNS", np.array([300, 400, 800], ">u2").tobytes())])
    assert reading.decode_image(colour, "a.png")[0].tolist() == [[255] * 3, [3, 1, 3]]


def test_a_png_of_16_bits_with_alpha_is_laid_over_white() -> None:
    pixel = np.array([0x1234, 0x8000, 0xFFFF, 0x8000], ">u2").tobytes()
    image = reading.decode_image(png(1, 1, 16, 6, b"\0" + pixel), "a.png").astype(int)
    expected = [(level * 128 + 255 * 127) / 255 for level in (0x12, 0x80, 0xFF)]
    assert np.abs(image[0, 0] - expected).max() <= ROUNDING


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_compressed_file_is_turned_once(orientation: int) -> None:
    """Pillow turns what libtiff decodes by itself, and what it decodes without libtiff too, or neither."""
    samples = noise(5, 7, 3)
    plain, compressed = (
        read(tiff(samples, 2, compression=compression, changed={274: (SHORT, [orientation])}))
        for compression in (1, DEFLATE)
    )
    assert np.array_equal(plain, compressed)
    assert plain.shape == ((7, 5, 3) if orientation > 4 else (5, 7, 3))
