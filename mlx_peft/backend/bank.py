"""A network that answers each row of a batch with terms of its own: what a bank of adapters asks of this backend."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_peft.adaptation.forms import Form
from mlx_peft.adaptation.terms import BRANCHES, Array, Entering, Layers, places
from mlx_peft.backend import forks, threads
from mlx_peft.backend.installed import installed
from mlx_peft.backend.methods.gathering import Held, gathered
from mlx_peft.backend.methods.mixed import MixedBlock, MixedBranch, MixedLayer, mixing
from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import Arrays, every, to_timm
from mlx_peft.core.batches import slices
from mlx_peft.vit.architecture import Architecture

MOST = 5 << 20
"""Bytes of the widest layer's outputs that the rows have at most which go through the network at once on a CPU, if they
are several. More do not stay in a cache until the rows' own products have read them and added to them."""


class Mixer:
    """See ``mlx_peft.library.mixer.Mixer``.

    Args:
        network: without a method; it stays as it is. What is built of it has the very same parameters.

    Attributes:
        rows: how many go through the network at once; None: all, as on a GPU, and where weights are unpacked each time.
    """

    compiles = True

    def __init__(self, network: VisionTransformer) -> None:
        self.network = deepcopy(network, {id(array): array for array in every(network).values()})
        self.network.eval()
        self.base, self.architecture = network.base, network.architecture
        layers = {path: find(self.network, path) for path in places(self.architecture)}
        blocks = [f"blocks.{number}" for number in range(self.architecture.depth)]
        attentions = {f"{path}.attn": find(self.network, f"{path}.attn") for path in blocks}
        self.plain: dict[str, nn.Module] = layers | attentions
        for path, layer in layers.items():
            replace(self.network, path, MixedLayer(layer, path))
        for path in blocks:
            for branch in (f"{path}.{name}" for name in BRANCHES):
                replace(self.network, branch, MixedBranch(find(self.network, branch), branch))
            replace(self.network, path, MixedBlock(find(self.network, path), path))
        parted = mx.default_device().type == mx.cpu and not network.quantization
        self.rows = _rows_at_once(self.architecture) if parted else None
        self.frozen = every(self.network)
        self.programs: dict[Hashable, Callable[[Arrays, Held, mx.array], mx.array]] = {}
        self._last: tuple[list[Held | None], Form, Held] = ([], {}, {})

    def dense(self, path: str) -> Array:
        """A linear layer's weight, ``(out, in)``; of codes, what they stand for."""
        return to_timm(self.plain[path].dense())

    def vector(self, name: str) -> Array | None:
        """A bias, or a norm's weight, by its name; None where the layer has none."""
        path, _, last = name.rpartition(".")
        found = self.plain[path].get(last)
        return None if found is None else to_timm(found)

    def hold(self, layers: Layers) -> Held:
        """Terms where the network is; what several layers share is held once."""
        arrays = {id(array): array for terms in layers.values() for array in terms.values()}
        held = {key: mx.array(array) for key, array in arrays.items()}
        mx.eval(held)  # what is lazy belongs to its thread
        return {path: {name: held[id(array)] for name, array in terms.items()} for path, terms in layers.items()}

    def vectors(
        self, images: np.ndarray, rows: Sequence[Held | None], form: Form, prompts: tuple[Entering, ...]
    ) -> np.ndarray:
        """What the heads read, float32 ``(batch, heads, dim)``."""
        forks.check()
        threads.settle()
        if self.rows is None or len(rows) <= self.rows:
            return self._evaluated(images, rows, form, prompts)
        order = np.array(sorted(range(len(rows)), key=lambda at: id(rows[at])), np.intp)  # of one adapter together
        parts = [order[part] for part in slices(len(rows), self.rows)]
        found = [self._evaluated(images[part], [rows[at] for at in part], form, prompts) for part in parts]
        return np.concatenate(found)[np.argsort(order)]

    def _evaluated(
        self, images: np.ndarray, rows: Sequence[Held | None], form: Form, prompts: tuple[Entering, ...]
    ) -> np.ndarray:
        """The same of rows that go through the network together."""
        count = len(images)
        more = _bucket(count) - count  # rows that nobody reads, so that few sizes are compiled
        images = np.concatenate([images, images[-1:].repeat(more, axis=0)])
        terms = self._gathered([*rows, *[rows[-1]] * more], form)
        key = (prompts, *((path, name, array.shape) for path, own in terms.items() for name, array in own.items()))
        if key not in self.programs:  # one that is given terms of other forms in turn would compile each time
            self.programs[key] = mx.compile(partial(self._program, prompts))
        return np.array(self.programs[key](self.frozen, terms, mx.array(images)))[:count]

    def _program(self, prompts: tuple[Entering, ...], frozen: Arrays, terms: Held, images: mx.array) -> mx.array:
        pixels = preprocess(images, self.base.preprocessing, self.architecture.img_size, mx.float32)
        with installed(self.network, frozen), mixing(terms, prompts):
            return self.network.prefix(pixels, self.architecture.depth + 1).astype(mx.float32)

    def _gathered(self, rows: Sequence[Held | None], form: Form) -> Held:
        """The rows' terms; those of the last batch, where this has the same rows: to copy them takes long."""
        before, last, terms = self._last
        if (
            len(rows) == len(before)
            and all(one is other for one, other in zip(rows, before, strict=True))
            and form == last
        ):
            return terms
        terms = gathered(rows, form)
        mx.eval(terms)
        self._last = ([*rows], form, terms)
        return terms


def _rows_at_once(architecture: Architecture) -> int:
    """The largest power of two of images with at most ``MOST`` bytes of outputs in a block's widest layer; or one."""
    image = architecture.widest_outputs * mx.float32.size
    return 1 << max(MOST // image, 1).bit_length() - 1


def _bucket(count: int) -> int:
    """The number of rows that so many are filled up to: a power of two, and above 16 a multiple of 16."""
    return -(-count // 16) * 16 if count > 16 else 1 << (count - 1).bit_length()
