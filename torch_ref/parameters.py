"""A network's parameters at the border: by timm's names, in timm's layout, as NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convert.base import Base
from mlx_peft.core.border import Parameters, Tensors
from mlx_peft.vit.parameters import EXACT, is_head, last
from torch_ref import methods
from torch_ref.methods import quantized, rounding
from torch_ref.models.vit import VisionTransformer

Arrays = dict[str, Tensor]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor on the host, in float32, or the words of codes; a copy, so that the next step does not change it."""
    if tensor.dtype == torch.uint32:
        return tensor.cpu().numpy().copy()
    return tensor.detach().float().cpu().numpy().copy()


def to_tensors(arrays: Arrays) -> Tensors:
    """Parameters by name, as NumPy in timm's layout."""
    return {name: to_numpy(p) for name, p in arrays.items()}


def every(network: VisionTransformer) -> Arrays:
    """All parameters, by name."""
    return dict(network.named_parameters())


@torch.no_grad()
def load(network: VisionTransformer, tensors: Tensors) -> None:
    """Sets parameters by name, each in its own type. Raises ValueError where a name is unknown or a shape differs."""
    known = every(network)
    for name, tensor in tensors.items():
        if name not in known:
            raise ValueError(f"{name} is no parameter of the model")
        if known[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tensor.shape}, not {tuple(known[name].shape)}")
    for name, tensor in tensors.items():
        known[name].copy_(torch.from_numpy(np.asarray(tensor)))


def fill(network: VisionTransformer, base: Base) -> None:
    """Sets a base's weights; with what it says of quantisation, the linear layers of the blocks are quantised."""
    if base.quantization is not None and base.packed:
        quantized.quantize(network, base.quantization)
    load(network, base.tensors)
    if base.quantization is not None and not base.packed:
        quantized.quantize(network, base.quantization)


def lower(network: VisionTransformer, dtype: torch.dtype) -> None:
    """Makes what is frozen so precise, but for what a method keeps, codes, the weights that they are made of, EXACT."""
    if dtype == torch.float32:  # as everything was made
        return
    own = rounding.exact(network) | methods.kept(network).keys()
    own |= {name for name in frozen(network) if last(name) in EXACT}
    for name, p in frozen(network).items():
        if name not in own and p.is_floating_point():
            p.data = p.data.to(dtype)


def trained(network: VisionTransformer) -> Arrays:
    """What is trained, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def frozen(network: VisionTransformer) -> Arrays:
    """What is not trained, by name."""
    return {name: p for name, p in network.named_parameters() if not p.requires_grad}


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
    return {name: p.numel() for name, p in trained(network).items()}


def count(network: VisionTransformer) -> Parameters:
    """How many numbers are trained, and how many there are; a code counts as the number that it stands for."""
    codes = quantized.sizes(network)
    own = sizes(network)
    head = sum(size for name, size in own.items() if is_head(name))
    return Parameters(
        adapter=sum(own.values()) - head,
        head=head,
        total=sum(own.values()) + sum(codes.get(name, p.numel()) for name, p in frozen(network).items()),
    )
