"""The adapters of a bank before they are read: where each lies, what it says of itself, and whether it may be used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convert.adapters.fitting import must_fit, must_have_head
from convert.adapters.looking import look_at_adapter
from convert.adapters.peft import CONFIG, WEIGHTS, Adapter, read_adapter
from convert.problem import must_answer
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.core.errors import UserError, shown, told_of
from mlx_peft.core.text import named, printable
from mlx_peft.library.base import must_stand_on
from mlx_peft.library.framework import Network
from mlx_peft.vit.architecture import Architecture, Preprocessing

INSIDE = "adapter"
"""The folder of a run in which its adapter lies."""

LONGEST = 200
"""An adapter's name has at most so many characters."""


@dataclass(frozen=True)
class Entry:
    """One adapter of a bank.

    Attributes:
        name: what it is called in the bank.
        place: its folder.
        adapter: what it says of itself, without its tensors.
        rows: of its head.
    """

    name: str
    place: Path
    adapter: Adapter
    rows: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; their numbers where it was saved without."""
        return self.adapter.classes or tuple(map(str, range(self.rows)))

    def recipe(self, usual: Preprocessing) -> Preprocessing:
        """How its images are cropped: as those that it was trained on; as usual where it does not say."""
        own = self.adapter
        return usual if own.model is None or own.preprocessing is None else own.preprocessing

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.adapter.method!r}, {named(self.rows, self.adapter.classes)}"


@dataclass(frozen=True)
class Coming:
    """An adapter that was read for a bank, and is not in it yet.

    Attributes:
        entry: what it says of itself.
        adapter: with its tensors, none of which a file has any part in.
    """

    entry: Entry
    adapter: Adapter


def must_be_name(name: str) -> None:
    """Raises UserError where a text is no name of an adapter: above all where it is a path."""
    if (
        not name
        or len(name) > LONGEST
        or name.startswith(".")
        or any(sign in name for sign in "/\\")
        or not (name.isprintable())
    ):
        raise UserError(
            f"an adapter's name should be text without slashes, of at most {LONGEST} characters, that does not begin "
            f"with a dot, not {shown(name)}"
        )


def _files(place: Path) -> tuple[Path, Path]:
    return place / CONFIG, place / WEIGHTS


def adapter_at(folder: Path) -> Path | None:
    """The folder itself where it is an adapter, the one inside where it is a run; None where there is none."""
    return next((place for place in (folder, folder / INSIDE) if any(map(os.path.lexists, _files(place)))), None)


def entered(name: str, folder: Path, root: Path, network: Network) -> Entry:
    """An adapter that lies in a folder, looked at.

    Args:
        root: nothing of it may lie outside of this folder.

    Raises:
        UserError: it has no name, is damaged, or of another base, or cannot be mixed with others in a batch.
    """
    must_be_name(name)
    place = adapter_at(folder)
    if place is None:
        raise UserError(f"{folder} holds no adapter ({CONFIG} is missing)")
    for path in (place, *_files(place)):
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path} is a link that leads out of {root}: copy what it leads to, or name that folder")
    adapter, rows = look_at_adapter(place)
    _must_be_of(adapter, network, place)
    must_have_head(rows, place)
    must_answer(rows, adapter.task, place)
    with told_of(f"{place} does not fit the model"):
        adapter_shapes(adapter.method, network.architecture, rows, network.quantization)
    return Entry(name, place, adapter, rows)


def all_in(folder: Path, network: Network) -> tuple[dict[str, Entry], dict[str, str]]:
    """The adapters of a folder by name, and why others are refused. What is no adapter and no run is passed over.

    Raises UserError where the folder is none, or has no adapter in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of adapters")
    if adapter_at(folder) is not None:
        raise UserError(f"{folder} is one adapter, not a folder of adapters: name the folder that it lies in")
    found: dict[str, Entry] = {}
    refused: dict[str, str] = {}
    for path in sorted(_candidates(folder)):
        try:
            found[path.name] = entered(path.name, path, folder, network)
        except UserError as error:
            refused[path.name] = str(error)
    if not found and not refused:
        raise UserError(f"{folder} holds no adapters: each should have a folder of its own, with {CONFIG} in it")
    return found, refused


def _candidates(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_dir() and adapter_at(path) is not None)


def coming(name: str, folder: Path, network: Network) -> Coming:
    """An adapter that lies in a folder, whole. Raises UserError as ``entered`` and ``read``."""
    entry = entered(name, folder, folder, network)
    adapter = read(entry, network)
    return Coming(entry, replace(adapter, tensors={key: np.array(tensor) for key, tensor in adapter.tensors.items()}))


def read(entry: Entry, network: Network) -> Adapter:
    """The whole adapter. Raises UserError where it is not the one that was looked at, or does not fit the network."""
    adapter = read_adapter(entry.place)
    if (adapter.method, adapter.num_classes) != (entry.adapter.method, entry.rows):
        raise UserError(f"{entry.place} is not what it was when the bank looked at it: remove and add it")
    _must_be_of(adapter, network, entry.place)
    what = f"{entry.place} does not fit the model"
    must_fit(adapter.tensors, what, adapter.method, network.architecture, entry.rows, network.quantization)
    return adapter


def _must_be_of(adapter: Adapter, network: Network, place: Path) -> None:
    """Raises UserError where an adapter was trained on another base, or not so that a batch can mix it."""
    method, base = adapter.method, network.base
    with told_of(place):
        method.must_mix()
    if adapter.qat is not None:
        raise UserError(
            f"{place} was trained through codes: a batch cannot mix it with others, as its update is part of the "
            "rounded weight: merge it"
        )
    must_stand_on(adapter, network, place)
    if any(tokens is not None and tokens.trains for tokens in (adapter.tokens, network.tokens)):
        raise UserError(
            f"{place}: a batch cannot mix adapters whose reducer has trained routers (dyt): open one adapter at a time"
        )
    if adapter.tokens not in (None, network.tokens):
        raise UserError(
            f"{place} was trained with fewer tokens ({adapter.tokens}), and this model has "
            f"{network.tokens or 'all tokens'}: ask it alone, or a model that has its tokens"
        )
    if adapter.model is not None and adapter.architecture is not None:  # PEFT says no more than a name
        if fields := _differing(adapter.architecture, network.architecture):
            raise UserError(f"{place} was trained with another model: {', '.join(fields)}")
        if adapter.preprocessing is not None and adapter.preprocessing.inside != base.preprocessing.inside:
            raise UserError(f"{place} was trained on images that were normalised in another way than this model's")


def _differing(found: Architecture, wanted: Architecture) -> list[str]:
    theirs, own = dict(found), dict(wanted)
    return [f"{field} {theirs[field]}, not {own[field]}" for field in own if theirs[field] != own[field]]


def warn_of(refused: dict[str, str]) -> None:
    """One warning for each that is refused, with the reason."""
    for reason in refused.values():
        warnings.warn(reason, stacklevel=4)
