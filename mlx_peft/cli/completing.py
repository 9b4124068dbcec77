"""What a shell completes: the names that commands take. Each looks up what there is when it is asked, and only then.

typer completes commands and options itself; ``complete`` prints what has a shell ask it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import typer


def asked(program: str) -> bool:
    """Whether this process is a shell's question, and not a command."""
    return bool(os.environ.get(variable(program)))


def variable(program: str) -> str:
    """The variable of the environment in which a shell puts its question."""
    return f"_{program}_COMPLETE".replace("-", "_").upper()


def recipes(incomplete: str) -> list[str]:
    from mlx_peft.config import recipes

    return beginning(recipes.names(), incomplete)


def suites(incomplete: str) -> list[str]:
    from mlx_peft.config import recipes

    return beginning(recipes.names("suite"), incomplete)


def devices(incomplete: str) -> list[str]:
    from mlx_peft.adaptation.estimate.devices import DEVICES

    return beginning(DEVICES, incomplete)


def readable(incomplete: str) -> list[str]:
    """What ``cat`` and ``cp`` take."""
    return [*recipes(incomplete), *suites(incomplete)]


def models(incomplete: str) -> list[str]:
    """timm's names; behind a dot, the tags."""
    from mlx_peft.vit import registry

    name, dot, _ = incomplete.partition(".")
    tagged = [f"{name}.{tag}" for tag in registry.tags(name)] if dot and name in registry.names() else []
    return beginning(tagged or registry.names(), incomplete)


def families(incomplete: str) -> list[str]:
    from mlx_peft.vit.families import FAMILIES

    return beginning((family.name for family in FAMILIES), incomplete)


def methods(incomplete: str) -> list[str]:
    from mlx_peft.config.methods import Method

    kinds = get_args(get_args(Method)[0])
    return beginning((kind.model_fields["name"].default for kind in kinds), incomplete)


def ways(incomplete: str) -> list[str]:
    """In which adapters are combined."""
    from mlx_peft.config.combination import WAYS

    return beginning(WAYS, incomplete)


def datasets(incomplete: str) -> list[str]:
    from mlx_peft.data import REGISTRY

    return beginning(REGISTRY, incomplete)


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """``KEY=VALUE``: the keys of an experiment, and behind ``=`` the values, where they are known.

    bash takes ``=`` for a word of its own, and asks for what stands behind it.
    """
    before = [*(ctx.params.get("overrides") or ())]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={one}" for one in values(key, value)]
    if before[-1:] == ["="]:
        return values(before[-2], incomplete) if len(before) > 1 else []
    if before and not incomplete and (found := values(before[-1], "")):
        return found
    return beginning((f"{one}=" for one in keys()), incomplete)


def keys() -> dict[str, list[str]]:
    """The dotted keys of an experiment that have plain values; of each what it may be, where that is known."""
    from mlx_peft.config.schema import Experiment
    from mlx_peft.core.sections import dotted, fields, sections

    found: dict[str, list[str]] = {}

    def collect(section: type, place: tuple[str, ...]) -> None:
        for name, annotation in fields(section).items():
            inner = sections(annotation)
            for kind in inner:
                collect(kind, (*place, name))
            if not inner:
                there = found.setdefault(dotted((*place, name)), [])
                there += [choice for choice in choices(annotation) if choice not in there]

    collect(Experiment, ())
    return found


def choices(annotation: Any) -> tuple[str, ...]:
    from mlx_peft.core.sections import bare

    plain = bare(annotation)
    if plain is bool:
        return ("true", "false")
    return get_args(plain) if get_origin(plain) is Literal else ()


NAMED = {"model.name": models, "data.name": datasets}
"""Keys whose values are names that there are, by what lists them."""


def values(key: str, incomplete: str) -> list[str]:
    """The values of a key that begin so; none where any number or text may stand."""
    return NAMED[key](incomplete) if key in NAMED else beginning(keys().get(key, ()), incomplete)


def beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
