"""What MLX is about to compute: the graph of a function's results before any is computed, read from its drawing.

On Linux MLX has no kernels for a device, and draws norms as the operations that they fall back to. ``a_device`` tells
whoever asks that there is a device, and has each norm drawn as one kernel forward and one backward, as a device has
them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

NORM, BARE_NORM, NORM_BACKWARD = "CumSum", "CumMax", "CumProd"
"""Operations that no model of ours has stand for a norm's kernels: with weights, without, and the backward one."""

VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Split", "Squeeze", "Transpose", "Unflatten"}
FREE = VIEWS | {"CustomTransforms"}
"""They look at an array otherwise, and touch no number of it. (A reshape does, where rows lie apart in memory.)"""

PRODUCTS = {"AddMM", "Matmul"}
SINGLE = {"Add", "AsType", "Divide", "Exp", "Maximum", "Multiply", "Negative", "Select", "Sqrt", "Square", "Subtract"}
"""Operations on each number alone, by the names that they have where the compiler has none beside them to fuse with."""

COMPARISONS = {"Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual"}


def _norm(x: mx.array, weight: mx.array | None, *others: mx.array | float | None) -> mx.array:
    for parameter in (weight, *others):
        assert not isinstance(parameter, mx.array) or parameter.dtype == x.dtype, "the result would be wider than x"

    @mx.custom_function
    def kernel(x: mx.array) -> mx.array:
        return mx.cummax(x, axis=-1) if weight is None else mx.cumsum(x, axis=-1)

    @kernel.vjp
    def kernel_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return mx.cumprod(cotangent, axis=-1)

    return kernel(x)


@contextmanager
def a_device() -> Iterator[None]:
    """Within it functions are traced as on a device. Nothing may be computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.gpu))
        patch.setattr(mx.fast, "layer_norm", _norm)
        patch.setattr(mx.fast, "rms_norm", _norm)
        yield


@dataclass(frozen=True)
class Kernel:
    """An operation, or several that the compiler made one, by its name; and the names of what it takes and gives."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """All kernels, each behind those whose results it takes."""

    kernels: list[Kernel]

    @classmethod
    def of(cls, path: Path, results: list[mx.array], **named: mx.array) -> Graph:
        """The graph of arrays that are not computed yet, drawn to a file; some arrays in it are known by a name."""
        mx.export_to_dot(str(path), *results, **named)
        text = path.read_text()
        names = dict(re.findall(r'\{ (\d+) \[label ="([^"]*)"', text))
        inputs: dict[str, list[str]] = {number: [] for number in names}
        outputs: dict[str, list[str]] = {number: [] for number in names}
        for array, number in re.findall(r'"([^"]+)" -> (\d+)', text):
            inputs[number].append(array)
        for number, array in re.findall(r'(\d+) -> "([^"]+)"', text):
            outputs[number].append(array)
        return cls([Kernel(name, (*inputs[number],), (*outputs[number],)) for number, name in names.items()])

    def products(self) -> int:
        """How many products of matrices."""
        return sum(kernel.name in PRODUCTS for kernel in self.kernels)

    def passes(self, images: str) -> Counter[str]:
        """What reads and writes activations, but for products: of each name how many, of fused ones their number.

        What is done with parameters and with their gradients before they come out, is none.

        Args:
            images: the name of that from which activations are computed.
        """
        activations, found = {images}, []
        for kernel in self.kernels:
            if activations & {*kernel.inputs}:
                activations |= {*kernel.outputs}
                found.append(kernel)
        read: set[str] = set()  # by what is more than an operation on a gradient that is found already
        counted: Counter[str] = Counter()
        for kernel in reversed(found):
            last = not read & {*kernel.outputs}
            each = kernel.name in SINGLE or kernel.name.startswith("Compiled")
            if last and (each or kernel.name in FREE):
                continue
            read |= {*kernel.inputs}
            if kernel.name not in FREE | PRODUCTS:
                counted["elementwise" if each else kernel.name] += 1
        return counted

    def types(self, known: dict[str, str]) -> list[tuple[Kernel, set[str]]]:
        """Each kernel with the types of the numbers that it takes, of a graph in which nothing is fused.

        Args:
            known: the types of what it begins with, by name; a constant takes the type of what it meets.
        """
        types, found = dict(known), []
        for kernel in self.kernels:
            taken = {types[name] for name in kernel.inputs if name in types}
            given = "float32" if "float32" in taken else "bfloat16" if "bfloat16" in taken else None
            if kernel.name in COMPARISONS:  # a mask takes the type of what it meets
                given = None
            elif kernel.name == "AsType" and given:  # there are two, and it leads to the other
                given = "bfloat16" if given == "float32" else "float32"
            results: list[str | None] = [given] * len(kernel.outputs)
            if kernel.name == "CustomTransforms":  # it takes what it is a function of, and its results behind that
                results = [types.get(name) for name in kernel.inputs[-len(kernel.outputs) :]]
            types |= {name: result for name, result in zip(kernel.outputs, results, strict=True) if result}
            found.append((kernel, taken))
        return found
