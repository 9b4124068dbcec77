"""Finished runs measured again: on the very splits that they had, or on other images of the same classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlx_peft.artifacts.images import Images, SplitName, fitted, run_images
from mlx_peft.artifacts.load import Loaded, Tokens, load_model, load_run
from mlx_peft.data import Split, eval_batches
from mlx_peft.data.leftout import unread_notes
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.tasks.metrics import Evaluation, Metrics
from mlx_peft.training.evaluate import answers, examined
from mlx_peft.training.predictions import Predictions, Recorder


@dataclass(frozen=True)
class Examined:
    """What came of it.

    Attributes:
        splits: the images of each split that was measured.
        found: by split.
        said: of each image, by split.
        loaded: what was measured, with notes on it and on the images.
    """

    images: Images
    splits: dict[str, Split]
    found: dict[str, Evaluation]
    said: dict[str, Predictions]
    loaded: Loaded


def evaluate_run(
    path: Path,
    split: SplitName = "test",
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
    weights: str | None = None,
    overrides: Iterable[str] = (),
    tokens: Tokens = "own",
) -> Metrics:
    """The metrics of a finished run on one of its splits; of a model's folder in its place, where one is named.

    ``weights`` says where those of its base are now, and ``overrides`` where its images are, or name others. ``tokens``
    are those that it was trained with, unless another reducer is named, or None for none.

    Raises UserError where the data set has no such split, or where it is not the split that the run had: images that
    were trained on might be in it.
    """
    done = examine_splits(path, [split], backend, model=model, weights=weights, overrides=overrides, tokens=tokens)
    return done.found[split].metrics


def examine_splits(
    path: Path,
    splits: Sequence[SplitName | None],
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
    weights: str | None = None,
    overrides: Iterable[str] = (),
    tokens: Tokens = "own",
    watch: Watch = unwatched,
) -> Examined:
    """As ``evaluate_run``, on several splits, with what the metrics are made of; a split of None is the one for
    evaluation."""
    images, experiment = run_images(path, overrides, watch)
    wanted = {split.name: split for split in map(images.split, splits)}
    if model is None:
        loaded = load_run(path, backend, weights=weights, tokens=tokens)
    else:
        loaded = load_model(model, backend or experiment.backend, tokens)
    notes = [*images.notes]
    for name, split in wanted.items():
        wanted[name], more = fitted(split, images, loaded, str(model or "the run"))
        notes += more
    size = min(images.data.batch_size, max((split.size for split in wanted.values()), default=1))
    loaded.check_room(size)
    found: dict[str, Evaluation] = {}
    said: dict[str, Predictions] = {}
    for name, split in wanted.items():
        batches = eval_batches(split, images.data, loaded.preprocessing, loaded.image_size)
        recorder = Recorder(split)
        found[name] = examined(answers(loaded.model, batches, recorder), loaded.task, len(loaded.classes))
        said[name] = recorder.predictions
    notes += unread_notes(images.dataset.unread)
    return Examined(images, wanted, found, said, replace(loaded, notes=(*loaded.notes, *dict.fromkeys(notes))))
