"""The registry that finds a reducer by its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models import dyt
from mlx_peft.backend.models.evit import evit
from mlx_peft.backend.models.reducer import Reducer
from mlx_peft.backend.models.skipvit import skipvit
from mlx_peft.backend.models.tome import tome
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.vit.architecture import Architecture

REDUCERS: dict[str, Callable[[Any, int, nn.Module], dict[int, Reducer]]] = {
    "tome": tome,
    "evit": evit,
    "skipvit": skipvit,
    "dyt": dyt.dyt,
}
"""The registry of reducers by their names: a configuration, a depth and what it trains to what is in which blocks."""

ROUTERS: dict[str, Callable[[Any, Architecture, int], nn.Module]] = {"dyt": dyt.initial}
"""Those that train something: a configuration, an architecture and a seed to what it is at the start."""

PENALTIES: dict[str, Callable[[Any, mx.array], mx.array]] = {"dyt": dyt.rate_loss}
"""Those that add to the loss: a configuration and ``Tokens.passed`` to what."""


def reducers(config: ReducerConfig | None, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """What stands between attention and MLP, by the block's number; where nothing does, the identity.

    None: nowhere. ``trained`` is what ``routers`` gave.
    """
    return {} if config is None else REDUCERS[config.name](config, depth, trained)


def routers(config: ReducerConfig | None, architecture: Architecture, seed: int) -> nn.Module:
    """What reducers train together, as it begins; empty for most."""
    return ROUTERS[config.name](config, architecture, seed) if config is not None and config.trains else nn.Module()


def penalty(config: ReducerConfig | None, passed: mx.array | None) -> mx.array | float:
    """What the loss gains in training of where the tokens went; 0 for most."""
    return 0.0 if config is None or passed is None else PENALTIES[config.name](config, passed)
