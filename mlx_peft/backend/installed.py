"""Arrays lent to a module: a network is a program here, and what it computes with comes in as arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


@contextmanager
def installed(module: nn.Module, arrays: Mapping[str, mx.array]) -> Iterator[None]:
    """Within it the module's parameters are these arrays, by name; what was there before is there again after it.

    So a function that is traced leaves none of its placeholders behind.
    """
    if not arrays:
        yield
        return
    there = dict(tree_flatten(module.parameters()))
    module.update(tree_unflatten(list(arrays.items())))
    try:
        yield
    finally:
        module.update(tree_unflatten([(name, there[name]) for name in arrays]))
