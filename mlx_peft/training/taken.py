"""A run takes its folder: a new one, its own again, or that of a run which it replaces, or sets aside."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlx_peft.config.files import load
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS, write_with_sums
from mlx_peft.core.writing import disk_errors, new_folder
from mlx_peft.training import unreadable
from mlx_peft.training.bases import chain
from mlx_peft.training.places import Found, read_found, written
from mlx_peft.training.prepare import Prepared
from mlx_peft.training.progress import Progress
from mlx_peft.training.run import RunFolder, json_bytes

Names = Mapping[str, "Names | None"]
"""Patterns of names: of files with None, of folders with what may be in them."""

EPOCHS = r"epochs-\d+(-\d+)?"
ADAPTER: Names = {r"adapter_config\.json|adapter_model\.safetensors|SHA256SUMS\.txt": None}
KEPT: Names = {
    r"config\.yaml|metrics\.jsonl|result\.json|env\.json|predictions\.npz|SHA256SUMS\.txt": None,
    "adapter": ADAPTER,
}
OWN: Names = {
    **KEPT,
    r"unreadable\.jsonl|output-lost\.txt|ranks\.(png|pdf)|events\.out\.tfevents\..*": None,
    "checkpoint": {r"(last|previous|best|previous-best)\.safetensors": None},
    "evaluation": {r"\w+\.json|\w+-(reliability|classes|confusion)\.(png|pdf)|\w+-confusion\.csv": None},
    EPOCHS: KEPT,
}
"""All that a run has in its folder."""

HIDDEN = re.compile(rf"\.lock|\..+\.tmp|\.DS_Store|\.(adapter|{EPOCHS})\..+\.partial")
"""What is hidden there and may go: a run's lock, what a killed process left half-written, and a Mac's own."""


def begin(run: Prepared, folder: RunFolder, progress: Progress, place: RunFolder | None = None) -> None:
    """Writes what a run is, and where: its configuration, its environment, the images that could not be read.

    ``place`` is where the folder will lie, if it is not there yet.
    """
    found = Found.now((place or folder).path, run.here, run.base.sha256, run.start)
    texts = {folder.config: written(run.experiment, found).encode(), folder.environment: json_bytes(run.environment)}
    write_with_sums(folder.path, {path.name: content for path, content in texts.items()})
    if run.whole.unread is not None:
        unreadable.write_down(run.whole.unread, folder.path, progress.note)


def replace(folder: RunFolder, run: Prepared, progress: Progress) -> None:
    """Puts a run that begins in the place of the one that is there, which is gone only once the new one has its files.

    Raises UserError where another process has the folder, or it holds anything but a run.
    """
    if not folder.config.exists():
        return
    check_apart(folder, run)
    with folder.locked():
        check_replaceable(folder)
        with new_folder(folder.path, replaceable=[entry.name for entry in folder.path.iterdir()]) as new:
            begin(run, RunFolder(new), progress, place=folder)


def check_replaceable(folder: RunFolder) -> None:
    """Raises UserError where a folder that is to be replaced holds anything but what a run writes."""
    try:
        load(folder.config)
    except UserError as error:
        raise UserError(
            f"{folder.path} is not replaced: {folder.config.name} there is no run's ({error})", arguments=("out",)
        ) from None
    with disk_errors(folder.path):
        others = list(strange(folder.path, OWN))
    if others:
        names = ", ".join(str(path.relative_to(folder.path)) for path in others[:5])
        raise UserError(
            f"{folder.path} is not replaced: besides a run it holds {names}; move that elsewhere, or choose another "
            "folder",
            arguments=("out",),
        )


def strange(folder: Path, own: Names) -> Iterator[Path]:
    """What is in a folder, or in the folders in it, and is none of its own."""
    for entry in sorted(folder.iterdir()):
        if HIDDEN.fullmatch(entry.name):
            continue
        inside = [inside for name, inside in own.items() if re.fullmatch(name, entry.name)]
        if not inside or entry.is_dir() != (inside[0] is not None):
            yield entry
        elif inside[0] is not None:
            yield from strange(entry, inside[0])


def is_of_a_run(file: Path) -> bool:
    """Whether a file is one of those that a run has in the folder in which it lies."""
    whole = file.resolve()
    return any(RunFolder(folder).config.exists() and _has(OWN, whole.relative_to(folder)) for folder in whole.parents)


def _has(own: Names, file: Path) -> bool:
    """Whether such names lead to a file."""
    inside: Names | None = own
    for part in file.parts:
        ways = [way for name, way in (inside or {}).items() if re.fullmatch(name, part)]
        if not ways:
            return False
        inside = ways[0]
    return inside is None


def check_apart(folder: RunFolder, run: Prepared) -> None:
    """Raises UserError where the run to be replaced holds what the new one is made of."""
    needed = [("data.root is", str(run.here.data.root))]
    weights = list(chain(run.here.model))
    needed += [("model.weights is", path) for path in weights[:1]]
    needed += [("model.weights stands on", path) for path in weights[1:]]
    needed += [("method.from is", run.start.adapter)] if run.start else []
    for what, path in needed:
        if lies_in(path, folder.path):
            raise UserError(
                f"{folder.path} is not replaced: {what} {path}, which lies in it; choose another folder",
                arguments=("out",),
            )


def lies_in(path: str, folder: Path) -> bool:
    """Whether a path, or what it leads to by links, lies in a folder."""
    whole = os.path.abspath(os.path.expanduser(path))
    ways = ((whole, os.path.abspath(folder)), (os.path.realpath(whole), os.path.realpath(folder)))
    return any(Path(place).is_relative_to(around) for place, around in ways)


def set_aside(folder: RunFolder) -> None:
    """Copies a finished run, all but its checkpoints, into ``epochs-N`` in its folder; then it is unfinished."""
    experiment, found = folder.read_config(), read_found(folder)
    name = f"epochs-{experiment.train.epochs}"
    places = [folder.path / name, *(folder.path / f"{name}-{number}" for number in range(2, 1000))]
    target = RunFolder(next(place for place in places if not place.exists()))
    with new_folder(target.path) as new, disk_errors(target.path):
        for file in (SUMS, *folder.texts):
            if (folder.path / file).exists():
                shutil.copy2(folder.path / file, new / file)
        if found is not None:
            moved = found.model_copy(update={"run": str(target.path.absolute())})
            write_with_sums(new, {folder.config.name: written(experiment, moved).encode()})
        shutil.copytree(folder.adapter, new / folder.adapter.name)
    with disk_errors(folder.path):
        folder.result.unlink()
        folder.predictions.unlink(missing_ok=True)
        shutil.rmtree(folder.adapter)
        (folder.path / SUMS).unlink(missing_ok=True)
