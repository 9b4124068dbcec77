"""The codes that an adapter brings for the layers below it, in a file under names of their own.

By a layer's own name, ``blocks.0.attn.qkv.base_layer.weight``, PEFT would take them for its weight; by these,
``blocks.0.attn.qkv.codes.weight``, it passes them over.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert.files import listed
from mlx_peft.config.methods.lora import BELOW
from mlx_peft.config.quantization import CODES
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError

STORED = "codes"


def stored(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """An adapter's tensors without codes, and its codes as a file names them."""
    return _parted(tensors, BELOW, STORED)


def found(packed: Tensors) -> tuple[Tensors, Tensors]:
    """A file's tensors without codes, and its codes as an adapter names them."""
    return _parted(packed, STORED, BELOW)


def must_be_words(packed: Tensors, path: Path) -> None:
    """Raises UserError where words of codes are not uint32, or something else is."""
    words = {name for name, tensor in packed.items() if tensor.dtype == np.uint32}
    if odd := words ^ {name for name in packed if name.endswith(f".{STORED}.{CODES[0]}")}:
        types = (f"{name} ({packed[name].dtype})" for name in sorted(odd))
        raise UserError(f"{path}: words of codes should be uint32, and the rest of a float type: {listed(types)}")


def _parted(tensors: Tensors, here: str, there: str) -> tuple[Tensors, Tensors]:
    ends = {f".{here}.{name}": f".{there}.{name}" for name in CODES}
    rest, codes = {}, {}
    for name, tensor in tensors.items():
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            rest[name] = tensor
        else:
            codes[name.removesuffix(end) + ends[end]] = tensor
    return rest, codes
