"""What the papers of ToMe, EViT, SkipViT and DyT say becomes of an image's tokens, in NumPy, one image at a time.

Written from their equations, for a class token before the patches and whatever else is protected.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np


@dataclass(frozen=True)
class Image:
    """The tokens of one image between attention and MLP.

    Attributes:
        special: those that are protected, ``(n, dim)``.
        patches: ``(m, dim)``.
        members: the patches of the image that each patch token stands for.
        aside: those that go round, by their place in the image.
    """

    special: np.ndarray
    patches: np.ndarray
    members: tuple[frozenset[int], ...]
    aside: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def x(self) -> np.ndarray:
        return np.concatenate([self.special, self.patches])

    @property
    def sizes(self) -> np.ndarray:
        return np.array([1.0] * len(self.special) + [float(len(group)) for group in self.members])


def tome(image: Image, keys: np.ndarray, r: int) -> Image:
    """Bolya et al. 2023, section 3: ``keys (heads, tokens, d)``, those of the protected tokens first.

    A and B alternate over the tokens as they stand; of protected ones there are none in either.
    """
    metric = keys.mean(0)[len(image.special) :].astype(np.float64)
    metric /= np.linalg.norm(metric, axis=1, keepdims=True)
    a, b = list(range(1, len(metric), 2)), list(range(0, len(metric), 2))
    edges = []
    for i in a:
        scores = [round(float(metric[i] @ metric[j]) * 2**14) for j in b]
        best = max(range(len(b)), key=lambda j: (scores[j], -j))
        edges.append((-scores[best], i, b[best]))
    joined = sorted(edges)[: min(r, len(metric) // 2)]
    groups = {j: [j] for j in b} | {i: [i] for i in a}
    for _, i, j in joined:
        groups[j] += groups.pop(i)
    order = [i for i in a if i in groups] + b
    sizes = np.array([len(group) for group in image.members], np.float64)
    patches = [np.average(image.patches[groups[k]], axis=0, weights=sizes[groups[k]]) for k in order]
    members = tuple(frozenset().union(*(image.members[one] for one in groups[k])) for k in order)
    return replace(image, patches=np.array(patches), members=members)


def ranked(a: np.ndarray, tokens: int) -> list[int]:
    """The patches of which the class token took most first. What differs by less than the 2^14th part of an even share
    is alike, and comes in order."""
    shares = [round(float(value) * tokens * 2**14) for value in a]
    return sorted(range(len(a)), key=lambda i: (-shares[i], i))


def evit(image: Image, attention: np.ndarray, keep: float) -> Image:
    """Liang et al. 2022, section 3: ``attention (heads, tokens)`` of the class token."""
    a = attention.mean(0)[len(image.special) :]
    count, stay = len(a), ceil(keep * len(a) - 1e-9)
    if stay + 1 >= count:
        return image
    order = ranked(a, attention.shape[1])
    kept, rest = sorted(order[:stay]), order[stay:]
    fused = (a[rest, None] * image.patches[rest]).sum(0)
    members = [image.members[i] for i in kept] + [frozenset().union(*(image.members[i] for i in rest))]
    return replace(image, patches=np.concatenate([image.patches[kept], fused[None]]), members=tuple(members))


def leave(image: Image, attention: np.ndarray, keep: float) -> Image:
    """Ataiefard et al. 2024, section 3, at the block where the skip connection begins."""
    a = attention.mean(0)[len(image.special) :]
    kept = sorted(ranked(a, attention.shape[1])[: ceil(keep * len(a) - 1e-9)])
    aside = {i: image.patches[i] for i in range(len(a)) if i not in kept}
    return replace(image, patches=image.patches[kept], members=tuple(image.members[i] for i in kept), aside=aside)


def back(image: Image) -> Image:
    """And at the block where it ends."""
    there = {min(group): patch for group, patch in zip(image.members, image.patches, strict=True)} | image.aside
    places = sorted(there)
    return replace(
        image,
        patches=np.array([there[place] for place in places]),
        members=tuple(frozenset({place}) for place in places),
        aside={},
    )


def dyt(patches: np.ndarray, w: np.ndarray, b: float) -> np.ndarray:
    """Zhao et al. 2024, section 3: which of ``patches (m, dim)`` go through the MLP: where sigmoid(w x + b) > 1/2.

    What differs from 0 by less than half of the 2^14th part is 0.
    """
    scores = np.round((patches.astype(np.float64) @ w + b) * 2**14) / 2**14
    return 1 / (1 + np.exp(-scores)) > 0.5
