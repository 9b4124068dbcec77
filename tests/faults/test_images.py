"""Damaged images: each is read, or refused with a message that names it; nothing hangs and nothing crashes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_peft.core.errors import UserError
from mlx_peft.data import jpeg, read_image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SIGNATURES = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM", b"GIF89a")
DAMAGED = 350
"""Files of each format that are damaged at random; with mlx-data hanging on one, the test would not end."""


def whole(form: str, **options: object) -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (7, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC).save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


SOURCES = {
    **{form: [whole(form)] for form in FORMATS},
    "JPEG": [whole("JPEG", progressive=p, subsampling=s) for p in (False, True) for s in (0, 2)],
}


def read_or_refused(path: Path) -> bool:
    """Whether it was read; it fails where it was neither read nor refused by name."""
    try:
        image = read_image(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        return False
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return True


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes set at random, mostly where the headers are; sometimes cut, sometimes with the end put back."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
        changed[rng.integers(0, reach)] = rng.integers(0, 256)
    if rng.random() < 0.4:
        changed = changed[: rng.integers(0, len(changed))]
        if rng.random() < 0.5:
            changed += data[-2:]
    return bytes(changed)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the metadata of some
def test_damaged_images_are_read_or_refused_by_name(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.jpg"
    outcomes = []
    for number in range(DAMAGED):
        path.write_bytes(damaged(SOURCES[form][number % len(SOURCES[form])], rng))
        outcomes.append(read_or_refused(path))
    assert not all(outcomes), "damage that nothing notices tests nothing"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), start=st.sampled_from(SIGNATURES))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_arbitrary_bytes_are_read_or_refused_by_name(tmp_path: Path, content: bytes, start: bytes) -> None:
    (tmp_path / "bytes.png").write_bytes(start + content)
    read_or_refused(tmp_path / "bytes.png")


def test_every_truncation_of_a_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    data = SOURCES["JPEG"][0]
    for length in range(0, len(data) - 2, 7):
        path.write_bytes(data[:length])
        assert not read_or_refused(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif"])
def test_a_mislabelled_image_is_read_for_what_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mislabelled.{suffix}"
    for sources in SOURCES.values():
        path.write_bytes(sources[0])
        assert read_or_refused(path)


def test_damaged_jpegs_get_the_same_verdict_and_pixels_without_mlx_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one in some thousands, where libjpeg mends what Pillow does not."""
    rng = np.random.default_rng(1)
    files = [damaged(SOURCES["JPEG"][number % 4], rng) for number in range(DAMAGED)]

    def results() -> list[bytes | None]:
        found = []
        for data in files:
            path = tmp_path / "damaged.jpg"
            path.write_bytes(data)
            found.append(read_image(path).tobytes() if read_or_refused(path) else None)
        return found

    fast = results()
    monkeypatch.setattr(jpeg, "_mlx_data", lambda: None)
    assert fast == results()
    assert None in fast
    assert any(fast)
