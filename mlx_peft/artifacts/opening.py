"""Whoever is to be asked, opened: the bank of a folder of adapters, or the bare model of whatever holds one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from convert.adapters.peft import read_adapter
from convert.base import Base, load_base, whole
from convert.layouts.layout import Asked
from convert.named import open_named
from mlx_peft.artifacts.answering import ManyAdapters, OneModel
from mlx_peft.artifacts.load import Tokens, chosen, elsewhere, recipe_of
from mlx_peft.artifacts.place import find_adapter
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.artifacts.source import at_its_grid
from mlx_peft.config.methods import Linear
from mlx_peft.config.schema import Model
from mlx_peft.core import memory
from mlx_peft.core.errors import UserError
from mlx_peft.library.bank import Bank
from mlx_peft.library.framework import Network
from mlx_peft.protocols.loading import load_backend, load_library
from mlx_peft.tasks.registry import USUAL
from mlx_peft.training.bases import base_model, opener
from mlx_peft.training.whereabouts import adapter_in
from mlx_peft.vit.registry import find
from mlx_peft.vit.shapes import heads

SHARE = 0.5
"""Of the memory that there is, adapters of a bank may have so much; the least recently used make room beyond."""


def open_bank(
    folder: Path,
    names: Sequence[str | None],
    backend: Literal["mlx", "torch"],
    *,
    model: Model | None = None,
    weights: str | None = None,
    tokens: Tokens = "own",
    budget: int | None = None,
) -> tuple[ManyAdapters, tuple[str, ...]]:
    """The bank of a folder's adapters, and notes. Its base is that of the first of them that is asked for.

    Args:
        names: the adapters that will be asked; None for the bare base.
        model: for adapters that name none, as those that PEFT wrote.
        weights: where the base's are now; None: they are found by their digest.
        tokens: those of the first that is asked for, another reducer for all, or None for none.
        budget: bytes that the adapters in memory may have together; None: half of the memory that there is.

    Raises:
        UserError: the folder holds no adapters, there is none of a name, it is of another base or refused; the base is
            not found.
    """
    if adapter_in(folder) is not None:
        raise UserError(
            f"{folder} is one run or adapter, not a folder of several: leave the table of adapters out",
            arguments=("adapters",),
        )
    asked = [name for name in names if name is not None]
    place = find_adapter(folder, next(iter(asked), None) or _first(folder))
    network, base, recipe, notes = _network_of(place, backend, model, weights, tokens)
    with warnings.catch_warnings():  # what is refused is told in notes
        warnings.simplefilter("ignore")
        bank = load_library(backend).load_adapters(network, folder, _within(budget, backend))
    for name in asked:
        bank[name]  # which says so where there is none
    refused = tuple(f"left out: {reason}" for reason in bank.refused.values())
    return ManyAdapters(bank, base, recipe), (*notes, *refused)


def bank_of_one(
    folder: Path, name: str, backend: Literal["mlx", "torch"], *, budget: int | None = None
) -> tuple[ManyAdapters, tuple[str, ...]]:
    """The bank of a run or an adapter alone, under a name, and notes.

    Raises UserError where there is none, it cannot be mixed with others, or its base is not found.
    """
    network, base, recipe, notes = _network_of(find_adapter(folder, None), backend)
    bank = Bank(network, load_library(backend).framework.mixer(network), _within(budget, backend))
    bank.add(folder, name)
    return ManyAdapters(bank, base, recipe), notes


def _network_of(
    place: Path,
    backend: Literal["mlx", "torch"],
    model: Model | None = None,
    weights: str | None = None,
    tokens: Tokens = "own",
) -> tuple[Network, Base, Recipe, tuple[str, ...]]:
    """The bare network on which an adapter stands, its description and its recipe, and notes."""
    adapter = read_adapter(place)
    recipe = replace(recipe_of(adapter, place, model), backend=backend, method=Linear(), qat=None, precision="float32")
    recipe = replace(recipe, tokens=chosen(recipe.tokens, tokens))
    named = base_model(recipe.model, adapter, place, weights or (None if model is None else model.weights))
    headless = named.model_copy(update={"head": "new"})  # each adapter brings its own
    base = load_base(headless, 1, recipe.seed, recipe.quantize, opener=opener(backend))
    recipe.check_room(base, 1, 1)
    library = load_library(backend)
    network = library.framework.build(base.architecture, 1)
    library.framework.fill(network, base)
    network.reduce(recipe.tokens)
    library.adopt(network, named, base)
    return network, base.without_tensors(), recipe, elsewhere(recipe.model, base)


def _within(budget: int | None, backend: str) -> int:
    there = load_backend(backend).computing().memory or memory.available()
    return int(SHARE * there) if budget is None else budget


def _first(folder: Path) -> str | None:
    """The name of a folder's first adapter; None where there is none."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((entry.name for entry in entries if entry.is_dir() and adapter_in(entry)), None)


def open_bare(
    source: str,
    backend: Literal["mlx", "torch"],
    *,
    model: str | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    tokens: Tokens = "own",
) -> tuple[OneModel, tuple[str, ...]]:
    """A model that is asked for features alone, and notes; whether it has a classifier is no matter.

    Args:
        source: a model's folder, of any layout, a file of weights, a name of timm's, a repository of the hub.
        model: its name, where the source does not say it.
        weights: of a name of timm's: a file or folder in the place of the hub's.
        image_size: pixels; its own where None.
        tokens: those that its folder names, another reducer, or None for none.

    Raises:
        UserError: there is no such model, or it leaves open what it is.
    """
    path = Path(os.path.expanduser(source))
    if weights is not None:
        if path.exists() or model is not None:
            raise UserError(f"{source} has weights of its own: leave the others out", arguments=("weights",))
        source, model, path = weights, find(source).name, Path(os.path.expanduser(weights))
    _, found = open_named(source, path, Asked(model, {}))
    base = whole(at_its_grid(found, {}), image_size)
    width = base.architecture.feature_dim
    none = {name: array for head in heads(base.architecture) for name, array in _empty(head, width).items()}
    base = replace(base, tensors=base.tensors | none)
    fewer = chosen(base.tokens, tokens)
    recipe = Recipe(Model(name=base.name), Linear(), backend=backend, tokens=fewer)
    recipe.check_room(base, 1, 1)
    return OneModel(recipe.build(base, 1), base.without_tensors(), recipe, (), USUAL), base.notes


def _empty(head: str, width: int) -> dict[str, np.ndarray]:
    return {f"{head}.weight": np.zeros((1, width), np.float32), f"{head}.bias": np.zeros(1, np.float32)}
