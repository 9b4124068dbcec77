"""Where something is written: whether it may be, and whether there is room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_peft.checks.doctor.finding import Finding, fault, fine, homely, warning
from mlx_peft.core.memory import gib
from mlx_peft.core.own import user_folder

NONE, LITTLE = 2**28, 2**31
"""Bytes: with fewer than the first no model can be stored, with fewer than the second no large one."""


def places() -> dict[str, tuple[Path | None, str]]:
    """Folders by what they are for, and what to set to have another; None: there is none."""
    from huggingface_hub import constants

    try:
        own: Path | None = user_folder()
    except RuntimeError:
        own = None
    return {
        "weights": (Path(constants.HF_HUB_CACHE), "HF_HOME"),
        "cache": (own, "XDG_CACHE_HOME"),
        "temporary files": (Path(tempfile.gettempdir()), "TMPDIR"),
        "here": (Path.cwd(), ""),
    }


def writable() -> Iterator[Finding]:
    """Whether a file can be put into each, or into the folder in which it would be made."""
    for what, (folder, variable) in places().items():
        another = f"set {variable} to a folder that you may write to" if variable else "go to a folder of your own"
        if folder is None:
            yield warning(what, "there is no folder for it, since no home is known", another)
            continue
        try:
            with tempfile.TemporaryFile(dir=nearest(folder)):
                yield fine(what, homely(folder))
        except OSError as error:
            reason = error.strerror or str(error)
            yield fault(what, f"{homely(folder)} cannot be written to ({reason})", another)


def room() -> Iterator[Finding]:
    """How much room is left in each, once a disk."""
    seen: set[tuple[int, int]] = set()
    for what, (folder, variable) in places().items():
        if folder is None:
            continue
        around = nearest(folder)
        usage = shutil.disk_usage(around)
        if (key := (around.stat().st_dev, usage.total)) in seen:
            continue
        seen.add(key)
        said = f"{gib(usage.free)} free in {homely(around)} ({what})"
        advice = f"free some{f', or set {variable} to a folder of a larger disk' if variable else ''}; hf cache rm"
        if usage.free < NONE:
            yield fault("disk", said, advice)
        elif usage.free < LITTLE:
            yield warning("disk", said, advice)
        else:
            yield fine("disk", said)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest around it that is there: a file in its place too, in which nothing can be put."""
    return next(place for place in (folder, *folder.parents) if place.exists())
