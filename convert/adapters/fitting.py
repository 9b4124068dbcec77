"""Whether an adapter is one for a model: its method can be put there, and its tensors are what the method has there."""

from __future__ import annotations

import re
from pathlib import Path

from convert.fit import must_hold
from mlx_peft.adaptation.adapter import adapter_shapes, required
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, told_of
from mlx_peft.core.text import counted
from mlx_peft.vit.architecture import Architecture

BLOCK = re.compile(r"blocks\.(\d+)\.")
"""The beginning of a name in a block, with the block's number."""


def must_fit(
    tensors: Tensors,
    what: str,
    method: MethodConfig,
    architecture: Architecture,
    classes: int,
    quantization: Quantization | None = None,
    qat: QAT | None = None,
    tokens: ReducerConfig | None = None,
) -> None:
    """Raises UserError, with ``what`` does not fit at its head, where they are not: before anything is made of either.

    The others are the arguments of ``adapter_shapes``.
    """
    with told_of(what):
        wanted = adapter_shapes(method, architecture, classes, quantization, qat, tokens)
    held = {name: tensor.shape for name, tensor in tensors.items()}
    needed = required(method, wanted, held)
    own, there = (len({match[1] for name in names if (match := BLOCK.match(name))}) for names in (held, needed))
    if own and there and own != there:  # in place of the names of all of their tensors
        raise UserError(f"{what}: it is of {counted(own, 'block')}, and there its method is on {there:,}")
    must_hold(held, needed, what)


def must_have_head(rows: int, place: Path) -> None:
    """Raises UserError where an adapter has no classifier, with where to say so in PEFT."""
    if not rows:
        raise UserError(
            f"{place} holds no classifier: with PEFT, name the model's in modules_to_save: ['head'] is that of timm's "
            "models, ['classifier'] of transformers', ['heads'] of torchvision's"
        )
