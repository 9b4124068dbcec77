"""Damaged images: each is read, or refused with a message that names it; nothing hangs and nothing crashes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import tiff
from PIL import Image, ImageOps

from mlx_peft.core.errors import UserError
from mlx_peft.data import read_image
from mlx_peft.data.reading import decode_image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SIGNATURES = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM", b"GIF89a")
DAMAGED = 350
"""Files of each format that are damaged at random."""


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


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_damaged_jpegs_that_are_read_have_pillows_pixels() -> None:
    """What is read although bytes of it were changed is what any reader shows: libjpeg's complaints are refused."""
    rng = np.random.default_rng(1)
    read = 0
    for number in range(DAMAGED):
        data = damaged(SOURCES["JPEG"][number % 4], rng)
        try:
            image = decode_image(data, "damaged.jpg")
        except UserError:
            continue
        with Image.open(io.BytesIO(data)) as shown:
            assert np.array_equal(image, np.asarray(ImageOps.exif_transpose(shown).convert("RGB")))
        read += 1
    assert read


TAGS = {
    256: st.integers(0, 600) | st.sampled_from([70_000, 2**31]),  # what is large and read takes seconds
    257: st.integers(0, 600) | st.sampled_from([70_000, 2**31]),
    258: st.integers(0, 64),
    259: st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34676, 50000, 65535]),
    262: st.integers(0, 10) | st.just(32803),
    273: st.integers(0, 2**32 - 1),
    277: st.integers(0, 300),
    278: st.integers(0, 2**32 - 1),
    279: st.integers(0, 2**32 - 1),
    284: st.integers(0, 3),
    317: st.integers(0, 3),
    322: st.integers(0, 2**32 - 1),
    323: st.integers(0, 2**32 - 1),
    324: st.integers(0, 2**32 - 1),
    338: st.integers(0, 3) | st.just(999),
    339: st.integers(0, 6),
    34665: st.integers(0, 2**32 - 1),
}
"""Of a TIFF file, with what a file may hold there."""


@st.composite
def tiffs(draw: st.DrawFn) -> bytes:
    """A file of any photometric interpretation, bits, extra samples and order; some of its tags are changed."""
    bits = draw(st.sampled_from([1, 2, 4, 8, 12, 16, 32]))
    samples = np.zeros((4, 5, draw(st.integers(1, 6))), "u1" if bits <= 8 else "u2" if bits <= 16 else "u4")
    changed = draw(st.dictionaries(st.sampled_from(sorted(TAGS)), st.none(), max_size=4))
    values = {tag: (4, draw(st.lists(TAGS[tag], min_size=1, max_size=6))) for tag in changed}
    return tiff(
        samples,
        draw(st.none() | st.integers(0, 8)),
        order=draw(st.sampled_from("<>")),
        bits=bits,
        extra=draw(st.lists(st.sampled_from([0, 1, 2, 999]), max_size=3)),
        planar=draw(st.sampled_from([1, 2])),
        compression=draw(st.sampled_from([1, 8])),
        form=draw(st.sampled_from([1, 1, 2, 3])),
        rows=draw(st.integers(1, 4)),
        changed=values,
    )


@settings(max_examples=200)
@given(data=tiffs())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_tags_are_read_or_refused_by_name(data: bytes) -> None:
    try:
        image = decode_image(data, "any.tif")
    except UserError as error:
        assert str(error).startswith("any.tif: ")
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3


@settings(max_examples=200)
@given(
    photometric=st.sampled_from([0, 1, 2]),
    bits=st.sampled_from([1, 2, 4, 8, 12, 16]),
    bands=st.integers(0, 3),
    extra=st.sampled_from([0, 1, 2, 999]),
    order=st.sampled_from("<>"),
    planar=st.sampled_from([1, 2]),
    compression=st.sampled_from([1, 8]),
    rows=st.integers(1, 4),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiff_is_read_for_what_its_tags_say_or_refused(
    photometric: int, bits: int, bands: int, extra: int, order: str, planar: int, compression: int, rows: int
) -> None:
    """Where the samples after the colours cover all or are no alpha, the colours are those that were written."""
    colours = 3 if photometric == 2 else 1
    largest = 2**bits - 1
    samples = np.random.default_rng(0).integers(0, largest + 1, (4, 5, colours + bands))
    samples[..., colours:] = largest
    samples = samples.astype(np.uint16 if bits > 8 else np.uint8)
    extras = [extra, 0, 0][:bands]
    data = tiff(
        samples, photometric, bits=bits, extra=extras, order=order, planar=planar, compression=compression, rows=rows
    )
    try:
        image = decode_image(data, "any.tif")
    except UserError:
        assert bands or planar == 2 or bits not in (8, 16), "plain files of 8 and 16 bits are read"
        return
    expected = samples[..., :colours].astype(int)
    expected = expected >> bits - 8 if bits > 8 else expected * 255 // largest
    assert np.array_equal(image, np.broadcast_to(expected if photometric else 255 - expected, image.shape))
