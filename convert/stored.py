"""How large a safetensors file is, without writing it."""

from __future__ import annotations

from convert.tensor_file import Layout, header_of
from mlx_peft.config.quantization import Quantization
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import shapes


def file_bytes(tensors: Layout) -> int:
    """The size of the file that ``write_safetensors`` writes for float32 tensors and words, its digest included."""
    header, _, end = header_of(tensors)
    return len(header) + end


def model_bytes(architecture: Architecture, num_classes: int, quantization: Quantization | None) -> int:
    """The size of a model's ``model.safetensors`` in float32, or with its blocks' linear layers quantised."""
    unquantised = shapes(architecture, num_classes)
    stored = unquantised if quantization is None else quantization.stored(architecture, unquantised)
    return file_bytes(
        {n: ("U32" if n in unquantised and shape != unquantised[n] else "F32", shape) for n, shape in stored.items()}
    )
