"""Images that are the same, or nearly: hashes of pixels and of what is seen, and what belongs together by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEAR = 6
"""Bits of 64 in which the perceptual hashes of near-duplicates may differ: what strong recompression, half the size and
a change of brightness leave. Crops of more than a hundredth of the side, and mirror images, differ in more."""

FLAT = 2.0
"""Images whose grey levels deviate less than this have nothing to see: only equal pixels make them duplicates."""

CORRELATED = 0.98
"""The least correlation of the small images of near-duplicates."""

_SIDE, _LOW, _THUMB = 32, 8, 16
_BITS = 64
_PAIRS = 2**20
"""Pairs of hashes compared at once."""

_CHUNK = 2**14
"""Pairs of small images compared at once."""


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
    low = dctn(levels, norm="ortho")[:_LOW, :_LOW].ravel()
    thumbnail = np.asarray(small.reduce(_SIDE // _THUMB))
    return np.packbits(low > np.median(low[1:])).tobytes() + thumbnail.tobytes()


def alike(glances: Sequence[bytes]) -> np.ndarray:
    """The pairs of indices, int64 ``(n, 2)``, of near-duplicates: near in their hash, and correlated when small.

    The hash alone takes any two pullovers of Fashion-MNIST for the same.
    """
    if not glances:
        return np.empty((0, 2), np.int64)
    table = np.frombuffer(b"".join(glances), np.uint8).reshape(len(glances), -1)
    hashes = np.ascontiguousarray(table[:, :8]).view(">u8").astype(np.uint64).ravel()
    found = [np.empty((0, 2), np.int64)]
    for pairs in near_pairs(hashes):
        for first in range(0, len(pairs), _CHUNK):
            some = pairs[first : first + _CHUNK]
            one, other = (_standardised(table[some[:, side], 8:]) for side in (0, 1))
            found.append(some[(one * other).mean(1) >= CORRELATED])
    return np.unique(np.concatenate(found), axis=0)


def _standardised(levels: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and deviation 1; a row without any deviation, 0."""
    centred = levels.astype(np.float32) - levels.mean(1, keepdims=True, dtype=np.float32)
    standardised: np.ndarray = centred / np.maximum(centred.std(1, keepdims=True), 1e-6)
    return standardised


def near_pairs(hashes: np.ndarray, distance: int = NEAR) -> Iterator[np.ndarray]:
    """Pairs of indices, int64 ``(n, 2)``, of hashes (uint64) that differ in at most `distance` bits.

    Of ``distance + 1`` bands of bits at least one agrees, so only hashes that share a band are compared. A pair may
    come more than once.
    """
    if not len(hashes):
        return
    edges = np.linspace(0, _BITS, distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
        for members in np.split(order, starts[1:]):
            for first in range(0, len(members) - 1, max(1, _PAIRS // len(members))):
                rows = members[first : first + max(1, _PAIRS // len(members))]
                apart = _ones(hashes[rows, None] ^ hashes[None, members])
                close = np.argwhere((apart <= distance) & (rows[:, None] < members[None, :]))
                if len(close):
                    yield np.stack([rows[close[:, 0]], members[close[:, 1]]], axis=1)


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    if hasattr(np, "bitwise_count"):  # since NumPy 2
        return np.asarray(np.bitwise_count(words))
    return np.asarray(_COUNTS[words.view(np.uint8).reshape(*words.shape, 8)].sum(-1, dtype=np.uint8))


_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def clusters(pixels: Sequence[bytes | None], glances: Sequence[bytes | None]) -> np.ndarray:
    """A number for each image, int64 ``(n,)``, which it shares with its duplicates and near-duplicates, and theirs.

    pixels, glances: the pixel hash and the glance of each image, None where there is none.
    """
    links = [np.stack([rows[:-1], rows[1:]], axis=1) for known in (pixels, glances) for rows in same(known)]
    groups = same(glances)
    firsts = np.array([rows[0] for rows in groups], np.int64)
    links.append(firsts[alike([glances[row] or b"" for row in firsts])])
    joined = np.concatenate(links)
    size = len(pixels)
    graph = coo_matrix((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), (size, size))
    numbers: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def same(hashes: Sequence[bytes | None]) -> list[np.ndarray]:
    """The indices of each hash, in order; images without one are in none."""
    rows: dict[bytes, list[int]] = {}
    for index, value in enumerate(hashes):
        if value is not None:
            rows.setdefault(value, []).append(index)
    return [np.array(found, np.int64) for found in rows.values()]
