"""A network that answers each row of a batch with terms of its own: what a bank of adapters asks of this backend."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from mlx_peft.adaptation.forms import Form
from mlx_peft.adaptation.terms import BRANCHES, Array, Entering, Layers, places
from torch_ref import threads
from torch_ref.methods.gathering import Held, Laid, alike_together, gathered, grouped
from torch_ref.methods.mixed import MixedBlock, MixedBranch, MixedLayer, mixing
from torch_ref.methods.targets import find, replace
from torch_ref.models.preprocess import preprocess
from torch_ref.models.vit import VisionTransformer
from torch_ref.parameters import to_numpy


class Mixer:
    """See ``mlx_peft.library.mixer.Mixer``.

    Args:
        network: without a method; it stays as it is. What is built of it has the very same parameters.

    Attributes:
        gathers: whether the terms of all rows, filled up to one form, are copied beside one another at once, and kept
            for the same rows again: the fewest products, as a GPU wants them. Otherwise the rows of each form are a
            group, and a layer's terms are copied when it is asked.
        rows: how many go through the network at once; None: all, as where weights are unpacked each time.
    """

    compiles = False

    def __init__(self, network: VisionTransformer) -> None:
        self.network = deepcopy(network, {id(p): p for p in network.parameters()}).eval()
        self.base, self.architecture = network.base, network.architecture
        self.device = network.head.weight.device
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
        self.gathers = self.device.type != "cpu"
        self.rows = None if self.gathers or network.quantization else threads.rows_at_once(self.architecture)
        self._last: tuple[list[Laid | None], Form, Held] = ([], {}, {})

    def dense(self, path: str) -> Array:
        """A linear layer's weight, ``(out, in)``; of codes, what they stand for."""
        return to_numpy(self.plain[path].dense())

    def vector(self, name: str) -> Array | None:
        """A bias, or a norm's weight, by its name; None where the layer has none."""
        path, _, last = name.rpartition(".")
        found = dict(self.plain[path].named_parameters()).get(last)
        return None if found is None else to_numpy(found)

    def hold(self, layers: Layers) -> Laid:
        """Terms where the network is; what several layers share is held once."""
        return Laid(layers, self.device)

    def vectors(
        self, images: np.ndarray, rows: Sequence[Laid | None], form: Form, prompts: tuple[Entering, ...]
    ) -> np.ndarray:
        """What the heads read, float32 ``(batch, heads, dim)``."""
        order = np.array([*range(len(rows))] if self.gathers else alike_together(rows), np.intp)
        found = threads.answered(
            lambda part: self._evaluated(images[order[part]], [rows[at] for at in order[part]], form, prompts),
            len(rows),
            self.rows,
            divided=self.rows is None or self.rows[1] == 1,  # of smaller images the products of a form's rows are small
        )
        return found[np.argsort(order)]

    @torch.inference_mode()
    def _evaluated(
        self, images: np.ndarray, rows: Sequence[Laid | None], form: Form, prompts: tuple[Entering, ...]
    ) -> np.ndarray:
        """The same of rows that go through the network together."""
        groups = [(len(rows), self._gathered(rows, form))] if self.gathers else grouped(rows)
        pixels = torch.from_numpy(images).to(self.device)
        pixels = preprocess(pixels, self.base.preprocessing, self.architecture.img_size, torch.float32)
        with mixing(groups, prompts):
            return to_numpy(self.network.prefix(pixels, self.architecture.depth + 1))

    def _gathered(self, rows: Sequence[Laid | None], form: Form) -> Held:
        """The rows' terms; those of the last batch, where this has the same rows: to copy them takes long."""
        before, last, terms = self._last
        if (
            len(rows) == len(before)
            and all(one is other for one, other in zip(rows, before, strict=True))
            and form == last
        ):
            return terms
        terms = gathered(rows, form)
        self._last = ([*rows], form, terms)
        return terms
