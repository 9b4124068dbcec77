"""What the tags of a TIFF file say of its pixels, held against the limits before Pillow opens it.

Pillow chooses how to read by the tags too, but knows fewer cases than there are: it turns MinIsWhite round in some
depths only, takes a fourth sample for alpha where no tag says so, mixes up planes, and loads whatever the tags point
to. Source: TIFF 6.0 (baseline tags, ExtraSamples, SampleFormat).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_peft.data import tags
from mlx_peft.data.limits import limits

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")
"""A TIFF starts so; Pillow takes the last two as well."""

CHUNKS = 2**20
"""An image has at most so many strips or tiles: Pillow makes an object of each."""

WIDTH, HEIGHT, BITS, PHOTOMETRIC, STRIPS, SAMPLES, ROWS, PLANAR = 256, 257, 258, 262, 273, 277, 278, 284
TILE_WIDTH, TILE_HEIGHT, TILES, EXTRA, FORMAT = 322, 323, 324, 338, 339
DIRECTORIES = (34665, 34853, 40965)
"""The tags of the directories of EXIF, of places and of interoperability."""

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
ASSOCIATED, UNASSOCIATED = 1, 2
CHUNKY, PLANES = 1, 2
UNSIGNED = 1


@dataclass(frozen=True)
class Layout:
    """How pixels are stored: so many samples of so many bits. photometric: what they mean, as the tag has it."""

    bits: int = 8
    samples: int = 1
    photometric: int = BLACK_IS_ZERO
    planes: bool = False
    alpha: bool = True
    """Whether the sample after the colours says how much they cover."""
    multiplied: bool = False
    """Whether grey is multiplied by that already, which Pillow is not told."""
    inverted: bool = False
    """Whether 0 is white, and Pillow will not see to it."""

    def __str__(self) -> str:
        planes = " in planes" if self.planes else ""
        samples = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        return f"{samples} of {self.bits} bits{planes}, photometric interpretation {self.photometric}"


def checked(data: bytes) -> tuple[bytes, Layout]:
    """A file as Pillow reads it rightly, and how its pixels are stored.

    Raises ValueError where the file is damaged, more than is read, or of a kind that is not read.
    """
    entries, order, place = tags.directory(data)
    if sum(entry.size for entry in entries.values()) > len(data):
        raise ValueError("its tags claim more bytes than the file has")
    layout = _layout(entries)
    _within_limits(entries, layout)
    if layout.inverted and PHOTOMETRIC in entries:
        # Pillow turns round what has up to 8 bits, and knows 16 in one byte order: let it leave all as they are.
        data = _with(data, order, entries[PHOTOMETRIC], BLACK_IS_ZERO)
    if PLANAR in entries and layout.samples == 1:  # a plane or not, it is one; Pillow takes its bits for others then
        data = _with(data, order, entries[PLANAR], CHUNKY)
    if layout.samples == 2 and EXTRA in entries:  # newer Pillows read grey with alpha alone, and that not multiplied
        data = _with(data, order, entries[EXTRA], UNASSOCIATED)
    for tag in DIRECTORIES:
        if tag in entries:  # it would load, without need, whatever they claim: they become the one that was checked
            data = _with(data, order, entries[tag], place)
    return data, layout


def _layout(entries: Mapping[int, tags.Entry]) -> Layout:
    bits = entries[BITS].values if BITS in entries else (1,)
    forms = entries[FORMAT].values if FORMAT in entries else (UNSIGNED,)
    extra = entries[EXTRA].values if EXTRA in entries else ()
    photometric, samples = _number(entries, PHOTOMETRIC, WHITE_IS_ZERO), _number(entries, SAMPLES, 1)
    layout = Layout(
        max(bits, default=0),
        samples,
        photometric,
        samples > 1 and _number(entries, PLANAR, 1) == PLANES,
        extra[:1] in ((ASSOCIATED,), (UNASSOCIATED,)),
        samples == 2 and extra[:1] == (ASSOCIATED,),
        # Without the tag Pillow takes 0 to be white as well, and turns up to 8 bits round.
        photometric == WHITE_IS_ZERO and samples == 1 and (PHOTOMETRIC in entries or max(bits, default=0) > 8),
    )
    if set(forms) != {UNSIGNED} or layout.bits > 16:
        raise ValueError(f"{layout}, have no agreed range (floats, or signed): convert the file to 8 or 16 bits")
    planes_read = photometric == RGB and samples == 3 + len(extra) and layout.bits == 8
    if len(set(bits)) != 1 or not 0 < samples <= tags.VALUES or (layout.planes and not planes_read):
        raise ValueError(f"{layout}: not read; convert the file to RGB of 8 bits")
    return layout


def _within_limits(entries: Mapping[int, tags.Entry], layout: Layout) -> None:
    """Raises ValueError where the image, with what its strips or tiles have beyond it, is more than is read."""
    width, height = _number(entries, WIDTH, 0), _number(entries, HEIGHT, 0)
    if TILES in entries and STRIPS not in entries:
        across, down = _number(entries, TILE_WIDTH, 0), _number(entries, TILE_HEIGHT, 0)
    else:
        across, down = width, min(height, _number(entries, ROWS, height))
    limits().check(width, height, 0)
    if not across * down:
        raise ValueError("its strips or tiles have no pixels")
    pieces = -(-width // across) * -(-height // down)
    limits().check(width, height, -(-pieces * across * down * layout.samples * layout.bits // 8))
    needed = pieces * (layout.samples if layout.planes else 1)
    stated = max((entries[tag].count for tag in (STRIPS, TILES) if tag in entries), default=0)
    if max(needed, stated) > min(needed, CHUNKS):
        raise ValueError(f"it has {max(needed, stated):,} strips or tiles; {min(needed, CHUNKS):,} are read")


def _number(entries: Mapping[int, tags.Entry], tag: int, default: int) -> int:
    """The value of a tag. Raises ValueError where it is there and has none."""
    if tag not in entries:
        return default
    if not entries[tag].values:
        raise ValueError(f"its tag {tag} is damaged")
    return entries[tag].values[0]


def _with(data: bytes, order: str, entry: tags.Entry, value: int) -> bytes:
    """The file with another value, of as many bytes, in an entry of one value."""
    if entry.count != 1 or not entry.values:
        raise ValueError("its tags are damaged")
    changed = struct.pack(order + tags.NUMBERS[entry.kind], value)
    return data[: entry.place] + changed + data[entry.place + len(changed) :]
