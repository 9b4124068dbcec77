"""A run on a large set in which images turn out broken: it goes on, and says which it could not read."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed.threads import play
from PIL import Image

from mlx_peft.artifacts import examine, images
from mlx_peft.config.schema import Experiment
from mlx_peft.data import open_dataset, tried
from mlx_peft.training import prepare
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train


@pytest.fixture
def large(engine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment on 60 image files, as on a set too large to be tried."""
    for number in range(60):
        folder = tmp_path / "images" / ("blue", "green", "red")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    monkeypatch.setattr(tried, "CHECKED", 0)
    for module in (prepare, images):
        monkeypatch.setattr(module, "open_dataset", open_dataset)
    split = {"val": 0.2, "test": 0.2}
    return changed(engine.experiment(), name="folder", root=str(tmp_path / "images"), split=split)


def changed(experiment: Experiment, **data: Any) -> Experiment:
    values = experiment.model_dump()
    return Experiment.model_validate(values | {"data": values["data"] | data})


class Breaking(Silent):
    """Breaks an image of each split once training has begun, and stops the run after a step, if it is to."""

    def __init__(self, experiment: Experiment, stop: int | None = None, row: int = 1) -> None:
        dataset = open_dataset(experiment.data)
        self.images = {name: split.images.identifiers[row] for name, split in dataset.splits.items()}
        self.root, self.stop, self.notes = Path(experiment.data.root), stop, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, step: int, steps: int, epochs: int) -> None:
        for image in self.images.values():
            (self.root / image).write_bytes(b"nothing")

    def step(self, event: StepEvent) -> None:
        if event.step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_goes_on_and_says_what_it_could_not_read(large: Experiment, engine: SimpleNamespace) -> None:
    whole = train(large, engine.out.with_name("whole"))
    watching = Breaking(large)
    result = train(large, engine.out, progress=watching)
    assert "unreadable" not in whole
    assert (result["run_id"], result["splits"]) == (whole["run_id"], whole["splits"])
    for split in ("train", "val", "test"):
        found = result["unreadable"][split]
        assert (found["count"], [one["image"] for one in found["images"]]) == (1, [watching.images[split]])
        assert any(note.startswith(f"left out, unreadable in {split}: 1") for note in result["notes"])
        assert any(note.startswith(f"left out of its batch, {split}: ") for note in watching.notes)
    for split in ("val", "test"):
        assert result["metrics"][split]["count"] == result["splits"][split]["size"] - 1
    assert len((engine.out / "unreadable.jsonl").read_text().splitlines()) == 3
    done = examine.examine_splits(engine.out, ["test"])
    assert done.found["test"].metrics == result["metrics"]["test"]
    assert any("unreadable in test: 1" in note for note in done.loaded.notes)


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_a_run_is_resumed_on_the_same_images(large: Experiment, engine: SimpleNamespace, unreadable: str) -> None:
    expected = train(large, engine.out.with_name("whole"), progress=Breaking(large))
    with pytest.raises(Interrupted):
        train(large, engine.out, progress=Breaking(large, stop=3))
    result = train(changed(large, unreadable=unreadable), engine.out, resume=True)
    for key in ("metrics", "splits", "unreadable"):
        assert json.dumps(result[key]) == json.dumps(expected[key])


def test_what_any_of_several_processes_could_not_read_is_written_down(
    large: Experiment, engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one reads the last batch of a split that is evaluated."""
    watching = Breaking(large, row=-1)
    ends = play(monkeypatch, lambda world: train(large, engine.out, progress=None if world.rank else watching))
    for split in ("val", "test"):
        found = ends[0]["unreadable"][split]
        assert (found["count"], [one["image"] for one in found["images"]]) == (1, [watching.images[split]])
        assert ends[0]["metrics"][split]["count"] == ends[0]["splits"][split]["size"] - 1
        assert any(note.startswith(f"left out of its batch, {split}: ") for note in watching.notes)
    assert len((engine.out / "unreadable.jsonl").read_text().splitlines()) == 3
