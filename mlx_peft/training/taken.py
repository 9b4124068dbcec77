"""A run takes its folder: a new one, its own again, or that of a run which it replaces, or sets aside."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from mlx_peft.config.files import load
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS, write_with_sums
from mlx_peft.core.writing import disk_errors, new_folder
from mlx_peft.training import unreadable
from mlx_peft.training.places import Found, read_found, written
from mlx_peft.training.prepare import Prepared
from mlx_peft.training.progress import Progress
from mlx_peft.training.run import RunFolder, json_bytes

OWN = re.compile(
    r"config\.yaml|metrics\.jsonl|result\.json|env\.json|SHA256SUMS\.txt|unreadable\.jsonl|output-lost\.txt|ranks\.png"
    r"|adapter|checkpoint|evaluation|epochs-\d+(-\d+)?|events\.out\.tfevents\..*|\..*"
)
"""The names of all that a run has in its folder, and of what is hidden."""


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
    strange = sorted(entry.name for entry in folder.path.iterdir() if not OWN.fullmatch(entry.name))
    if strange:
        raise UserError(
            f"{folder.path} is not replaced: besides a run it holds {', '.join(strange[:5])}; move that elsewhere, "
            "or choose another folder",
            arguments=("out",),
        )


def check_apart(folder: RunFolder, run: Prepared) -> None:
    """Raises UserError where the run to be replaced holds what the new one is made of."""
    needed = {"data.root": str(run.here.data.root)}
    needed |= {"model.weights": run.here.model.weights} if run.here.model.is_local else {}
    needed |= {"method.from": run.start.adapter} if run.start else {}
    for key, path in needed.items():
        if Path(os.path.abspath(os.path.expanduser(path))).is_relative_to(os.path.abspath(folder.path)):
            raise UserError(
                f"{folder.path} is not replaced: {key} is {path}, which lies in it; choose another folder",
                arguments=("out",),
            )


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
        shutil.rmtree(folder.adapter)
        (folder.path / SUMS).unlink(missing_ok=True)
