"""``ls models`` and ``ls families``: what there is, narrowed down, and where weights are had under which licence."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_peft.core.errors import Command, UserError, suggest

Entry = dict[str, Any]

UNKNOWN = "unknown"
"""A licence that timm does not state; where a family was first published, if nobody has said it."""

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
NUMBER = rf"(\d+(?:\.\d+)?)([{''.join(UNITS)}]?)"
RANGE = re.compile(rf"(?:{NUMBER})?\s*-\s*(?:{NUMBER})?", re.IGNORECASE)

SIZES = (
    "tiny", "wee", "xsmall", "little", "small", "medium", "mediumd", "betwixt", "base", "so150m", "so150m2", "large",
    "so400m", "huge", "1b", "giant", "giantopt", "gigantic", "enormous", "3b", "5b", "7b",
)  # fmt: skip
"""The words of a name that say how large a model is."""


@dataclass(frozen=True)
class Wanted:
    """Which models are asked for: of each field any of its values, of different fields all; an empty one asks nothing.

    Attributes:
        family: names of FAMILIES.
        size: words of SIZES, or ranges of parameters: ``5M-30M``, ``-30M``, ``1B-``.
        licence: of weights: names, or patterns.
        image_size: of weights, pixels.
        weights: whether the hub has any.
    """

    family: tuple[str, ...] = ()
    size: tuple[str, ...] = ()
    licence: tuple[str, ...] = ()
    image_size: tuple[int, ...] = ()
    weights: bool | None = None

    @property
    def options(self) -> dict[str, list[str]]:
        """What is asked, by its field, as a command line has it; fields that ask nothing are left out."""
        asked: dict[str, tuple[object, ...]] = {
            "family": self.family,
            "size": self.size,
            "licence": self.licence,
            "image_size": self.image_size,
        }
        words = {key: [f"--{key.replace('_', '-')} {value}" for value in values] for key, values in asked.items()}
        words["weights"] = {None: [], True: ["--weights"], False: ["--no-weights"]}[self.weights]
        return {key: given for key, given in words.items() if given}

    @property
    def words(self) -> list[str]:
        """All of them."""
        return [word for words in self.options.values() for word in words]

    def without(self, key: str) -> Wanted:
        """The same, but for what one field asks."""
        nothing: dict[str, Any] = {key: None if key == "weights" else ()}
        return replace(self, **nothing)


def models() -> Iterator[Entry]:
    """Every model by name, with its weights."""
    import math

    from mlx_peft.vit import registry
    from mlx_peft.vit.families import family_of
    from mlx_peft.vit.parameters import is_head
    from mlx_peft.vit.shapes import shapes

    for name in registry.names():
        architecture = registry.find(name).architecture
        sizes = {key: math.prod(shape) for key, shape in shapes(architecture, 1).items() if not is_head(key)}
        weights = [
            {
                "tag": entry.tag,
                "image_size": entry.architecture.img_size,
                "classes": entry.num_classes,
                "family": family_of(name, entry.tag).name,
                "license": entry.license,
                "gated": entry.gated,
                "hub_id": entry.hub_id,
            }
            for entry in (registry.find(f"{name}.{tag}") for tag in registry.tags(name))
        ]
        entry = {"name": name, "parameters": sum(sizes.values()), "image_size": architecture.img_size}
        yield _summed(entry | {"families": [family_of(name, None).name]}, weights)


def families() -> Iterator[Entry]:
    """Every family, with its models and what is known of their weights."""
    from mlx_peft.vit.families import FAMILIES

    every = list(models())
    for family in FAMILIES:
        members = narrowed(every, Wanted(family=(family.name,)))
        weights = [one for entry in members for one in entry["weights"]]
        yield {
            "name": family.name,
            "models": len(members),
            "tags": len(weights),
            "licenses": sorted({one["license"] or UNKNOWN for one in weights}),
            "origin": family.origin or UNKNOWN,
            "on_hub": sum(one["hub_id"] is not None for one in weights),
            "consent": family.consent or None,
            "description": family.description,
        }


def _summed(entry: Entry, weights: list[Entry]) -> Entry:
    """An entry with its weights, and what they have in common with it for a line."""
    first = weights[0] if weights else entry
    return entry | {
        "image_size": first["image_size"],
        "families": list(dict.fromkeys(one["family"] for one in weights)) or entry["families"],
        "licenses": sorted({one["license"] or UNKNOWN for one in weights}),
        "description": ", ".join(one["tag"] for one in weights),
        "weights": weights,
    }


def narrowed(entries: Sequence[Entry], wanted: Wanted) -> list[Entry]:
    """Of some models those that are asked for, each with those of its weights that are.

    Raises:
        UserError: for a family, a size or a licence that there is none of.
    """
    if not wanted.options:
        return list(entries)
    fits, of_weights = _fits_size(wanted.size), _fits_weights(wanted)
    found = []
    for entry in entries:
        if not fits(entry):
            continue
        if entry["weights"]:
            if kept := [one for one in entry["weights"] if of_weights(one)]:
                found.append(_summed(entry, kept))
        elif _fits_bare(entry, wanted):
            found.append(entry)
    return found


def _fits_weights(wanted: Wanted) -> Callable[[Entry], bool]:
    """Whether one of a model's weights is among those that are asked for."""
    from mlx_peft.vit.families import FAMILIES

    known = [family.name for family in FAMILIES]
    for name in wanted.family:
        if name not in known:
            raise UserError(
                f"there is no family {name!r}{suggest(name, known)}", command=Command("see", ("ls", "families"))
            )
    licences = _licences() if wanted.licence else []
    for name in wanted.licence:
        if not fnmatch.filter(licences, name.lower()):
            raise UserError(f"no weights have the licence {name!r}{suggest(name, licences)} ({', '.join(licences)})")

    def fits(one: Entry) -> bool:
        licence = one["license"] or UNKNOWN
        return (
            (not wanted.family or one["family"] in wanted.family)
            and (not wanted.licence or any(fnmatch.fnmatchcase(licence, name.lower()) for name in wanted.licence))
            and (not wanted.image_size or one["image_size"] in wanted.image_size)
            and (wanted.weights is None or (one["hub_id"] is not None) is wanted.weights)
        )

    return fits


def _fits_bare(entry: Entry, wanted: Wanted) -> bool:
    """Whether a model without any weights is asked for."""
    return (
        not wanted.licence
        and not wanted.weights
        and (not wanted.family or set(wanted.family) >= set(entry["families"]))
        and (not wanted.image_size or entry["image_size"] in wanted.image_size)
    )


def _licences() -> list[str]:
    from mlx_peft.vit import registry

    every = (f"{name}.{tag}" for name in registry.names() for tag in registry.tags(name))
    return sorted({registry.find(name).license or UNKNOWN for name in every})


def _fits_size(sizes: Sequence[str]) -> Callable[[Entry], bool]:
    """Whether a model is of one of the sizes. Raises UserError for one that is none."""
    words, ranges = set(), []
    for size in sizes:
        if size.lower() in SIZES:
            words.add(size.lower())
        elif match := RANGE.fullmatch(size.strip()):
            low, low_unit, high, high_unit = match.groups()
            if low is None and high is None:
                raise UserError(f"the size {size!r} names no number of parameters: write 5M-30M, -30M or 1B-")
            ranges.append((_count(low, low_unit or high_unit, 0), _count(high, high_unit, float("inf"))))
        else:
            hint = suggest(size.lower(), SIZES)
            raise UserError(
                f"{size!r} is no size{hint}: write a word of the models' names ({', '.join(SIZES)}), or how many "
                "parameters they have, as 5M-30M, -30M or 1B-"
            )

    def fits(entry: Entry) -> bool:
        return (
            not sizes
            or bool(words & set(entry["name"].split("_")))
            or any(low <= entry["parameters"] <= high for low, high in ranges)
        )

    return fits


def _count(number: str | None, unit: str | None, missing: float) -> float:
    """``30`` and ``M`` as a number; ``5-30M`` means millions twice."""
    return missing if number is None else float(number) * UNITS[(unit or "").lower()]


def nothing(named: Sequence[Entry], pattern: str, wanted: Wanted) -> str:
    """That no model is all that is asked for, and which of the questions leaves none."""
    text = " ".join([repr(pattern)] * bool(pattern) + wanted.words)
    left = {key: len(narrowed(named, wanted.without(key))) for key in wanted.options}
    hints = [f"{count} without {' '.join(wanted.options[key])}" for key, count in left.items() if count]
    return f"no models match {text}" + (f" (there would be {', '.join(hints)})" if hints else "")


def where(found: Sequence[Entry], wanted: Wanted) -> Iterator[str]:
    """What is to be said below a list: of families that were asked for by name, where they are had."""
    if wanted.family:
        for family in families():
            if family["name"] in wanted.family:
                yield _had(family)
    else:
        yield "where a family's weights are had, and under which licences: ls families"
    yield "whether the hub asks for consent first (gating) is not known of any; a download says so"


def _had(family: Entry) -> str:
    """Where a family's weights are had, as a sentence."""
    licences = ", ".join(family["licenses"]) or "none, as it has no weights"
    hub = f"{family['on_hub']} of {family['tags']} weights are timm's copies on the hub"
    consent = f"; {family['consent']} are given to those who ask for them there" if family["consent"] else ""
    return (
        f"{family['name']}: {family['description']}. Published at {family['origin']}; {hub}{consent}; licences as timm "
        f"states them: {licences}"
    )
