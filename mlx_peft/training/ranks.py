"""The processes of a run stand where the first one stands: it alone reads what the run has on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from pydantic import TypeAdapter
from safetensors.numpy import load, save

from mlx_peft.core.border import Tensors
from mlx_peft.core.world import World
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.checkpoint import Position


def as_the_first(world: World, trainer: Trainer, position: Position) -> Position:
    """Sets each process's trainer to the first one's, and returns that one's position."""
    if world.size == 1:
        return position
    trainer.load_state(of_the_first(world, trainer.state))
    return TypeAdapter(Position).validate_json(world.tell(json.dumps(asdict(position)).encode()))


def of_the_first(world: World, tensors: Callable[[], Tensors]) -> Tensors:
    """The tensors that the first process has."""
    if world.size == 1:
        return tensors()
    return load(world.tell(b"" if world.rank else save(tensors())))
