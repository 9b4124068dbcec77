"""Where a run goes on: from the newest of its checkpoints that is whole and has by it all that it names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from convert.files import without_digest
from mlx_peft.config.schema import Experiment, Train
from mlx_peft.core.border import Tensors
from mlx_peft.core.bounds import LONGEST_PATH
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.text import counted
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.checkpoint import Change, Position, load_checkpoint, told
from mlx_peft.training.progress import Progress
from mlx_peft.training.run import CHANGEABLE, RunFolder, binding, differences, flatten
from mlx_peft.training.stop import again

VERSION = 1
"""The number of the form that a checkpoint's facts have; in the first versions they had none."""


class Facts(BaseModel):
    """What stands in a checkpoint beside the trainer's state."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[0, 1] = 0
    position: Position
    identity: dict[str, Any]
    """What must be the same when the run goes on: its images and its weights."""
    settings: dict[str, Any] | None = None
    """What of the experiment decides the outcome; None in checkpoints of earlier versions, whose identity says it."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that a run can go on from."""

    path: Path
    state: Tensors
    facts: Facts


def newest(folder: RunFolder, note: Callable[[str], None]) -> Found | None:
    """The last checkpoint, or the one before it where that is damaged, which is noted; None where there is none yet.

    Raises UserError, with all that is wrong, where there are checkpoints and none is whole.
    """
    faults = []
    for path in (folder.last, folder.previous):
        if not path.exists():
            continue
        try:
            found = read(folder, path)
        except UserError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            note(f"{fault}: the checkpoint before it is taken, of step {found.facts.position.step}")
        for text in without_digest(path):
            note(text)
        return found
    if faults:
        raise UserError("\n".join([*faults, "The run cannot go on: start again in another folder"]))
    return None


def read(folder: RunFolder, path: Path) -> Found:
    """A checkpoint with all that it needs. Raises UserError where it, or what it names, is damaged or missing."""
    state, raw = load_checkpoint(path)
    if raw.get("version", 0) not in range(VERSION + 1):
        raise UserError(f"{path} is of another version of mlx-peft: its facts have the number {raw['version']}")
    try:
        facts = Facts.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        faults = error.errors(include_url=False)[:5]
        words = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise UserError(f"{path} is not a checkpoint of this version: {words}") from error
    check_metrics(folder.metrics, facts.position)
    if facts.position.best:
        best(folder, facts.position)
    return Found(path, state, facts)


def check_metrics(path: Path, position: Position) -> None:
    """Raises UserError where ``metrics.jsonl`` does not begin with what it had when a checkpoint was written."""
    try:
        with open(path, "rb") as file:
            content = file.read(position.metrics_bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) < position.metrics_bytes:
        raise UserError(f"{path} is shorter than the checkpoint says: someone changed it")
    if position.metrics_sha256 not in ("", hashlib.sha256(content).hexdigest()):
        raise UserError(f"{path} was damaged or changed after it was written: the checkpoint has another digest of it")


def best(folder: RunFolder, position: Position) -> Tensors:
    """The parameters of the epoch that is selected. Raises UserError where no whole file has them."""
    faults = []
    for path in (folder.best, folder.previous_best):
        if path.exists():
            try:
                tensors, facts = load_checkpoint(path)
                if facts.get("epoch") == position.best_epoch:
                    return tensors
                faults.append(f"{path} is of another epoch than the selected one, {position.best_epoch}")
            except UserError as error:
                faults.append(str(error))
    raise UserError("\n".join(faults or [f"{folder.best} is missing, the parameters of epoch {position.best_epoch}"]))


def check_fits(found: Found, epochs: int, steps: int) -> None:
    """Raises UserError where a position is none that a run of so many epochs of so many steps can have."""
    here = found.facts.position
    faults = {
        f"of {counted(epochs, 'epoch')} {here.epoch} are done": here.epoch > epochs,
        f"of {counted(steps, 'batch')} of an epoch {here.batch} are done": here.batch > steps,
        f"epoch {here.best_epoch} is selected, and {here.epoch} are done": here.best_epoch > here.epoch,
        f"step {here.step} is after {counted(here.epoch, 'epoch')} of {counted(steps, 'step')} and {here.batch} more": (
            not here.changes and here.step != here.epoch * steps + here.batch
        ),
        f"{counted(here.images, 'image')} came in {counted(here.batch, 'batch')}": (here.images > 0 and not here.batch),
    }
    if wrong := [fault for fault, is_so in faults.items() if is_so]:
        raise UserError(f"{found.path} does not fit the run: it says that {'; '.join(wrong)}")


def ended(position: Position, train: Train) -> str | None:
    """Why a run trains no further, in words; None where it does."""
    waited, patience = position.epochs_without_improvement, train.early_stopping
    if patience is not None and waited >= patience:
        return f"it stopped early, after {counted(waited, 'epoch')} without improvement"
    if position.epoch >= train.epochs:
        return f"it has had all of its {counted(train.epochs, 'epoch')}"
    return None


def must_go_on(folder: RunFolder, train: Train) -> None:
    """Raises UserError where a finished run that is to be longer would end where it is."""
    found = newest(folder, lambda _: None)  # what is to be noted is noted when it goes on
    if found is None or (reason := ended(found.facts.position, train)) is None:
        return
    if train.early_stopping is None or found.facts.position.epochs_without_improvement < train.early_stopping:
        raise UserError(f"{folder.path} would not be longer: {reason}; raise train.epochs")
    raise UserError(
        f"{folder.path} would not be longer: {reason}, and train.early_stopping is {train.early_stopping}; raise that "
        f"above {found.facts.position.epochs_without_improvement} too, or set it to null"
    )


def accept(found: Found, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Change]:
    """What differs between a run and its checkpoint and may: see ``CHANGEABLE``.

    Where broken images are to be skipped from now on, each split is the same or has fewer images. One that has others
    and not fewer may have some that were trained on. Raises UserError that names what may not differ.
    """
    facts, step = found.facts, found.facts.position.step
    before, now = flatten(facts.identity), flatten(identity)
    changed = {} if facts.settings is None else differences(facts.settings, settings)
    if facts.settings is not None:  # they say more than their hash
        before, now = ({key: value for key, value in one.items() if key != "run_id"} for one in (before, now))
    moved = differences(before, now)
    skips = "data.unreadable" in changed and settings["data.unreadable"] == "skip"
    if skips and all(_lost(name, before, now) for name in ("train", "val", "test")):
        changed |= {key: moved.pop(key) for key in list(moved) if key.startswith("splits.")}
    refused = moved | {k: v for k, v in changed.items() if k not in CHANGEABLE and not k.startswith("splits.")}
    if refused:
        lines = [f"  {told(key)}: {told(old)} then, {told(new)} now" for key, (old, new) in refused.items()]
        raise UserError("the run cannot go on: its data or weights have changed since it began\n" + "\n".join(lines))
    return [Change(step, key, _kept(old), _kept(new)) for key, (old, new) in changed.items()]


def _kept(value: Any) -> Any:
    """A value as the run's record has it: as it is, or its beginning, where no configuration has one so long."""
    return value if len(json.dumps(value, default=str)) <= LONGEST_PATH else shown(value, LONGEST_PATH)


def _lost(split: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a split is the same, or has fewer images."""
    size, digest = f"splits.{split}.size", f"splits.{split}.sha256"
    return before.get(digest) == now.get(digest) or (before.get(size) or 0) > (now.get(size) or math.inf)


def stands(
    folder: RunFolder,
    trainer: Trainer,
    experiment: Experiment,
    steps: int,
    identity: Mapping[str, Any],
    progress: Progress,
) -> Position:
    """Where a run is, which the trainer is set to: at its newest checkpoint, or at the beginning. Writes nothing.

    Raises UserError where its checkpoints are damaged, or fit neither the experiment nor ``identity``.
    """
    found = newest(folder, progress.note)
    return Position() if found is None else take_up(found, trainer, experiment, steps, identity, progress)


def take_up(
    found: Found, trainer: Trainer, experiment: Experiment, steps: int, identity: Mapping[str, Any], progress: Progress
) -> Position:
    """Sets a trainer to a checkpoint, and returns the position; an epoch has so many ``steps``.

    Raises UserError where the checkpoint is of another run, or not one that this can have.
    """
    position = found.facts.position
    changes = accept(found, identity, binding(experiment))
    position.changes += changes
    check_fits(found, experiment.train.epochs, steps)
    try:
        trainer.load_state(found.state)
    except ValueError as error:
        raise UserError(f"{found.path} does not fit the run: {error}") from error
    if trainer.step != position.step:
        raise UserError(
            f"{found.path} does not fit the run: its parameters are of step {trainer.step}, its position is "
            f"{position.step}"
        )
    for change in changes:
        progress.note(f"{change}; the result will say so, and have another run_id")
    progress.note(f"going on after step {position.step}")
    return position


class Diverged(UserError):
    """Parameters or a loss that are not finite: there is nothing to keep."""


def diverged(what: str, position: Position, folder: RunFolder, train: Train) -> Diverged:
    """The error, with what may help, and the command that goes on from the last checkpoint where there is one."""
    where = f"at step {position.step} (epoch {position.epoch + 1})"
    text = f"{what} {where}: training diverged. {remedies(train)}"
    if not folder.last.exists():
        return Diverged(text)
    command = again(folder, "train.optimizer.lr=...")
    return Diverged(f"{text}. The last checkpoint is kept in {folder.last}", command=command)


def remedies(train: Train) -> str:
    """What may help a run that diverged: each is one of ``CHANGEABLE``."""
    key = "train.optimizer.lr"
    found = [f"a lower {key} (it was {train.optimizer.lr:g})"]
    if train.clip_norm is None:
        found.append("train.clip_norm=1")
    if train.precision != "float32":
        found.append("train.precision=float32")
    return f"Try {' or '.join(found)}"
