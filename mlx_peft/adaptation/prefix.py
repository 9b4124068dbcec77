"""The frozen front of a model: what comes out of it is the same in every epoch, and may be computed once."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from mlx_peft.config.quantization import Quantization
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.shapes import heads, shapes

AFTER_THE_BLOCKS = ("norm", "fc_norm", "attn_pool")


@dataclass(frozen=True)
class Prefix:
    """What stands before block ``end``; past the depth, all but the heads.

    Attributes:
        end: from 1, where only the first block is frozen, to the depth + 1.
        shape: of an image's features: ``(tokens, dim)``, or ``(heads, dim)``.
        before: for a person, what comes after it: ``block 8``, ``the last norm`` or ``the head``.
    """

    end: int
    shape: tuple[int, ...]
    before: str


def frozen_prefix(
    architecture: Architecture,
    drop_path: float,
    names: Iterable[str],
    trained: Container[str],
    quantization: Quantization | None = None,
    reducer: ReducerConfig | None = None,
) -> Prefix | None:
    """The longest part from the images on that training does not change; None where the first block is not in it.

    It ends before the first block that prompts enter, which are parameters of a method. What comes out of it is tokens
    and no more: where a reducer leaves fewer of them it would not be known which, so that it ends before, or where they
    are whole again, or where only those are left that the heads read.

    Args:
        architecture: of the plain model.
        drop_path: above 0, blocks are dropped at random, so that features differ from step to step.
        names: of all parameters, with the method in place. One that the plain model lacks is a sign of the method.
        trained: those among them that are trained.
        quantization: of the base.
        reducer: what leaves fewer tokens; None: nothing.
    """
    unwrapped = shapes(architecture, num_classes=1)
    if quantization is not None:
        unwrapped = quantization.stored(architecture, unwrapped)
    changed = [name for name in names if name in trained or name not in unwrapped]
    end = min((_place(name, architecture.depth) for name in changed), default=architecture.depth + 1)
    read = end > architecture.depth or (end == architecture.depth and architecture.kinds_read is not None)
    if reducer is not None and not read:
        end = max(block for block in range(end + 1) if block == 0 or reducer.whole(block))
    if end == 0 or drop_path:
        return None
    tokens, dim = len(architecture.places), architecture.embed_dim
    if end < architecture.depth:
        return Prefix(end, (tokens, dim), f"block {end}")
    if end == architecture.depth:
        return Prefix(end, (architecture.tokens_read or tokens, dim), "the last norm")
    return Prefix(end, (len(heads(architecture)), architecture.feature_dim), "the head")


def _place(name: str, depth: int) -> int:
    """The end of a prefix that leaves the parameter out."""
    first, _, rest = name.partition(".")
    if is_head(name) or first == "shared":  # a block that uses what is shared has parameters of the method itself
        return depth + 1
    if first in AFTER_THE_BLOCKS:
        return depth
    return int(rest.partition(".")[0]) if first == "blocks" else 0
