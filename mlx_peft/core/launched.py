"""What a launcher says of the process that it has started, before that one has joined the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_peft.core.errors import UserError, shown

OF_ONE_MACHINE = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
"""What launchers call a process's number among those of its machine; ``mlx.launch`` gives it the hosts of all."""

BESIDE = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
"""And how many processes they started on it."""


class Lost(UserError):
    """Another process of the run has ended, or does not answer."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"another process of the run has ended, or does not answer ({reason})")


def launched() -> tuple[int, int]:
    """This process's rank and how many there are, as ``torchrun`` says them; rank 0 of one where nobody does.

    Raises UserError where only a part of it is said, or what is said is no number.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    told("MASTER_PORT", 0)
    rank, size = told("RANK", 0), told("WORLD_SIZE", 1)
    missing = [name for name in names if name not in found]
    if missing and size > 1:
        raise UserError(
            f"WORLD_SIZE says that there are {size} processes, and nobody set {', '.join(missing)}: start them with "
            "torchrun, or leave WORLD_SIZE out"
        )
    if rank >= size:
        raise UserError(f"RANK is {rank}, and should be below WORLD_SIZE, {size}: ranks are counted from 0 on")
    return rank, size


def told(name: str, default: int) -> int:
    """A number that torchrun sets in the environment, or the default. Raises UserError where it is none."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{name} should be a number, as torchrun sets it, not {shown(text)}")
    return int(text)


@contextmanager
def told_once(*kinds: type[Exception]) -> Iterator[None]:
    """Where processes read the same before they are joined, the first one of each machine raises the block's UserError,
    or another error of the ``kinds``.

    The others raise SystemExit. Lost is raised by all, since the first one may be the one that is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, *kinds)) and not (isinstance(error, Lost) or _first_here()):
            raise SystemExit(2) from None
        raise


def _first_here() -> bool:
    """Whether no launcher has started another process before this one, on this machine."""
    number = next((os.environ[name] for name in OF_ONE_MACHINE if name in os.environ), None)
    if number is not None:
        return number == "0"
    places, rank = _hosts()
    return places[rank] not in places[:rank]


def beside() -> int:
    """How many processes of the run a launcher has started on this machine, this one among them: they share it."""
    number = next((os.environ[name] for name in BESIDE if name in os.environ), None)
    if number is not None:
        return max(1, int(number)) if number.isdecimal() else 1
    places, rank = _hosts()
    return places.count(places[rank])


def _hosts() -> tuple[list[str], int]:
    """Where each process of ``mlx.launch`` runs, and which one this is; the only one of one where that is not said."""
    try:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_bytes())
        places = [addresses[0].rpartition(":")[0] for addresses in hosts]
        rank = int(os.environ["MLX_RANK"])
        return places, range(len(places))[rank]
    except (KeyError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return [""], 0
