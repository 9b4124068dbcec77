"""The form of terms, which there are and how large: rows of several forms become one batch in one that holds all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlx_peft.adaptation.terms import Layers

Form = Mapping[str, Mapping[str, tuple[int, ...]]]
"""The shapes of terms, by path and by name, in the order of both."""

NEUTRAL = {"into": 1.0, "gain": 1.0}
"""What a term is filled with where a row has none, or a smaller one: what changes nothing. Of all others this is 0."""


def form_of(layers: Layers) -> Form:
    """The form of one adapter's terms."""
    return united([{path: {name: array.shape for name, array in terms.items()} for path, terms in layers.items()}])


def united(forms: Iterable[Form]) -> Form:
    """The smallest form that holds all of these: every term that one of them has, as large as the largest."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for form in forms:
        for path, shapes in form.items():
            own = found.setdefault(path, {})
            for name, shape in shapes.items():
                own[name] = tuple(map(max, shape, own.get(name, shape)))
    return {path: dict(sorted(shapes.items())) for path, shapes in sorted(found.items())}
