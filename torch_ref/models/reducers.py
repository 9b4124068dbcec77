"""The registry that finds a reducer by its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_peft.config.tokens import ReducerConfig
from torch_ref.models.evit import evit
from torch_ref.models.reducer import Reducer
from torch_ref.models.skipvit import skipvit
from torch_ref.models.tome import tome

REDUCERS: dict[str, Callable[[Any, int], dict[int, Reducer]]] = {"tome": tome, "evit": evit, "skipvit": skipvit}
"""The registry of reducers by their names: a configuration and a depth to what stands in which blocks."""


def reducers(config: ReducerConfig | None, depth: int) -> dict[int, Reducer]:
    """What stands between attention and MLP, by the block's number; where nothing does, the identity.

    None: nowhere.
    """
    return {} if config is None else REDUCERS[config.name](config, depth)
