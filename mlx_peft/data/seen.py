"""What is seen in an image, as a record of a few hundred bytes by which many are compared: equal, or nearly."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

FLAT = 2.0
"""Images whose grey levels deviate less than this have nothing to see: only equal pixels make them duplicates."""

_SIDE, _LOW, _THUMB = 32, 8, 16

RECORD = np.dtype([("pixels", "V16"), ("glanced", "?"), ("hash", "<u8"), ("levels", "u1", (_THUMB**2,))])
"""Of one image: what equal images share and no others; whether there is anything to see; if so, a hash of it of 64
bits, and the image small, 16 x 16 grey levels. A record of zeros is of an image that cannot be read."""


LOOK = np.dtype([*RECORD.descr, ("size", "<u4", (2,)), ("colour", "?"), ("form", "S24")])
"""What `data check` notes beside it: height and width, whether there is colour, and what the file is."""


def seen(image: np.ndarray) -> np.void:
    """What is seen in a uint8 ``(height, width, 3)`` image: a RECORD."""
    view = glance(image)
    content = pixel_hash(image) + bytes([view is not None]) + (view or bytes(RECORD.itemsize - 17))
    found: np.void = np.frombuffer(content, RECORD)[0]
    return found


def pixel_hash(image: np.ndarray) -> bytes:
    """16 bytes that equal images share, and no others."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def glance(image: np.ndarray) -> bytes | None:
    """264 bytes of what is seen in a uint8 ``(height, width, 3)`` image: a hash, and the image small; None if flat.

    The hash, 64 bits: the signs, about their median, of the 8 x 8 lowest frequencies of the grey image at 32 x 32
    (pHash, Zauner 2010). The small image: 16 x 16 grey levels.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    small = grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    levels = np.asarray(small, np.float64)
    if levels.std() < FLAT:
        return None
    from scipy.fft import dctn  # a third of a second that only a comparison is worth

    low = dctn(levels, norm="ortho")[:_LOW, :_LOW].ravel()
    thumbnail = np.asarray(small.reduce(_SIDE // _THUMB))
    return np.packbits(low > np.median(low[1:])).tobytes() + thumbnail.tobytes()


def content(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of records that may have more fields behind: the bytes of the pixel hashes, uint8 ``(n, 16)``, and those of what
    is seen, ``(n, 264)``."""
    table = records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
    return table[:, :16], table[:, 17 : RECORD.itemsize]


def there(records: np.ndarray) -> np.ndarray:
    """Which of the images can be read, bool ``(n,)``."""
    return np.asarray(content(records)[0].any(axis=1))


def first_equal(content: np.ndarray, rows: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Of each of the rows the first one with the same content, itself where there is none before it: int64 ``(n,)``.

    Args:
        content: uint8 ``(m, width)``. rows: int64 ``(n,)``, ascending.
        key: uint64 ``(n,)``, which equal contents share, and few others: one sort by it leaves little to compare.
    """
    first: np.ndarray = rows.copy()
    order = np.argsort(key, kind="stable")
    as_next = key[order[1:]] == key[order[:-1]]
    shared = order[np.append(as_next, False) | np.append(False, as_next)] if len(rows) else order
    texts = np.ascontiguousarray(content[rows[shared]]).view(f"S{content.shape[1]}").ravel()
    _, where, number = np.unique(texts, return_index=True, return_inverse=True)
    first[shared] = rows[shared[where[number]]]  # the first of equal texts is that of the first row
    return first
