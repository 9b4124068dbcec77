"""The adapters that are to become one: opened, and whether they are of one base."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from convert.adapters.fitting import must_fit, must_have_head
from convert.adapters.peft import Adapter, read_adapter
from convert.base import Base
from convert.files import listed
from mlx_peft.adaptation.combining import Part
from mlx_peft.artifacts.load import described_by, recipe_of
from mlx_peft.artifacts.place import find_adapter
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.config.combination import Ingredient
from mlx_peft.config.quantization import Quantization, described
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.paths import given_path
from mlx_peft.core.text import printable
from mlx_peft.training.bases import adapter_base, base_model, opener, run_of
from mlx_peft.training.run import RunFolder
from mlx_peft.training.whereabouts import merged_digest
from mlx_peft.vit.architecture import Architecture, Preprocessing

Adapters = Mapping[Any, float] | Sequence[Any]
"""Folders of adapters or runs, with their weights; without, each has the weight 1."""


@dataclass(frozen=True)
class Opened:
    """An adapter that was read.

    Attributes:
        name: of its folder, of a run's the run's; a byte that is not UTF-8 is written out, as in its file.
        given: as the user has named it.
        place: its folder.
    """

    name: str
    given: Path
    place: Path
    adapter: Adapter
    weight: float

    @property
    def part(self) -> Part:
        """What is combined of it."""
        return Part(self.name, self.adapter.method, self.adapter.tensors, self.weight)

    @property
    def ingredient(self) -> Ingredient:
        """What is said of it afterwards."""
        method = self.adapter.method.name
        return Ingredient(name=self.name, method=method, weight=self.weight, sha256=merged_digest(self.adapter))


@dataclass(frozen=True)
class Ground:
    """What adapters stand on together, as far as they say so: see ``Adapter`` for the attributes."""

    model: Model | None
    architecture: Architecture
    preprocessing: Preprocessing | None
    base_sha256: str | None
    source: str
    quantize: Quantization | None


def opened(adapters: Adapters) -> list[Opened]:
    """The adapters, in their order, each read whole.

    Raises:
        UserError: there is none, one is not found or damaged, a weight is no finite number, or one was trained through
            codes: its update is part of the rounded weight; or with routers.
    """
    if isinstance(adapters, str | Path):
        adapters = [adapters]
    weights = dict(adapters) if isinstance(adapters, Mapping) else None
    if not adapters:
        raise UserError("there are no adapters to combine")
    found = []
    for given in adapters:
        path = given_path(given, "an adapter's folder")
        weight = 1.0 if weights is None else weights[given]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UserError(f"the weight of {path} should be a finite number, not {shown(weight)}")
        place = find_adapter(path, None)
        adapter = read_adapter(place)
        if adapter.qat is not None:
            raise UserError(
                f"{place} was trained through codes, and its update is part of the rounded weight: nothing can be "
                "added to that"
            )
        if adapter.tokens is not None and adapter.tokens.trains:
            raise UserError(
                f"{place} was trained with routers (tokens: {adapter.tokens.name}), and what two of them decide does "
                "not add up"
            )
        must_have_head(adapter.num_classes, place)
        found.append(Opened(_name(place), path, place, adapter, float(weight)))
    return found


def _name(place: Path) -> str:
    whole = Path(os.path.realpath(place))
    run = RunFolder(whole.parent)
    return printable(run.path.name if whole == run.adapter and run.config.exists() else whole.name)


@dataclass(frozen=True)
class Opening:
    """How the base that adapters stand on is opened.

    Attributes:
        backend: what merges a run that is itself the base; None: the adapters' own.
        model: that the adapters belong to, where none of them says so.
        weights: where its weights are now, where they are not found.
    """

    found: Sequence[Opened]
    backend: Literal["mlx", "torch"] | None = None
    model: Model | None = None
    weights: str | None = None

    @property
    def telling(self) -> Opened | None:
        """The first adapter that says what it belongs to."""
        return next((one for one in self.found if one.adapter.model is not None), None)

    @property
    def recipe(self) -> Recipe:
        """Of the base: where neither an adapter nor the user names it, what the folder of its weights says.

        Raises UserError where nobody says which, or an adapter and the user name different ones.
        """
        first, model = self.telling or self.found[0], self.model
        if model is None and first.adapter.model is None and run_of(first.place) is None:
            model = described_by(self.weights)
        return recipe_of(first.adapter, first.place, model)

    def base(self) -> Base:
        """The base with its weights, read. Raises UserError where these are not found."""
        first, recipe = self.telling or self.found[0], self.recipe
        weights = self.weights or (None if self.model is None else self.model.weights)
        return adapter_base(
            first.adapter, first.place, base_model(recipe.model, first.adapter, first.place, weights),
            method=recipe.method, quantize=recipe.quantize, qat=None, seed=recipe.seed,
            opener=opener(self.backend or recipe.backend),
        )  # fmt: skip


def ground_of(found: Sequence[Opened], opening: Opening) -> Ground:
    """What all of them stand on.

    Raises:
        UserError: they stand on different bases, nobody says on which, or one has other tensors than its method has on
            such a model.
    """
    for one, other in combinations(found, 2):
        _must_be_of_one_base(one, other)
    model = opening.recipe.model  # which says so where another one is named
    telling = opening.telling
    if telling is None or (architecture := telling.adapter.architecture) is None:
        base = opening.base()
        model = model.model_copy(update={"args": {**found[0].adapter.fields, **model.args}})
        ground = Ground(model, base.architecture, base.preprocessing, base.sha256, base.source, base.quantization)
    else:
        known = telling.adapter
        digest = next((one.adapter.base_sha256 for one in found if one.adapter.base_sha256), None)
        ground = Ground(known.model, architecture, known.preprocessing, digest, known.source, known.quantize)
    for one in found:
        own, pooled = one.adapter, dict(ground.architecture)
        if odd := [field for field, value in own.fields.items() if pooled[field] != value]:
            raise UserError(f"{one.place}: its head is of another pooling than that of the others ({listed(odd)})")
        what = f"{one.place} does not fit the model of the others"
        must_fit(own.tensors, what, own.method, ground.architecture, own.num_classes, ground.quantize)
    return ground


def _must_be_of_one_base(first: Opened, other: Opened) -> None:
    """Raises UserError where two adapters stand on different weights or codes; what one does not say is believed."""
    one, two = first.adapter, other.adapter
    between = f"{first.given} and {other.given} stand on different bases"
    if None not in (one.base_sha256, two.base_sha256) and one.base_sha256 != two.base_sha256:
        raise UserError(
            f"{between}: {printable(one.source)} ({str(one.base_sha256)[:12]}) and {printable(two.source)} "
            f"({str(two.base_sha256)[:12]})"
        )
    if one.model is None or two.model is None:
        return  # PEFT says no more than a name
    if one.quantize != two.quantize:
        raise UserError(f"{between}: quantize: {described(one.quantize)} and {described(two.quantize)}")
    if one.architecture != two.architecture:
        raise UserError(f"{between}: models of different shapes, {one.model.name} and {two.model.name}")
    if one.preprocessing and two.preprocessing and one.preprocessing.inside != two.preprocessing.inside:
        raise UserError(
            f"{first.given} and {other.given} were trained on images that were normalised in different ways"
        )
