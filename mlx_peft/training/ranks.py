"""What the processes of a run have alike: they begin as the first one stands, which alone reads what the run has on the
disk, and know what each of them has met."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

from pydantic import TypeAdapter
from safetensors.numpy import load

from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.world import World, packed, together
from mlx_peft.data.unread import Broken, Unread
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.prepare import Prepared
from mlx_peft.training.progress import Progress

ALIKE = {"base_sha256": "weights", "splits": "images", "run_id": "settings"}
"""What is the same in all processes, by its name in a run's identity, and in words; the last has the others in it."""


def agreed(world: World, run: Prepared, progress: Progress) -> Prepared:
    """The run as all processes can have it: they keep the features of a frozen prefix where each has room for them.

    Raises what ``together`` raises where one has another run: images and weights lie where each process sees them.
    """
    if world.size == 1:
        return run
    with together(world):
        own = run.identity
        first = json.loads(world.tell(json.dumps(own).encode()))
        if differing := [what for name, what in ALIKE.items() if first[name] != own[name]]:
            raise UserError(f"this process has other {differing[0]} than the first one")
    if not world.any(run.cache is None) or run.cache is None:
        return run
    progress.note("another process has no room for the features: they are computed in every epoch")
    return replace(run, cache=None)


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
    return load(world.tell(b"" if world.rank else packed(tensors())))


def heard_by_all(world: World, unread: Unread | None) -> None:
    """Has each process know of the images that any could not read: of a split that is shared out each reads a part."""
    if world.size == 1 or unread is None:
        return
    for content in world.gather(json.dumps([asdict(broken) for broken in unread.found.values()]).encode()):
        for broken in json.loads(content):
            unread.add(Broken(**broken))
