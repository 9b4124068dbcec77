"""Weights found by their digest: where they are said to be, where they were seen before, or beside the run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from convert import hub, known
from convert.adapters.peft import CONFIG, Adapter, read_adapter
from convert.base import digest_of
from convert.files import exact
from convert.kinds import SUFFIXES
from convert.weights import open_weights
from mlx_peft.config.schema import Model
from mlx_peft.config.section import Section
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import canonical
from mlx_peft.training.run import RunFolder
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import find

MOST_TRIED = 8
"""So many files of weights of any name, and so many runs, are looked into in a folder."""


def adapter_in(folder: Path) -> Path | None:
    """The folder itself where it is an adapter, its ``adapter/`` where it is a run with one."""
    places = (folder, RunFolder(folder).adapter)
    return next((place for place in places if os.path.exists(place / CONFIG)), None)


def find_weights(model: Model, digest: str | None, places: Sequence[Path], what: str) -> Model:
    """The model with the weights of a digest, wherever they are now; of several places the first that has them.

    Args:
        model: as it was written.
        digest: of ``convert.base.digest_of``; None where it is unknown: the first place where something is will do.
        places: where they may be, likeliest first.
        what: was trained on them, for an error.

    Raises:
        UserError: where they are nowhere, with the digest of whatever is in their place.
    """
    if model.is_local or (model.is_fetched and model.weights != "timm"):  # which may have been a folder's name
        there = [place for place in places if os.path.exists(place)]
    elif model.weights == "timm" and digest is not None and _from_hub(model) is None:
        there = []
    else:
        return model
    if digest is None and there:
        return _at(model, there[0])
    others: dict[Path, str] = {}
    for place in there:
        if (found := weights_digest(place, model)) == digest:
            return _at(model, place)
        others[place] = f"has {found[:12]}" if found else "cannot be read as its weights"
    for place in _elsewhere(model, digest, places):
        if weights_digest(place, model) == digest:
            return _at(model, place)
    if not model.is_local:
        return model  # the hub may have them
    if not others:
        raise UserError(
            f"{what} was trained on {model.weights}, which is not there: put it beside {what}, or say where those "
            f"weights are, of the model {model.name}",
            arguments=("weights",),
        )
    seen = "".join(f"\n  {place} {says}" for place, says in others.items())
    raise UserError(
        f"{what} was trained on weights {str(digest)[:12]} ({model.weights}), which are not there: say where they are"
        f"{seen}",
        arguments=("weights",),
    )


def given(model: Model, weights: str | None) -> Model:
    """The model with the weights that a user names in place of its own; of the hub's, under their whole name."""
    if weights is None:
        return model
    name = find(model.name).name if model.weights == "timm" else model.name
    return model.model_copy(update={"weights": weights, "name": name})


def weights_digest(path: Path, model: Model) -> str | None:
    """The digest of the weights at a path, a run or an adapter included; None where none of the model can be read."""
    try:
        if (place := adapter_in(path)) is not None:
            return merged_digest(read_adapter(place))
        if (digest := known.digest_at(path)) is not None and not os.path.isdir(path):
            return digest
        checkpoint = open_weights(_at(model, path))  # a folder says of what model it is, which may be another one
    except (UserError, OSError):  # a folder that may not be looked into, among others
        return None
    if digest is not None or checkpoint.tensors is None:
        return digest
    digest = digest_of(checkpoint.tensors)
    known.remember(path, digest)
    return digest


def merged_digest(adapter: Adapter) -> str:
    """What tells an adapter merged into its base from all other weights, its head left out.

    It is made of what is merged, since two backends that merge round differently. Options at their defaults are left
    out, so that one which is new changes no digest.
    """
    options: list[Section | None] = [adapter.method, adapter.quantize, adapter.qat]
    facts = [
        adapter.base_sha256,
        adapter.method.name,
        *(None if section is None else section.model_dump(mode="json", exclude_defaults=True) for section in options),
    ]
    digest = hashlib.sha256(canonical(facts).encode())
    for name in sorted(name for name in adapter.tensors if not is_head(name)):
        tensor = exact(adapter.tensors[name])
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _at(model: Model, place: Path) -> Model:
    return given(model, os.fspath(place))


def _elsewhere(model: Model, digest: str | None, places: Sequence[Path]) -> Iterator[Path]:
    """Where weights of the digest were read before; the hub's; and files and runs of any name beside the others."""
    if digest is None:
        return
    yield from known.places_of(digest)
    if (file := _from_hub(model)) is not None:
        yield file
    for folder in dict.fromkeys(place.parent for place in places):
        entries = _entries(folder)
        yield from [file for file in entries if file.suffix in SUFFIXES and os.path.isfile(file)][:MOST_TRIED]
        yield from [run for run in entries if os.path.isdir(run) and adapter_in(run) is not None][:MOST_TRIED]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none, or it may not be looked at."""
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError):
        return []


def _from_hub(model: Model) -> Path | None:
    """The hub's weights of the model's name, where they are here already."""
    try:
        entry = find(model.name)
    except UserError:
        return None
    if entry.hub_id is None or entry.hub_filename is None:
        return None
    return hub.cached(entry.hub_id, entry.hub_filename)
