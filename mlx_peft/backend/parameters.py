"""A network's parameters at the border: by timm's names, in timm's layout, as NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from convert.base import Base
from mlx_peft.backend import methods
from mlx_peft.backend.methods import quantized, rounding
from mlx_peft.backend.models.layers import ChannelsLast
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.core.border import Parameters, Tensors
from mlx_peft.vit.parameters import EXACT, is_head, last

Arrays = dict[str, mx.array]


def kernels(network: VisionTransformer, arrays: Tensors | Arrays) -> set[str]:
    """The names of those that are convolutions' weights, which have their channels last here and first in timm."""
    if not any(array.ndim == 4 for array in arrays.values()):  # most adapters: looking at each layer takes longer
        return set()
    return {f"{path}.weight" for path, layer in network.named_modules() if isinstance(layer, ChannelsLast)}


def to_mlx(tensor: np.ndarray, kernel: bool = False) -> mx.array:
    """A parameter of timm's layout in MLX's; kernel: of a convolution, ``(out, in, height, width)``."""
    return mx.array(tensor.transpose(0, 2, 3, 1) if kernel else tensor)


def to_timm(array: mx.array, kernel: bool = False) -> np.ndarray:
    """The reverse of ``to_mlx``, in float32 and C order; the words of codes as they are."""
    if array.dtype == mx.uint32:
        return to_numpy(array)
    tensor = to_numpy(array.astype(mx.float32))
    return np.ascontiguousarray(tensor.transpose(0, 3, 1, 2)) if kernel else tensor


def to_numpy(array: mx.array) -> np.ndarray:
    """An array of its own type, in C order: NumPy would take MLX's strides over."""
    return np.array(array, order="C")


def to_tensors(network: VisionTransformer, arrays: Arrays) -> Tensors:
    """Parameters of the network by name, or their gradients, as NumPy in timm's layout."""
    own = kernels(network, arrays)
    return {name: to_timm(p, name in own) for name, p in arrays.items()}


def every(network: VisionTransformer) -> Arrays:
    """All parameters, by name."""
    return dict(tree_flatten(network.parameters()))


def load(network: VisionTransformer, tensors: Tensors) -> None:
    """Sets parameters by name, each in its own type. Raises ValueError where a name is unknown or a shape differs."""
    known, convolutions = every(network), kernels(network, tensors)
    arrays = {name: to_mlx(tensor, name in convolutions) for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(f"{name} is no parameter of the model")
        if known[name].shape != array.shape:
            raise ValueError(f"{name} has the shape {tensors[name].shape}, not {known[name].shape}")
    own = [(name, array.astype(known[name].dtype)) for name, array in arrays.items()]
    network.update(tree_unflatten(own))


def fill(network: VisionTransformer, base: Base) -> None:
    """Sets a base's weights; with what it says of quantisation, the linear layers of the blocks are quantised."""
    if base.quantization is not None and base.packed:
        quantized.quantize(network, base.quantization)
    load(network, base.tensors)
    if base.quantization is not None and not base.packed:
        quantized.quantize(network, base.quantization)


def lower(network: VisionTransformer, dtype: mx.Dtype) -> None:
    """Makes what is frozen so precise, but for what a method keeps, codes, the weights that they are made of, EXACT."""
    if dtype == mx.float32:  # as everything was made
        return
    own = rounding.exact(network) | methods.kept(network).keys()
    own |= {name for name in frozen(network) if last(name) in EXACT}
    network.update(
        tree_unflatten([
            (name, p.astype(dtype))
            for name, p in frozen(network).items()
            if name not in own and mx.issubdtype(p.dtype, mx.floating)
        ])
    )  # fmt: skip


def trained(network: VisionTransformer) -> Arrays:
    """What is trained, by name."""
    return dict(tree_flatten(network.trainable_parameters()))


def frozen(network: VisionTransformer) -> Arrays:
    """What is not trained, by name."""
    own = trained(network)
    return {name: p for name, p in every(network).items() if name not in own}


def stored(network: VisionTransformer) -> Arrays:
    """What an adapter is made of, by name: what is trained, and what the method keeps beside it."""
    return trained(network) | methods.kept(network)


def load_adapter(network: VisionTransformer, tensors: Tensors) -> None:
    """Sets all that ``stored`` has, or nothing. Raises ValueError where names or shapes differ."""
    if differing := tensors.keys() ^ stored(network).keys():
        raise ValueError(f"these tensors are missing or unknown: {', '.join(sorted(differing))}")
    load(network, tensors)


def sizes(network: VisionTransformer) -> dict[str, int]:
    """How many numbers each parameter that is trained has, by name."""
    return {name: p.size for name, p in trained(network).items()}


def count(network: VisionTransformer) -> Parameters:
    """How many numbers are trained, and how many there are; a code counts as the number that it stands for."""
    codes = quantized.sizes(network)
    own = sizes(network)
    head = sum(size for name, size in own.items() if is_head(name))
    return Parameters(
        adapter=sum(own.values()) - head,
        head=head,
        total=sum(own.values()) + sum(codes.get(name, p.size) for name, p in frozen(network).items()),
    )
