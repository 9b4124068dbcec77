"""Images that are the same, or nearly: what belongs together by what is seen in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

import numpy as np

from mlx_peft.data.seen import content, first_equal, there

NEAR = 6
"""The perceptual hashes of near-duplicates may differ in so many bits of 64: strong recompression, half the size and a
change of brightness change no more. Crops of more than a hundredth of the side, and mirror images, differ in more."""

CORRELATED = 0.98
"""The least correlation of the small images of near-duplicates."""

_BITS, _LEVELS = 64, 256
_CHANCE, _FEW = 16, 64
"""So many images may share a key by chance; and up to so many that share one are compared with each other pair by
pair."""
_ROWS, _PAIRS = 64, 2**20
"""So many images are compared at once with all that may resemble them at first, then twice as many each time, up to so
many pairs."""
_HASHES, _IMAGES = 2**15, 2**11
"""Of so many hashes, and of so many small images, those that may be near are compared at a time: they fit into a
processor's cache."""


Key = tuple[tuple[int, int], ...]
"""Some bands of a hash's bits, each from one bit to before another: 32 bits at most."""


class Glances:
    """What is seen in images, to be compared. Two resemble each other where their hashes differ in at most NEAR bits
    and their small images correlate by CORRELATED or more: the hash alone takes any two pullovers of Fashion-MNIST for
    the same.

    Of NEAR + k bands of a hash's bits at least k agree in two that are near, so only those that share k of them, a key,
    are compared: and of these only as many as are needed, which is few where all are alike. See ``keys`` for k.
    """

    def __init__(self, records: np.ndarray, rows: np.ndarray) -> None:
        """Of those rows of RECORDs, ``(n,)``; more fields may come behind."""
        self._rows, self._levels = rows, records["levels"]
        self._hashes = records["hash"][rows]
        self._keys = keys(len(rows))

    def __len__(self) -> int:
        return len(self._hashes)

    def clusters(self) -> np.ndarray:
        """A number for each, int64 ``(n,)``, which it shares with those it resembles, and theirs."""
        number, found = np.arange(len(self)), [np.empty((0, 2), np.int64)]
        for key in range(len(self._keys)):
            pairs, many = self._sharing(key)
            found.append(pairs)
            if many or sum(map(len, found)) > len(self):
                number, found = _joined(number, found), []
                for members in many:
                    found += self._links(members, number, key)
        return _joined(number, found)

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
        if not len(self):
            return np.empty((0, 2), np.int64), []
        bits, order = _sorted(self._hashes, self._keys[key])
        starts = np.flatnonzero(np.append(True, bits[1:] != bits[:-1]))
        sizes = np.diff(starts, append=len(bits))
        many = [order[starts[run] : starts[run] + sizes[run]] for run in np.flatnonzero(sizes > _FEW)]
        return self._resembling(order[_near(self._hashes[order], starts, sizes)], key), many

    def _resembling(self, pairs: np.ndarray, key: int) -> np.ndarray:
        """Those of the pairs whose small images correlate too, but for those that an earlier key has found."""
        apart = self._hashes[pairs[:, 0]] ^ self._hashes[pairs[:, 1]]
        pairs = pairs[self._new(apart, key)]
        one, other = self._rows[pairs].T
        alike = [
            resemble(self._levels[one[at : at + _IMAGES]], self._levels[other[at : at + _IMAGES]])
            for at in range(0, len(pairs), _IMAGES)
        ]
        found: np.ndarray = pairs[np.concatenate([np.empty(0, bool), *alike])]
        return found

    def _new(self, apart: np.ndarray, key: int) -> np.ndarray:
        """Whether no earlier key agrees, by the bits that differ: uint64 and bool of any shape."""
        new = np.ones(apart.shape, bool)
        for earlier in self._keys[:key]:
            new &= apart & np.uint64(mask(earlier)) != 0
        return new

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
        alike: np.ndarray = (_ones(apart) <= NEAR) & self._new(apart, key)
        here, there = np.flatnonzero(alike.any(1)), np.flatnonzero(alike.any(0))
        if len(here):
            one, other = self._rows[rows[here]], self._rows[columns[there]]
            alike[np.ix_(here, there)] &= correlated(self._levels[one], self._levels[other])
        return alike


def keys(count: int) -> list[Key]:
    """Keys, at least one of which is the same in two hashes of which NEAR bits differ at most.

    The bits are cut into NEAR + k bands; each key is k of them. A larger k makes more keys to sort by, and fewer of
    ``count`` hashes share one by chance: it is the least with which those are few.
    """
    for chosen in range(1, NEAR):
        edges = np.linspace(0, _BITS, NEAR + chosen + 1).astype(int).tolist()
        found = list(combinations(pairwise(edges), chosen))
        if all(count / 2 ** mask(key).bit_count() <= _CHANCE for key in found):
            break
    return found


def mask(key: Key) -> int:
    """The bits of a key, where they are in a hash."""
    return sum((1 << high) - (1 << low) for low, high in key)


def _sorted(hashes: np.ndarray, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """A key's bits of all hashes, sorted, uint64; and the indices of the hashes, int64, ascending where bits are equal.

    Bits and index share a word, since words alone are sorted several times as fast as what an index stands beside.
    """
    bits = np.zeros_like(hashes)
    for low, high in key:
        bits = bits << np.uint64(high - low) | hashes >> np.uint64(low) & np.uint64((1 << high - low) - 1)
    words = bits << np.uint64(32) | np.arange(len(hashes), dtype=np.uint64)
    words.sort()
    return words >> np.uint64(32), (words & np.uint64(2**32 - 1)).astype(np.int64)


def _near(hashes: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of runs of hashes, of at most _FEW, the pairs that differ in few bits: their places, int64 ``(m, 2)``.

    Runs of one size stand beside each other, a run a column: so no comparison is made in vain, and many at once.
    """
    found = [np.empty((0, 2), np.int64)]
    for size in range(2, min(int(sizes.max()), _FEW) + 1):
        alike = starts[sizes == size]
        for some in np.array_split(alike, -(-len(alike) * size // _HASHES)) if len(alike) else ():
            place = some + np.arange(size)[:, None]
            block = hashes[place]
            for apart in range(1, size):
                near = np.flatnonzero(_ones(block[apart:] ^ block[:-apart]) <= NEAR)
                if len(near):
                    found.append(np.stack([place[:-apart].ravel()[near], place[apart:].ravel()[near]], axis=1))
    return np.concatenate(found)


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
    shared = _LEVELS * products - times(one[0], other[0])
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


def _joined(number: np.ndarray, links: list[np.ndarray]) -> np.ndarray:
    """The numbers, int64 ``(n,)``, with those made equal that links, int64 ``(m, 2)`` each, join."""
    if not any(map(len, links)):
        return number
    return components(np.concatenate([_chains(number), *links]), len(number))


def components(links: np.ndarray, size: int) -> np.ndarray:
    """A number for each of `size` indices, int64, equal where links, int64 ``(m, 2)``, join them."""
    from scipy.sparse import coo_matrix  # a third of a second that only pairs are worth
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(links), bool), (links[:, 0], links[:, 1])), (size, size))
    numbers: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    if hasattr(np, "bitwise_count"):  # since NumPy 2
        return np.asarray(np.bitwise_count(words))
    return np.asarray(_COUNTS[words.view(np.uint8).reshape(*words.shape, 8)].sum(-1, dtype=np.uint8))


_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def clusters(records: np.ndarray) -> np.ndarray:
    """A number for each image, int64 ``(n,)``, which it shares with its duplicates and near-duplicates, and theirs.

    records: what is seen in each, ``(n,)``, RECORDs behind which more fields may come.
    """
    equal, alike = equals(records), look_alikes(records)
    rows = np.flatnonzero(alike >= 0)
    links = [np.stack([np.arange(len(records)), equal], axis=1), np.stack([rows, alike[rows]], axis=1)]
    different = rows[alike[rows] == rows]
    links.append(different[_chains(Glances(records, different).clusters())])
    return components(np.concatenate(links), len(records))


def equals(records: np.ndarray) -> np.ndarray:
    """Of each image the first with the same pixels, int64 ``(n,)``; itself, of one that cannot be read."""
    first, rows, pixels = np.arange(len(records)), np.flatnonzero(there(records)), content(records)[0]
    first[rows] = first_equal(pixels, rows, np.ascontiguousarray(pixels[rows, :8]).view(np.uint64).ravel())
    return first


def look_alikes(records: np.ndarray) -> np.ndarray:
    """Of each image the first in which the same is seen, int64 ``(n,)``; -1 of one in which nothing is."""
    first, rows = np.full(len(records), -1), np.flatnonzero(records["glanced"])
    first[rows] = first_equal(content(records)[1], rows, records["hash"][rows])
    return first
