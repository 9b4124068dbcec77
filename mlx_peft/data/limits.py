"""How much of an image is read. What a file says of itself is held against this before anything is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cache

from mlx_peft.core.errors import UserError

PREFIX = "MLX_PEFT_IMAGE_"

SWEEPS = 24
"""The scans of one JPEG may go over so many times the pixels of the largest image."""


@dataclass(frozen=True)
class Limits:
    """The largest image that any command reads: ``MLX_PEFT_IMAGE_PIXELS`` and so on in the environment change them.

    They are no part of a configuration, since they change no pixel: they only say what is refused, and `predict` and
    the library, which read images that no configuration names, keep to them too.
    """

    pixels: int = 89_478_485
    """256 MiB of RGB: from here on Pillow warns of a decompression bomb."""

    ratio: int = 100
    """Of the longer side to the shorter: so much every evaluation recipe can resize whose shorter side is 50 to 945
    pixels. What is longer counts as unreadable before a run comes to it (see data.recipe.eval_image)."""

    decoded: int = 2**29
    """Bytes of all samples as the file stores them, decoded: 16-bit images with alpha have 8 for a pixel. Those of
    tiles and strips that reach beyond the image count too."""

    scans: int = 100
    """Of a JPEG, each of which goes over the whole image: common encoders write 10 where it is progressive. All of
    them together go over at most 24 times `pixels`."""

    file: int = 2**30
    """Bytes of a file: no image within the other limits needs so many."""

    memory: int = 2**30
    """Bytes that the threads of a process share for what they are decoding (see data.memory)."""

    def check(self, width: int, height: int, decoded: int, scans: int = 1) -> None:
        """Raises ValueError where a header promises more than is read."""
        size = f"{width} x {height}"
        if not (width > 0 and height > 0):
            raise ValueError(f"{size} pixels")
        if width * height > self.pixels:
            raise ValueError(f"{size} is more than {self.pixels:,} pixels{_raise('pixels')}")
        if max(width, height) > self.ratio * min(width, height):
            raise ValueError(f"{size}: one side is more than {self.ratio} times the other; crop it{_raise('ratio')}")
        if decoded > self.decoded:
            raise ValueError(f"{size} takes {decoded:,} bytes decoded, and at most {self.decoded:,}{_raise('decoded')}")
        if scans > (most := min(self.scans, SWEEPS * self.pixels // (width * height))):
            raise ValueError(f"{size} in more than {most} scans: save it anew{_raise('scans')}")


def _raise(name: str) -> str:
    return f"; {PREFIX}{name.upper()} changes this limit"


USUAL = Limits()

_narrower: ContextVar[Limits | None] = ContextVar("narrower", default=None)


@contextmanager
def usually(narrower: Limits) -> Iterator[None]:
    """Within it these are the limits, in this thread alone, but for what the environment says: of a server, to which
    strangers send images."""
    before = _narrower.set(narrower)
    try:
        yield
    finally:
        _narrower.reset(before)


def limits() -> Limits:
    """The limits of this process. Raises UserError where the environment has no positive whole number for one."""
    usual = _narrower.get() or USUAL
    return replace(usual, **changed()) if changed() else usual


@cache
def changed() -> dict[str, int]:
    """What the environment says of them. Raises as ``limits`` does."""
    found = {}
    for field in fields(Limits):
        name = PREFIX + field.name.upper()
        if (text := os.environ.get(name)) is None:
            continue
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) > 0):
            raise UserError(f"{name}: {text!r} is no whole number above 0 (and below 10^18)")
        found[field.name] = int(text)
    return found
