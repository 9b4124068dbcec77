"""JPEG files: Pillow's pixels where they are whole, else a refusal; and the same whatever is installed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.core.errors import UserError
from mlx_peft.data import jpeg, read_image, reading, resize

END = b"\xff\xd9"
SCAN = b"\xff\xda"


def photograph(height: int = 120, width: int = 150, seed: int = 0) -> Image.Image:
    """Something with edges and texture, so that two decoders that differ do differ on it."""
    small = np.random.default_rng(seed).integers(0, 256, (max(1, height // 6), max(1, width // 6), 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(mode: str = "RGB", size: tuple[int, int] = (120, 150), **options: object) -> bytes:
    file = io.BytesIO()
    photograph(*size).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def changed(data: bytes, place: int, content: bytes) -> bytes:
    return data[:place] + content + data[place + len(content) :]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (120, 150)])
def test_colour_has_pillows_pixels(progressive: bool, subsampling: int, size: tuple[int, int]) -> None:
    data = encoded(size=size, quality=80, progressive=progressive, subsampling=subsampling)
    assert np.array_equal(jpeg.decode(data), by_pillow(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"keep_rgb": True})])
def test_other_colour_spaces_have_pillows_pixels(mode: str, options: dict[str, object], progressive: bool) -> None:
    data = encoded(mode, progressive=progressive, **options)
    assert np.array_equal(jpeg.decode(data), by_pillow(data))
    assert jpeg.header(data).mode == mode


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("end", [b"", END, END + b"\0" * 500, b"\0" * 50 + END])
def test_a_truncated_file_is_refused_whatever_its_end(mode: str, progressive: bool, end: bytes) -> None:
    data = encoded(mode, progressive=progressive)
    for part in (0.4, 0.7, 0.95):
        with pytest.raises(UserError, match=r"^cut\.jpg: not a readable image \(.+\)"):
            reading.decode_image(data[: int(part * len(data))] + end, "cut.jpg")


def test_a_scan_that_is_missing_is_missed() -> None:
    """libjpeg itself shows what there is: a file that lacks its last scan, and ends properly, is only coarser."""
    data = encoded(progressive=True)
    for scan in range(1, data.count(SCAN)):
        start = [place for place in range(len(data)) if data[place : place + 2] == SCAN][scan]
        with pytest.raises(ValueError, match="truncated: not all of its scans are there"):
            jpeg.decode(data[:start] + END)


def test_a_file_without_its_end_marker_is_whole() -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
        data = encoded(**options)
        assert np.array_equal(jpeg.decode(data[:-2]), jpeg.decode(data))


def test_what_changes_no_pixel_is_passed_over() -> None:
    """Such files are in well-known sets: bytes after a scan, odd versions, something after the end."""
    data = encoded()
    scan = data.index(SCAN)
    odd = {
        "bytes before the end": data[:-2] + b"abc" + data[-2:],
        "bytes after the end": data + b"abc",
        "another picture after the end": data + encoded("L"),
        "a version that is none": changed(data, data.index(b"JFIF\0") + 5, b"\0\0"),
        "a sequential scan of no coefficients": changed(data, scan + 11, b"\0\0\0"),
        "filling before a marker": data[:scan] + b"\xff\xff" + data[scan:],
        "an empty comment": data[:2] + b"\xff\xfe\0\2" + data[2:],
    }
    ink = encoded("CMYK")
    transform = ink.index(b"Adobe") + 11
    for name, content in odd.items():
        assert np.array_equal(jpeg.decode(content), jpeg.decode(data)), name
    assert np.array_equal(jpeg.decode(changed(ink, transform, b"\5")), by_pillow(changed(ink, transform, b"\2")))


def test_oddities_hide_no_damage() -> None:
    data = encoded()
    odd = changed(data, data.index(b"JFIF\0") + 5, b"\0\0")
    with pytest.raises(ValueError, match="premature end of data"):
        jpeg.decode(odd[:-400] + END)


def test_unusual_subsampling_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"a\.jpg: .*its components are subsampled in an unusual way.*; save it anew"):
        reading.decode_image(encoded("CMYK", subsampling=2), "a.jpg")


def test_what_is_damaged_is_refused_by_name() -> None:
    data = encoded(restart_marker_blocks=2)
    frame = data.index(b"\xff\xc0")
    restart = data.index(b"\xff\xd3", data.index(SCAN))
    damaged = {
        "a restart marker out of turn": changed(data, restart, b"\xff\xd6"),
        "a part cut out": encoded()[:3000] + encoded()[3400:],
        "12 bits": changed(data, frame + 4, b"\x0c"),
        "two components": changed(data, frame + 9, b"\2"),
        "no height": changed(data, frame + 5, b"\0\0"),
        "two frames": data[:frame] + data[frame : frame + 19] + data[frame:],
        "only a start": data[:2],
        "no picture": data[:2] + END,
        "no scan": data[: data.index(SCAN)] + END,
        "a marker cut in two": data[:3],
        "a header cut in two": data[: frame + 7],
        "nothing but segments": data[:2] + b"\xff\xfe\0\2" * (jpeg.SEGMENTS + 1) + data[2:],
    }
    for name, content in damaged.items():
        with pytest.raises(UserError, match=rf"^{name}: not a readable image \(.+\)"):
            reading.decode_image(content, name)


def test_the_verdict_does_not_depend_on_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on mlx-data, which reads damaged files without a word, nor on the resizer."""
    whole, cut = encoded(), encoded()[:-400] + END
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(cut)
    monkeypatch.setitem(sys.modules, "mlx.data", None)
    for resizer in (resize._cykooz(), None):
        monkeypatch.setattr(resize, "_cykooz", lambda resizer=resizer: resizer)
        assert np.array_equal(read_image(tmp_path / "whole.jpg"), by_pillow(whole))
        with pytest.raises(UserError, match=r"cut\.jpg: .*premature end of data"):
            read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("metadata", [b"Exif\0\0II nonsense", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_damaged_metadata_leaves_an_image_as_it_is(metadata: bytes) -> None:
    data = encoded(exif=metadata)
    assert np.array_equal(jpeg.decode(data), by_pillow(encoded()))
