"""How large a safetensors file is, without writing it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

from mlx_peft.config.architecture import Architecture
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.shapes import shapes

BYTES = {"F32": 4, "U32": 4}
"""Of an element, by dtype, in the order in which the library writes them."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""A tensor's dtype and shape, by name."""


def file_bytes(tensors: Layout) -> int:
    """The size of the file that the ``safetensors`` library writes for float32 tensors and words, without metadata.

    Eight bytes, a header in JSON padded with spaces to a multiple of eight, and the tensors, ordered by dtype and name.
    """
    header, end = {}, 0
    order = list(BYTES)
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (order.index(item[1][0]), item[0])):
        begin, end = end, end + BYTES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + end


def model_bytes(architecture: Architecture, num_classes: int, quantization: Quantization | None) -> int:
    """The size of a model's ``model.safetensors`` in float32, or with its blocks' linear layers quantised."""
    plain = shapes(architecture, num_classes)
    stored = plain if quantization is None else quantization.stored(architecture, plain)
    return file_bytes({n: ("U32" if n in plain and shape != plain[n] else "F32", shape) for n, shape in stored.items()})
