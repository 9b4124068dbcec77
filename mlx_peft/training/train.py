"""One training run from its configuration to its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.adapters.peft import write_adapter
from mlx_peft.config.files import dump
from mlx_peft.config.schema import Experiment
from mlx_peft.core.sums import write_with_sums
from mlx_peft.data import eval_batches
from mlx_peft.data.leftout import unread_notes
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.training import outcome, unreadable
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.evaluate import answers, examined
from mlx_peft.training.feed import Feed, feed
from mlx_peft.training.fit import fit
from mlx_peft.training.prefix import cached_feed
from mlx_peft.training.prepare import Prepared, prepare
from mlx_peft.training.progress import Progress, Silent
from mlx_peft.training.resume import best
from mlx_peft.training.run import CHANGEABLE, RunFolder, json_bytes
from mlx_peft.training.stop import Interrupted, Stopped, StopSignal, resumable


def train(
    experiment: Experiment, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains, evaluates and saves an experiment in the folder ``out``; returns the contents of its ``result.json``.

    ``resume`` goes on from the folder's checkpoint, starts where there is none yet, and returns the result of a run
    that is finished. The epoch is selected on the validation split, or is the last one where there is none; the test
    split is read once, after that. Raises UserError, before ``out`` is touched, for all that can be known before
    training; Interrupted, with a checkpoint written, on SIGINT, SIGTERM and SIGHUP.
    """
    progress = progress or Silent()
    folder = RunFolder(out)
    folder.check(experiment, resume=resume, changeable=CHANGEABLE)
    if (finished := folder.read_result()) is not None:
        for path in (folder.metrics, folder.environment):
            folder.check_sum(path)
        progress.note(f"{out} is finished: nothing is left to do")
        return finished
    run = prepare(experiment, progress)
    with folder.locked(), resumable(), StopSignal().listening() as stop:
        folder.check(experiment, resume=resume, changeable=CHANGEABLE)
        begin(run, folder, progress)
        position = fit(
            run.trainer, experiment, batches(run, stop), folder, identity=run.identity, progress=progress, stop=stop
        )
        if run.dataset.val is not None:
            run.trainer.model.load_adapter(best(folder, position))
        notes = write_adapter(folder.adapter, outcome.adapter(run))
        test = tested(run, position, folder, progress, stop)
        result = outcome.result(run, position, test, folder)
        write_with_sums(folder.path, {folder.result.name: json_bytes(result)}, there=[folder.metrics.name])
    for note in (*notes, *unread_notes(run.whole.unread)):
        progress.note(note)
    return result


def begin(run: Prepared, folder: RunFolder, progress: Progress) -> None:
    """Writes what a run is, and where: its configuration, its environment, the images that could not be read."""
    texts = {folder.config: dump(run.experiment).encode(), folder.environment: json_bytes(run.environment)}
    write_with_sums(folder.path, {path.name: content for path, content in texts.items()})
    if run.whole.unread is not None:
        unreadable.write_down(run.whole.unread, folder.path, progress.note)


def batches(run: Prepared, stop: StopSignal) -> Feed:
    """What the run trains on: images, or the features of a frozen prefix in their place."""
    images = feed(run.experiment, run.dataset, run.base)
    if run.cache is None:
        return images
    data, preprocessing, size = run.experiment.data, run.base.preprocessing, run.base.architecture.img_size
    return cached_feed(
        images,
        run.trainer.model,
        run.experiment,
        run.dataset,
        lambda split: stop.watch(eval_batches(split, data, preprocessing, size)),
    )


def tested(
    run: Prepared, position: Position, folder: RunFolder, progress: Progress, stop: StopSignal
) -> Evaluation | None:
    """The one look at the test split; None where there is none. Raises Interrupted where ``stop`` is requested."""
    if run.whole.test is None:
        return None
    progress.evaluating("test")
    base = run.base
    images = eval_batches(run.whole.test, run.experiment.data, base.preprocessing, base.architecture.img_size)
    try:
        return examined(answers(run.trainer.model, stop.watch(images)), run.dataset.task, len(run.dataset.classes))
    except Stopped:
        raise Interrupted(folder, position.step, position.step) from None
