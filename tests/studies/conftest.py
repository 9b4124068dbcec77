"""Runs of a suite that take no time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_peft.config.study import Planned
from mlx_peft.studies import ready


@pytest.fixture
def dataset(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Puts a data set in the place of any; returns the list of the configurations that it was opened for."""

    def put(**splits: bool) -> list[Any]:
        opened: list[Any] = []
        found = engine.dataset(**splits)
        engine.install(found)
        monkeypatch.setattr(ready, "open_dataset", lambda data, watch: opened.append(data) or found)
        return opened

    put()
    return put


@pytest.fixture
def plan(engine: SimpleNamespace, dataset: Any) -> Callable[..., list[Planned]]:
    """Runs by name, each with its epochs."""
    return lambda **epochs: [Planned(name, engine.experiment(epochs=number)) for name, number in epochs.items()]
