"""What is to be served, opened: a folder of adapters, a run or an adapter alone, or a whole model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from mlx_peft.artifacts.answering import OneModel
from mlx_peft.artifacts.load import Loaded, load_any
from mlx_peft.artifacts.opening import bank_of_one, open_bank, open_bare
from mlx_peft.artifacts.place import is_model
from mlx_peft.core.errors import UserError
from mlx_peft.library.entries import must_be_name
from mlx_peft.protocols.loading import load_library
from mlx_peft.serve.known import Known, Served
from mlx_peft.serve.served import ServedBank, ServedModel, metrics_at
from mlx_peft.training.whereabouts import adapter_in

USUAL = "model"
"""The name of a model whose folder has none that a request could name."""


def opened(source: str, backend: Literal["mlx", "torch"], budget: int | None = None) -> tuple[Served, tuple[str, ...]]:
    """What is to be served, and notes for a person.

    Args:
        source: a folder of adapters or runs; a run or an adapter; a model's folder; a name of timm's, or a repository
            of the hub, for features alone.
        budget: bytes that adapters may have in memory together; None: half of what there is.

    Raises:
        UserError: it is none of these, or cannot be opened.
    """
    path = Path(os.path.expanduser(source))
    if not path.exists():
        asked, notes = open_bare(source, backend)
        return _model(asked, backend, path, None, 0), notes
    if is_model(path):
        return _loaded(load_any(path, backend), backend, path)
    if adapter_in(path) is not None:
        try:
            bank, notes = bank_of_one(path, name_of(path), backend, budget=budget)
        except UserError:  # it cannot be mixed, or not be opened at all
            return _loaded(load_any(path, backend), backend, path)
        return ServedBank(bank.bank, bank.base, None, bank), notes
    bank, notes = open_bank(path, (), backend, budget=budget)
    return ServedBank(bank.bank, bank.base, path, bank), notes


def name_of(path: Path) -> str:
    """What a folder is called in requests."""
    name = path.resolve().name
    try:
        must_be_name(name)
    except UserError:
        return USUAL
    return name


def _loaded(loaded: Loaded, backend: str, path: Path) -> tuple[Served, tuple[str, ...]]:
    method = None if is_model(path) else loaded.adapter.method.name
    place = adapter_in(path) or path
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    return _model(OneModel.of(loaded), backend, path, method, weights), loaded.notes


def _model(asked: OneModel, backend: str, path: Path, method: str | None, weights: int) -> ServedModel:
    program = load_library(backend).framework.program(asked.model.network, "float32")
    place = adapter_in(path) if path.is_dir() else None
    known = Known(
        name_of(path), asked.base.name, method, asked.classes, asked.task, asked.base.preprocessing,
        {} if place is None else metrics_at(place), weights,
    )  # fmt: skip
    return ServedModel(program, asked.base, known, asked)
