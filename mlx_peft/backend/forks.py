"""A process that was forked after MLX had computed cannot compute with it: the threads for that were not forked.

It would wait for them for ever, so it is told instead. One that uses no model is not disturbed, and neither is one that
was forked before MLX computed. ``torch_ref`` has no such limit: see ``torch_ref.models``.
"""

from __future__ import annotations

import os

from mlx_peft.core.errors import UserError

_owner: int | None = None
"""The id of the process that computed first; a process that was forked finds its parent's id here."""


def check() -> None:
    """To be called before anything is computed. Raises UserError in a process that was forked after MLX was used."""
    global _owner
    process = os.getpid()
    if _owner is None:
        _owner = process
    if process != _owner:
        raise UserError(
            "this process was forked from one that has computed with MLX, whose threads it does not have: it would "
            "wait for them for ever. Start it afresh, with multiprocessing.get_context('spawn'), or fork before the "
            "first model is made"
        )
