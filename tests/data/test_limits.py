"""What a header promises is held against the limits before anything is decoded; threads share one budget."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pictures import DEFLATE, LONG, png, tiff
from PIL import Image, ImageFile, TiffImagePlugin

from mlx_peft.cli import main
from mlx_peft.core.errors import UserError
from mlx_peft.data import eval_image, jpeg, limits, memory, read_image, reading
from mlx_peft.data.cache import Cache
from mlx_peft.data.cached_images import CachedImages
from mlx_peft.data.dataset import EncodedImages, FileImages
from mlx_peft.vit.architecture import Preprocessing

Change = Callable[..., None]
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Limits are read from the environment once in a process."""
    yield
    limits.changed.cache_clear()
    memory.budget.cache_clear()


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Change:
    def change(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"MLX_PEFT_IMAGE_{name.upper()}", str(value))
        limits.changed.cache_clear()
        memory.budget.cache_clear()

    return change


def refused_undecoded(data: bytes, reason: str) -> None:
    """It fails where a decoder runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
        for kind in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile):
            patch.setattr(kind, "load", lambda _: pytest.fail("decoded"))
        with pytest.raises(UserError, match=rf"^hostile\.img: not a readable image \(.*{re.escape(reason)}"):
            reading.decode_image(data, "hostile.img")


def encoded(form: str, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, form)
    return file.getvalue()


def progressive(scans: int, side: int = 40) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


BEYOND = {
    "many scans": (lambda: progressive(1000), "40 x 40 in more than 100 scans"),
    "a thread": (lambda: png(1, 89_000_000, 8, 0, b""), "1 x 89000000: one side is more than 100 times the other"),
    "deep and transparent": (lambda: png(9459, 9459, 16, 6, b""), "9459 x 9459 takes 715,781,448 bytes decoded"),
    "too many pixels": (
        lambda: png(20_000, 20_000, 1, 0, b""),
        "more than 89,478,485 pixels; MLX_PEFT_IMAGE_PIXELS changes this limit",
    ),
    "a deep TIFF": (
        lambda: tiff(np.zeros((1, 1, 4), np.uint16), 2, changed={256: (LONG, [9000]), 257: (LONG, [9000])}),
        "9000 x 9000 takes 648,000,000 bytes decoded",
    ),
    "tiles beyond the image": (
        lambda: tiff(
            np.zeros((16, 16, 3), np.uint8),
            2,
            compression=DEFLATE,
            changed={273: None, 322: (LONG, [2**15]), 323: (LONG, [2**15]), 324: (LONG, [8]), 325: (LONG, [30])},
        ),
        "16 x 16 takes 3,221,225,472 bytes decoded",
    ),
    "strips without number": (
        lambda: tiff(np.zeros((2, 2), np.uint8), changed={273: (LONG, [8] * 5000)}),
        "5,000 strips or tiles; 1 are read",
    ),
    "tags that claim the file many times": (
        lambda: tiff(np.zeros((2, 2), np.uint8), changed={700: (1, b"\0" * 4)}).replace(
            struct.pack("<HHI", 700, 1, 4), struct.pack("<HHI", 700, 1, 2**31)
        ),
        "claim more bytes than the file has",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_the_header_decides(name: str) -> None:
    make, reason = BEYOND[name]
    refused_undecoded(make(), reason)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_held_against_the_pixels(form: str, changed: Change) -> None:
    assert reading.decode_image(encoded(form, 100, 101), "fits").shape == (101, 100, 3)
    changed(pixels=10_000)
    reason = "100 x 101 is more than 10,000 pixels; MLX_PEFT_IMAGE_PIXELS changes this limit"
    refused_undecoded(encoded(form, 100, 101), reason)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(2, 3000), (3000, 2), (3, 301)])
def test_an_image_too_narrow_for_any_model_is_refused(form: str, width: int, height: int) -> None:
    refused_undecoded(encoded(form, width, height), f"{width} x {height}: one side is more than 100 times the other")


def test_the_narrowest_image_is_read() -> None:
    assert reading.decode_image(encoded("PNG", 3, 300), "thread").shape == (300, 3, 3)


def test_a_scan_is_counted_against_the_pixels_it_goes_over(changed: Change) -> None:
    assert reading.decode_image(progressive(10), "a").shape == (40, 40, 3)
    changed(pixels=1600 * 9 // limits.SWEEPS)
    with pytest.raises(UserError, match="more than"):
        reading.decode_image(progressive(10), "a")


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path, changed: Change) -> None:
    (tmp_path / "large.png").write_bytes(encoded("PNG", 200, 200))
    changed(file=100)
    with pytest.raises(UserError, match=r"large\.png: larger than"):
        read_image(tmp_path / "large.png")
    with pytest.raises(UserError, match="row 3: larger than"):
        reading.decode_image(b"\0" * 101, "row 3")


@pytest.mark.parametrize("value", ["0", "-5", "1e9", "many", "", "9" * 400])
def test_a_limit_that_is_no_number_is_refused_by_name(value: str, changed: Change) -> None:
    changed(pixels=value)
    with pytest.raises(UserError, match=r"MLX_PEFT_IMAGE_PIXELS: .* is no whole number above 0"):
        limits.limits()


def test_a_command_says_which_limit_is_no_number(
    tmp_path: Path, changed: Change, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("x", "y"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(encoded("PNG", 20, 20))
    changed(scans="few")
    monkeypatch.setattr(sys, "argv", ["mlx-peft", "data", "check", "folder", f"root={tmp_path}"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "MLX_PEFT_IMAGE_SCANS: 'few' is no whole number" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["many scans", "a thread", "deep and transparent"])
def test_every_door_keeps_to_the_limits(tmp_path: Path, name: str) -> None:
    """Training, evaluation and `data check` read files or cells of a table, through a cache or not; `predict` paths."""
    make, reason = BEYOND[name]
    path = tmp_path / "hostile.img"
    path.write_bytes(make())
    files = FileImages(tmp_path, (path.name,))
    kept = CachedImages(files, Cache(tmp_path / "cache", 10**6, None))
    table = EncodedImages(lambda _: path.read_bytes(), "table.parquet", np.arange(1))
    recipe = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    doors: list[Callable[[], object]] = [
        lambda: eval_image(path, recipe, 32),
        lambda: files.read(0),
        lambda: kept.read(0),
        lambda: table.read(0),
    ]
    for door in doors:
        with pytest.raises(UserError, match=re.escape(reason)):
            door()
