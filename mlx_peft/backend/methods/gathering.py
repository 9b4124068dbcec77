"""The terms of a batch's rows, brought together from what each row's adapter has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from mlx_peft.adaptation.forms import NEUTRAL, Form

Held = Mapping[str, Mapping[str, mx.array]]
"""Terms by the path of a layer or a block and by their names, see ``adaptation.terms``: one adapter's, or with another
axis before the others those of a batch's rows."""


def gathered(rows: Sequence[Held | None], form: Form) -> Held:
    """The terms of rows that have these, or None: of one adapter alone its own, without a copy.

    Whatever is smaller than the form is filled up at its ends with what changes nothing.
    """
    if all(row is rows[0] for row in rows):
        return rows[0] or {}
    return {
        path: {
            name: stacked([None if row is None else row.get(path, {}).get(name) for row in rows], shape, name)
            for name, shape in shapes.items()
        }
        for path, shapes in form.items()
    }


def stacked(arrays: Sequence[mx.array | None], shape: tuple[int, ...], name: str) -> mx.array:
    """A term of all rows, ``(batch, *shape)``."""
    fill = NEUTRAL.get(name, 0.0)
    empty = mx.full(shape, fill)
    return mx.stack([empty if array is None else filled(array, shape, fill) for array in arrays])


def filled(array: mx.array, shape: Sequence[int], fill: float) -> mx.array:
    """An array of at least its own shape, filled up at the ends of its axes."""
    missing = [wanted - size for size, wanted in zip(array.shape, shape, strict=True)]
    if not any(missing):
        return array
    return mx.pad(array, [(0, count) for count in missing], constant_values=fill)
