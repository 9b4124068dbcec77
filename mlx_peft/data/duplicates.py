"""Images that are the same, or nearly: hashes of pixels and of what is seen, and what belongs together by them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEAR = 6
"""The perceptual hashes of near-duplicates may differ in so many bits of 64: strong recompression, half the size and a
change of brightness change no more. Crops of more than a hundredth of the side, and mirror images, differ in more."""

FLAT = 2.0
"""Images whose grey levels deviate less than this have nothing to see: only equal pixels make them duplicates."""

CORRELATED = 0.98
"""The least correlation of the small images of near-duplicates."""

_SIDE, _LOW, _THUMB = 32, 8, 16
_BITS = 64
_COMPARED, _FEW = 512, 64
"""With how many others whose key is the same by chance an image is compared at most, in all, so that time grows no
faster than the images; and how many that share a key are compared with each other pair by pair."""
_ROWS, _PAIRS = 64, 2**20
"""So many images are compared at once with all that may resemble them at first, then twice as many each time, up to so
many pairs."""


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


class Glances:
    """Different glances, to be compared. Two resemble each other where their hashes differ in at most NEAR bits and
    their small images correlate by CORRELATED or more: the hash alone takes any two pullovers of Fashion-MNIST for the
    same.

    Of NEAR + k bands of a hash's bits at least k agree in two that are near, so only those that share k of them, a key,
    are compared: and of these only as many as are needed, which is few where all are alike. See ``keys`` for k.
    """

    def __init__(self, glances: Sequence[bytes]) -> None:
        table = np.frombuffer(b"".join(glances), np.uint8).reshape(len(glances), 8 + _THUMB**2)
        self._hashes = np.ascontiguousarray(table[:, :8]).view(">u8").astype(np.uint64).ravel()
        self._levels = table[:, 8:]
        self._keys = keys(len(glances))

    def __len__(self) -> int:
        return len(self._hashes)

    def clusters(self) -> np.ndarray:
        """A number for each, int64 ``(n,)``, which it shares with those it resembles, and theirs."""
        number = np.arange(len(self))
        for key in range(len(self._keys)):
            pairs, many = self._sharing(key)
            found = [pairs, *(links for members in many for links in self._links(members, number, key))]
            if any(map(len, found)):
                number = components(np.concatenate([_chains(number), *found]), len(self))
        return number

    def firsts(self) -> np.ndarray:
        """The first that each resembles, int64 ``(n,)``; itself where there is none before it."""
        first = np.arange(len(self))
        for key in range(len(self._keys)):
            pairs, many = self._sharing(key)
            np.minimum.at(first, pairs[:, 1], pairs[:, 0])
            for members in many:
                start, size = 0, _ROWS
                while start < len(members):
                    left = members[start:]
                    left = left[first[left] > members[start]]  # the others are known to resemble an earlier one
                    if not len(left):
                        break
                    rows = members[start : start + _fitting(size, left)]
                    alike = self._alike(rows, left, key)
                    columns = np.flatnonzero(alike.any(0))
                    found = rows[alike[:, columns].argmax(0)]
                    first[left[columns]] = np.minimum(first[left[columns]], found)
                    start, size = start + len(rows), 2 * size
        return first

    def _sharing(self, key: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Of those that agree in a key: the pairs that resemble each other where they are few, int64 ``(m, 2)``, the
        earlier one first; and the indices, ascending, where they are many."""
        bits = self._hashes & self._keys[key]
        order = np.argsort(bits, kind="stable")
        bits, hashes = bits[order], self._hashes[order]
        starts = np.flatnonzero(np.concatenate([[True], bits[1:] != bits[:-1]])) if len(bits) else np.empty(0, np.int64)
        sizes = np.diff(starts, append=len(bits))
        many = [order[starts[run] : starts[run] + sizes[run]] for run in np.flatnonzero(sizes > _FEW)]
        # How many of the same key come after each.
        after = np.repeat(np.where(sizes > _FEW, 0, starts + sizes - 1), sizes) - np.arange(len(bits))
        here, found = np.arange(len(bits)), [np.empty((0, 2), np.int64)]
        for apart in range(1, _FEW):
            here = here[after[here] >= apart]
            if not len(here):
                break
            near = here[_ones(hashes[here] ^ hashes[here + apart]) <= NEAR]
            found.append(np.stack([order[near], order[near + apart]], axis=1))
        pairs = np.concatenate(found)
        levels = self._levels
        parts = np.array_split(pairs, -(-len(pairs) // _PAIRS) or 1)
        return np.concatenate([part[resemble(levels[part[:, 0]], levels[part[:, 1]])] for part in parts]), many

    def _links(self, members: np.ndarray, number: np.ndarray, key: int) -> Iterator[np.ndarray]:
        """Pairs of indices that join what belongs together among members, given what is joined already.

        A block is compared with all that are left, and is done with. Once those left are joined there is nothing more
        to find among them: so the smallest clusters come first.
        """
        cluster, size = number[members], _ROWS
        while len(members) > 1 and (cluster != cluster[0]).any():
            if len(members) > size:
                _, place, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
                order = np.argsort(sizes[place], kind="stable")
                members, cluster = members[order], place[order]
            rows = members[: _fitting(size, members)]
            here, there = np.nonzero(self._alike(rows, members, key))
            here, there = here[here != there], there[here != there]  # the rows are the first of the members
            if len(here):
                yield np.stack([rows[here], members[there]], axis=1)
                joined = np.concatenate([np.stack([here, there], axis=1), _chains(cluster)])
                cluster = components(joined, len(members))
            members, cluster, size = members[len(rows) :], cluster[len(rows) :], 2 * size

    def _alike(self, rows: np.ndarray, columns: np.ndarray, key: int) -> np.ndarray:
        """Whether they resemble each other, bool ``(rows, columns)``; False where an earlier key agrees too."""
        apart = self._hashes[rows, None] ^ self._hashes[None, columns]
        alike = _ones(apart) <= NEAR
        for earlier in self._keys[:key]:
            alike &= apart & earlier != 0
        here, there = np.flatnonzero(alike.any(1)), np.flatnonzero(alike.any(0))
        if len(here):
            alike[np.ix_(here, there)] &= correlated(self._levels[rows[here]], self._levels[columns[there]])
        return alike


def keys(count: int) -> list[np.uint64]:
    """Masks of a hash's bits, at least one of which is whole in two hashes of which NEAR bits differ at most.

    The bits are cut into NEAR + k bands; each mask is k of them. A larger k makes more masks to sort by, and fewer
    hashes share one by chance: it is the least with which those are few among so many.
    """
    for chosen in range(1, NEAR):
        edges = np.linspace(0, _BITS, NEAR + chosen + 1).astype(int)
        bands = [(1 << int(high)) - (1 << int(low)) for low, high in pairwise(edges)]
        masks = [sum(some) for some in combinations(bands, chosen)]
        if sum(count / 2 ** mask.bit_count() for mask in masks) <= _COMPARED:
            break
    return [np.uint64(mask) for mask in masks]


def correlated(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether small images, uint8 ``(n, 256)`` and ``(m, 256)``, correlate by CORRELATED or more: bool ``(n, m)``.

    r = (n sum ab - sum a sum b) / sqrt((n sum aa - (sum a)^2) (n sum bb - (sum b)^2)). A flat one correlates with none.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    # Whole numbers below 2^24, which float32 holds: the sums are exact, whatever their order.
    return _enough((one @ other.T).astype(np.float64), _sums(one), _sums(other), np.multiply.outer)


def resemble(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """As ``correlated``, each with the one in its place: uint8 ``(n, 256)`` both, bool ``(n,)``."""
    one, other = first.astype(np.float32), second.astype(np.float32)
    products = np.einsum("ij,ij->i", one, other).astype(np.float64)
    return _enough(products, _sums(one), _sums(other), np.multiply)


Sums = tuple[np.ndarray, np.ndarray]
"""Of each small image, float64 ``(n,)``: the sum of its levels, and n sum aa - (sum a)^2."""


def _sums(levels: np.ndarray) -> Sums:
    total = levels.sum(1, dtype=np.float64)
    return total, levels.shape[1] * np.square(levels).sum(1, dtype=np.float64) - total**2


def _enough(products: np.ndarray, one: Sums, other: Sums, times: Callable[..., np.ndarray]) -> np.ndarray:
    shared = _THUMB**2 * products - times(one[0], other[0])
    enough: np.ndarray = (shared >= CORRELATED * np.sqrt(times(one[1], other[1]))) & (shared > 0)
    return enough


def _fitting(size: int, columns: np.ndarray) -> int:
    """How many rows are compared with so many columns at once."""
    return min(size, max(1, _PAIRS // len(columns)))


def _chains(numbers: np.ndarray) -> np.ndarray:
    """Pairs of places, int64 ``(m, 2)``, that join those of equal numbers."""
    order = np.argsort(numbers, kind="stable")
    same_as_next = np.flatnonzero(np.diff(numbers[order]) == 0)
    return np.stack([order[same_as_next], order[same_as_next + 1]], axis=1)


def components(links: np.ndarray, size: int) -> np.ndarray:
    """A number for each of `size` indices, int64, equal where links, int64 ``(m, 2)``, join them."""
    graph = coo_matrix((np.ones(len(links), bool), (links[:, 0], links[:, 1])), (size, size))
    numbers: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


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
    groups = same(glances)
    links = [np.stack([rows[:-1], rows[1:]], axis=1) for rows in (*same(pixels), *groups) if len(rows) > 1]
    firsts = np.array([rows[0] for rows in groups], np.int64)
    links.append(firsts[_chains(Glances([glances[row] or b"" for row in firsts]).clusters())])
    return components(np.concatenate(links), len(pixels))


def same(hashes: Sequence[bytes | None]) -> list[np.ndarray]:
    """The indices of each hash, in order; images without one are in none."""
    rows: dict[bytes, list[int]] = {}
    for index, value in enumerate(hashes):
        if value is not None:
            rows.setdefault(value, []).append(index)
    return [np.array(found, np.int64) for found in rows.values()]
