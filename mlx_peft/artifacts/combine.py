"""Several adapters of one base made one, which is written as any other is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from convert.adapters.peft import Adapter, write_adapter
from convert.files import listed
from mlx_peft.adaptation.combining import combine as combined
from mlx_peft.adaptation.combining import exact, must_go_together
from mlx_peft.artifacts.heads import head_of
from mlx_peft.artifacts.ingredients import Adapters, Opened, Opening, ground_of, opened
from mlx_peft.config.combination import Combination, Origin, combination
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError


@dataclass(frozen=True)
class Wish:
    """How adapters are to be combined, as a user says it; None is what was not said.

    Attributes:
        how: the way; None: the exact one, ``cat`` of low-rank updates, ``linear`` of all others.
        rank: of the result, where whole updates are brought to one; None: the largest of theirs.
        density: the share of each adapter's elements that is kept, where some are.
        seed: of the ones that are kept at random; 0.
        majority_sign_method: ``total``, or ``frequency``: how a sign is elected.
        head: the name of the adapter whose head the result has, ``mean`` or ``join``.
    """

    how: str | None = None
    rank: int | None = None
    density: float | None = None
    seed: int | None = None
    majority_sign_method: str | None = None
    head: str | None = None

    def by(self, how: str) -> Combination:
        """With a way. Raises UserError where that lacks something, or has no use for it."""
        return combination(how, self.rank, self.density, self.seed, self.majority_sign_method)


@dataclass(frozen=True)
class Combined:
    """What was made.

    Attributes:
        notes: sentences for a person, such as what PEFT cannot read.
    """

    adapter: Adapter
    notes: tuple[str, ...] = ()


def combine(
    adapters: Adapters,
    out: Path,
    wish: Wish,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Model | None = None,
    weights: str | None = None,
) -> Combined:
    """Combines adapters, or runs, of one base into a new adapter, and writes it to a folder.

    Args:
        adapters: their folders and weights; in a list all have the weight 1. The weights are taken as they are: they
            need not add up to 1.
        backend: what merges a run that is itself their base.
        model: that the adapters belong to, where none of them says so.
        weights: where those of the base are now, if they are needed and not found.

    Raises:
        UserError: an adapter is not found, is damaged or of another base, or of a method whose updates do not add up to
            one adapter; a way lacks something or has no use for it; it was not said which head is wanted; ``out`` is
            one of the adapters, or holds anything but an adapter, which would be replaced.
    """
    found = opened(adapters)
    if same := [one.given for one in found if os.path.realpath(out) in map(os.path.realpath, (one.given, one.place))]:
        raise UserError(f"{out} is one of the adapters that are combined, {same[0]}: choose another folder")
    made = made_of(found, wish, backend, model, weights)
    return Combined(made, tuple(write_adapter(out, made)))


def made_of(
    found: Sequence[Opened],
    wish: Wish,
    backend: Literal["mlx", "torch"] | None = None,
    model: Model | None = None,
    weights: str | None = None,
) -> Adapter:
    """The new adapter, in memory. Raises UserError as ``combine`` does."""
    parts = [one.part for one in found]
    asked = None if wish.how is None else wish.by(wish.how)
    must_go_together(parts, None if asked is None else asked.how)
    with _finite(found):
        head = head_of(found, wish.head)
    opening = Opening(found, backend, model, weights)
    ground = ground_of(found, opening)
    usual = exact(parts)
    if asked is None and usual is not None:
        asked = wish.by(usual)
    with _finite(found):
        method, tensors = combined(parts, asked, ground.architecture, ground.quantize, lambda: opening.base().tensors)
        if not all(np.isfinite(tensor).all() for tensor in (tensors | head.tensors).values()) or _overflows(tensors):
            raise OverflowError
    return Adapter(
        method=method,
        tensors=tensors | head.tensors,
        classes=head.classes,
        model=ground.model,
        architecture=ground.architecture,
        preprocessing=ground.preprocessing,
        base_sha256=ground.base_sha256,
        source=ground.source,
        quantize=ground.quantize,
        task=head.task,
        tokens=_tokens(found),
        origin=Origin(
            adapters=tuple(one.ingredient for one in found),
            combination=asked,
            head=head.whose,
        ),
    )


@contextmanager
def _finite(found: Sequence[Opened]) -> Iterator[None]:
    """NumPy warns of nothing in the block. Raises UserError where a number becomes too large for it."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (OverflowError, np.linalg.LinAlgError):
        told = listed(f"{one.name}={one.weight:g}" for one in found)
        raise UserError(f"what is combined is not finite: the weights are too large ({told})") from None


def _overflows(tensors: Tensors) -> bool:
    """Whether the product of a layer's matrices, finite each, is so large that its square is not.

    Attention multiplies two outputs of such layers.
    """
    norms: dict[str, float] = {}
    for name, matrix in tensors.items():
        if matrix.ndim == 2:
            layer = name.rpartition(".")[0]
            norms[layer] = norms.get(layer, 1.0) * float(np.linalg.norm(matrix.astype(np.float64)))
    return any(norm > np.finfo(np.float32).max ** 0.5 for norm in norms.values())


def _tokens(found: Sequence[Opened]) -> ReducerConfig | None:
    """The fewer tokens that all were trained with; None where they were not trained alike: all tokens."""
    first = found[0].adapter.tokens
    return first if all(one.adapter.tokens == first for one in found) else None
