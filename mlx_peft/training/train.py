"""One training run from its configuration to its result."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.adapters.peft import write_adapter
from mlx_peft.config.schema import Experiment
from mlx_peft.core.sums import write_with_sums
from mlx_peft.core.world import first_tells, together
from mlx_peft.data import eval_batches, steps_per_epoch
from mlx_peft.data.leftout import unread_notes
from mlx_peft.protocols.loading import backend_of
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.training import outcome
from mlx_peft.training.allocation import check_longer
from mlx_peft.training.checkpoint import Position
from mlx_peft.training.evaluate import answers_of_all, examined
from mlx_peft.training.feed import Feed, feed
from mlx_peft.training.fit import fit
from mlx_peft.training.here import located
from mlx_peft.training.predictions import Predictions, Recorder, encoded
from mlx_peft.training.prefix import cached_feed
from mlx_peft.training.prepare import Prepared, prepare
from mlx_peft.training.progress import Progress, Silent
from mlx_peft.training.ranks import agreed, as_the_first, heard_by_all, of_the_first
from mlx_peft.training.resume import Diverged, best, must_go_on, stands
from mlx_peft.training.run import CHANGEABLE, RunFolder, is_untested, json_bytes, longer
from mlx_peft.training.stop import Interrupted, Stopped, StopSignal, resumable
from mlx_peft.training.taken import begin, check_replaceable, replace, set_aside


def train(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    weights: str | None = None,
    beside: Path | None = None,
    progress: Progress | None = None,
    test: bool = True,
) -> dict[str, Any]:
    """Trains, evaluates and saves an experiment in the folder ``out``; returns the contents of its ``result.json``.

    ``resume`` goes on from the folder's checkpoint, starts where there is none yet, and returns the result of a run
    that is finished; where a finished one is to have more epochs, what it was is kept in ``epochs-N`` and it goes on.
    ``overwrite`` puts the run in the place of another, once all of it was prepared. ``weights`` says where those of a
    run that goes on are now, and ``beside`` a folder that paths of the experiment may be relative to. The epoch is
    selected on the validation split, or is the last one where there is none; the test split is read once, after that.
    Without ``test`` no image of it is evaluated, and the result says that the run is ``untested``: resumed with it,
    such a run is tested where it ended.
    Of several processes (see ``core.world``) all call this alike; the first one writes, and has the result.

    Raises UserError, before ``out`` is touched, for all that can be known before training; Interrupted, with a
    checkpoint written, on SIGINT, SIGTERM and SIGHUP; SystemExit where another process tells why a run of several ends.
    """
    progress = progress or Silent()
    folder = RunFolder(out)
    world = backend_of(experiment).world()
    first = world.rank == 0
    with first_tells(world, Diverged):
        with together(world):
            before = claimed(folder, experiment, resume, overwrite, progress, test) if first else None
        if world.any(before is not None and not longer(folder.read_config(), experiment)):
            return before or {}
        with together(world):
            here = located(experiment, folder, resume=resume, weights=weights, beside=beside)
            run = prepare(experiment, progress, here)
        run = agreed(world, run, progress)
        with together(world):
            if overwrite and first:
                replace(folder, run, progress)
        with folder.locked() if first else nullcontext(), resumable(folder), StopSignal(world).listening() as stop:
            images = batches(run, stop)
            with together(world):
                position = Position()
                if first:
                    folder.check(experiment, resume=resume or overwrite, changeable=CHANGEABLE)
                    position = stands(folder, run.trainer, experiment, images.steps, run.identity, progress)
                    if before is not None:  # nothing that a run may not go on with is found from here on
                        set_aside(folder)
                    begin(run, folder, progress)
            position = as_the_first(world, run.trainer, position)
            position = fit(
                run.trainer, experiment, images, folder, position, identity=run.identity, progress=progress, stop=stop
            )
            result, notes = finished(run, images, position, folder, progress, stop, test)
    for note in (*notes, *unread_notes(run.whole.unread)):
        progress.note(note)
    return result


def finished(
    run: Prepared,
    images: Feed,
    position: Position,
    folder: RunFolder,
    progress: Progress,
    stop: StopSignal,
    test: bool,
) -> tuple[dict[str, Any], list[str]]:
    """The selected epoch's adapter, written and, if asked for, tested, and what is to be said of it; the first process
    alone writes, and has a result."""
    world, model = stop.world, run.trainer.model
    first = world.rank == 0
    notes: list[str] = []
    with together(world):
        if first and run.dataset.val is not None:
            model.load_adapter(best(folder, position))
        if first:
            notes = write_adapter(folder.adapter, outcome.adapter(run))
    if world.size > 1:
        model.load_adapter(of_the_first(world, model.adapter))
    said = validated(run, images, position, folder, progress, stop)
    seen = tested(run, position, folder, progress, stop) if test else None
    if not first:
        return {}, notes
    result = outcome.result(run, position, None if seen is None else seen.evaluation, folder)
    predictions = encoded(said | ({} if seen is None else {"test": seen.predictions}))
    files = {folder.predictions.name: predictions, folder.result.name: json_bytes(result)}
    write_with_sums(folder.path, files, there=[folder.metrics.name])
    return result, notes


def claimed(
    folder: RunFolder, experiment: Experiment, resume: bool, overwrite: bool, progress: Progress, test: bool
) -> dict[str, Any] | None:
    """The result of a run that is finished and to go on; None of one that is not, or has yet to be tested. Raises
    UserError where the folder is another's, or what is there cannot go on."""
    if overwrite and folder.config.exists():
        check_replaceable(folder)
    else:
        folder.check(experiment, resume=resume, changeable=CHANGEABLE)
    finished = folder.read_result() if resume else None
    if resume and folder.config.exists():
        check_longer(experiment.method, folder.read_config().train.epochs, experiment.train.epochs)
    if finished is None or (test and is_untested(finished) and not longer(folder.read_config(), experiment)):
        return None
    if longer(folder.read_config(), experiment):
        must_go_on(folder, experiment.train)
    else:
        for path in (folder.metrics, folder.environment):
            folder.check_sum(path)
        progress.note(f"{folder.path} is finished: nothing is left to do")
    return finished


def batches(run: Prepared, stop: StopSignal) -> Feed:
    """What the run trains on: images, or the features of a frozen prefix in their place."""
    images = feed(run.experiment, run.dataset, run.base, stop.world)
    if run.cache is None:
        return images
    data, preprocessing, size = run.experiment.data, run.base.preprocessing, run.base.architecture.img_size
    return cached_feed(
        images,
        run.trainer.model,
        run.experiment,
        run.dataset,
        lambda split: eval_batches(split, data, preprocessing, size, stop.world),
        stop.check,
    )


def validated(
    run: Prepared, images: Feed, position: Position, folder: RunFolder, progress: Progress, stop: StopSignal
) -> dict[str, Predictions]:
    """What the selected epoch's model says of the validation split; nothing where there is none.

    Raises Interrupted where ``stop`` is requested.
    """
    if images.val is None or run.dataset.val is None:
        return {}
    progress.evaluating("val")
    recorder = Recorder(run.dataset.val)
    try:
        for _ in answers_of_all(run.trainer.model, images.val(), images.val_steps, stop.world, stop.check, recorder):
            pass
    except Stopped:
        raise Interrupted(folder, position.step, position.step) from None
    return {"val": recorder.predictions}


@dataclass(frozen=True, eq=False)
class Tested:
    """What came of the look at the test split."""

    evaluation: Evaluation
    predictions: Predictions


def tested(run: Prepared, position: Position, folder: RunFolder, progress: Progress, stop: StopSignal) -> Tested | None:
    """The one look at the test split; None where there is none. Raises Interrupted where ``stop`` is requested."""
    if run.whole.test is None:
        return None
    progress.evaluating("test")
    base, data, world = run.base, run.experiment.data, stop.world
    images = eval_batches(run.whole.test, data, base.preprocessing, base.architecture.img_size, world)
    count = steps_per_epoch(run.whole.test, data.batch_size)
    recorder = Recorder(run.whole.test)
    try:
        answers = answers_of_all(run.trainer.model, images, count, world, stop.check, recorder)
        evaluation = examined(answers, run.dataset.task, len(run.dataset.classes))
    except Stopped:
        raise Interrupted(folder, position.step, position.step) from None
    heard_by_all(world, run.whole.unread)
    return Tested(evaluation, recorder.predictions)
