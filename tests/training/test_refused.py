"""A run that may not go on is left as it was, to the last byte: it can go on with what it began with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training.resuming import begun

from mlx_peft.config.files import load
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.checkpoint import load_checkpoint, save_checkpoint
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(experiment: Experiment, **options: Any) -> Experiment:
    """With images in another folder, which a run that goes on writes into its configuration."""
    data = experiment.data.model_copy(update={"root": Path("elsewhere")})
    return experiment.model_copy(update={"data": data, "train": experiment.train.model_copy(update=options)})


def other_images(engine: SimpleNamespace, folder: RunFolder) -> None:
    dataset = engine.dataset()
    engine.install(replace(dataset, train=dataset.train.take(np.arange(39), "train")))


def facts(change: Callable[[dict[str, Any]], object]) -> Callable[[SimpleNamespace, RunFolder], None]:
    """Checkpoints that say something else, with the right digest of it."""

    def rewrite(engine: SimpleNamespace, folder: RunFolder) -> None:
        for path in (folder.last, folder.previous):
            tensors, there = load_checkpoint(path)
            change(there)
            save_checkpoint(path, tensors, **there)

    return rewrite


def other_parameters(engine: SimpleNamespace, folder: RunFolder) -> None:
    for path in (folder.last, folder.previous):
        tensors, there = load_checkpoint(path)
        save_checkpoint(path, tensors | {"count": np.array(1)}, **there)


def damaged(engine: SimpleNamespace, folder: RunFolder) -> None:
    for path in (folder.last, folder.previous):
        path.write_bytes(path.read_bytes()[:-1])


REFUSALS = {
    "images": (other_images, r"splits\.train\.size: 44 then, 39 now"),
    "weights": (facts(lambda there: there["identity"].update(base_sha256="ab")), "base_sha256: ab then"),
    "settings": (facts(lambda there: there["settings"].update({"seed": 9})), "seed: 9 then, 0 now"),
    "position": (facts(lambda there: there["position"].update(images=3, batch=0)), "3 images came in 0 batches"),
    "parameters": (other_parameters, "its parameters are of step 1"),
    "damage": (damaged, "The run cannot go on"),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("kind", list(REFUSALS))
def test_a_run_that_is_refused_stays_as_it_was(engine: SimpleNamespace, kind: str, finished: bool) -> None:
    folder = RunFolder(engine.out)
    if finished:
        train(engine.experiment(), engine.out)
    else:
        begun(engine)
    change, message = REFUSALS[kind]
    change(engine, folder)
    before = contents(engine.out)
    with pytest.raises(UserError, match=message):
        train(elsewhere(load(folder.config), **({"epochs": 5} if finished else {})), engine.out, resume=True)
    assert contents(engine.out) == before


@pytest.mark.parametrize("finished", [True, False])
def test_after_a_refusal_a_run_goes_on_with_its_own_images(engine: SimpleNamespace, finished: bool) -> None:
    if finished:
        train(engine.experiment(), engine.out)
    else:
        begun(engine)
    other_images(engine, RunFolder(engine.out))
    longer = {"epochs": 5} if finished else {}
    with pytest.raises(UserError, match="its data or weights have changed"):
        train(elsewhere(engine.experiment(), **longer), engine.out, resume=True)
    engine.install(engine.dataset())
    own = load(RunFolder(engine.out).config)
    assert own.data.root == engine.experiment().data.root
    assert train(elsewhere(own, **longer), engine.out, resume=True)["status"] == "finished"
