"""A whole run: its files, its result, and what is refused before there is a folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.adapters.peft import read_adapter
from mlx_peft.config.files import load as load_config
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset
from mlx_peft.training import prepare
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.evaluate import evaluate
from mlx_peft.training.prepare import check_data
from mlx_peft.training.progress import Silent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train


def test_a_run_leaves_every_file_that_was_promised(engine: SimpleNamespace) -> None:
    result = train(engine.experiment(), engine.out)
    folder = RunFolder(engine.out)
    visible = {entry.name for entry in engine.out.iterdir() if not entry.name.startswith(".")}
    files = {"config.yaml", "metrics.jsonl", "result.json", "env.json", "predictions.npz", "SHA256SUMS.txt"}
    assert visible == {*files, "adapter", "checkpoint"}
    assert load_config(folder.config) == engine.experiment()
    assert json.loads(folder.result.read_text()) == result
    assert json.loads(folder.environment.read_text()) == result["environment"]


def test_the_result_has_the_promised_fields(engine: SimpleNamespace) -> None:
    result = train(engine.experiment(), engine.out)
    assert {key: set(value) if isinstance(value, dict) else None for key, value in result.items()} == {
        **dict.fromkeys(("run_id", "configuration_id", "status", "backend", "model", "method", "dataset", "seed")),
        **dict.fromkeys(("cached_features", "notes")),
        "metrics": {"val", "test"},
        "details": {"test"},
        "selected": {"epoch", "by"},
        "parameters": {"adapter", "head", "trainable", "total", "trainable_percent", "stored_bytes"},
        "time": {"train_seconds", "epoch_seconds", "images_per_second"},
        "memory": {"peak_bytes", "arrays_bytes", "process_bytes"},
        "head": {"initial", "reason"},
        "stored": {"base_bytes", "adapter_bytes", "total_bytes"},
        "splits": {"train", "val", "test"},
        "preprocessing": {"mean", "std", "interpolation", "crop_pct", "crop_mode"},
        "environment": set(result["environment"]),
    }
    assert (result["status"], result["backend"], result["method"]) == ("finished", "mlx", "linear")
    assert (result["dataset"], result["seed"]) == ("colours", 0)
    dataset = engine.dataset()
    assert result["splits"]["val"] == {"size": 21, "sha256": dataset.val.sha256}
    assert result["parameters"]["trainable"] == 27
    assert result["parameters"]["trainable_percent"] == 100 * 27 / result["parameters"]["total"]
    stored = engine.out / "adapter" / "adapter_model.safetensors"
    assert result["parameters"]["stored_bytes"] == stored.stat().st_size


def test_the_adapter_and_the_test_metrics_are_those_of_the_selected_epoch(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.1])
    monkeypatch.setattr("mlx_peft.training.fit.measured", lambda *_: {"top1": next(scores), "loss": 1.0, "count": 21})
    result = train(engine.experiment(), engine.out)
    assert result["selected"] == {"epoch": 2, "by": "val.top1"}
    assert result["metrics"]["val"]["top1"] == 0.9
    best = load_checkpoint(RunFolder(engine.out).best)[0]
    last = load_checkpoint(RunFolder(engine.out).last)[0]
    adapter = read_adapter(engine.out / "adapter")
    np.testing.assert_array_equal(adapter.tensors["head.weight"], best["head.weight"])
    assert (best["head.weight"] != last["head.weight"]).any()
    trainer = engine.trainer()
    trainer.model.load_adapter(adapter.tensors)
    dataset = engine.dataset()
    feed = engine.feed(engine.experiment(), Dataset("", dataset.classes, dataset.train, dataset.test, None))
    assert result["metrics"]["test"] == evaluate(trainer.model, feed.val(), dataset.task, 3)


def test_a_finished_run_is_not_run_again(engine: SimpleNamespace) -> None:
    first = train(engine.experiment(), engine.out)
    before = {path: path.stat().st_mtime_ns for path in engine.out.rglob("*")}
    assert train(engine.experiment(), engine.out, resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in engine.out.rglob("*")} == before
    with pytest.raises(UserError, match="a finished run"):
        train(engine.experiment(), engine.out)


def test_a_run_that_stops_during_the_test_goes_on_to_the_same_end(engine: SimpleNamespace, tmp_path: Path) -> None:
    expected = train(engine.experiment(), tmp_path / "whole")

    class Impatient(Silent):
        def evaluating(self, split: str) -> None:
            if split == "test":
                os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        train(engine.experiment(), engine.out, progress=Impatient())
    assert not RunFolder(engine.out).result.exists()
    found = train(engine.experiment(), engine.out, resume=True)
    assert (found["metrics"], found["run_id"]) == (expected["metrics"], expected["run_id"])


@pytest.mark.parametrize("part", ["open_dataset", "load_base", "backend_of"])
def test_what_is_refused_is_refused_before_there_is_a_folder(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("no such thing")

    monkeypatch.setattr(prepare, part, refuse)
    with pytest.raises(UserError, match="no such thing"):
        train(engine.experiment(), engine.out)
    assert not engine.out.exists()


def test_early_stopping_without_a_validation_split_is_refused(engine: SimpleNamespace) -> None:
    engine.install(engine.dataset(val=False))
    with pytest.raises(UserError, match=r"early_stopping needs a validation split.*data\.split\.val"):
        train(engine.experiment(early_stopping=2), engine.out)
    assert not engine.out.exists()


def test_a_disk_that_fills_up_leaves_a_run_that_goes_on(
    engine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(engine.experiment(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        calls = iter(range(100))
        fsync = os.fsync

        def filling(descriptor: int) -> None:
            if next(calls) >= 7:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        patch.setattr(os, "fsync", filling)
        with pytest.raises(UserError, match=r"no space left .* then continue the run"):
            train(engine.experiment(), engine.out)
    assert not list(engine.out.rglob("*.tmp"))
    assert 0 < load_checkpoint(RunFolder(engine.out).last)[1]["position"]["step"] < 18
    found = train(engine.experiment(), engine.out, resume=True)
    assert found["metrics"] == expected["metrics"]


def test_checkpoints_that_are_all_damaged_are_refused_on_a_resume(engine: SimpleNamespace) -> None:
    train(engine.experiment(), engine.out)
    folder = RunFolder(engine.out)
    folder.result.unlink()
    for path in (folder.last, folder.previous):
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"last\.safetensors is not a whole checkpoint"):
        train(engine.experiment(), engine.out, resume=True)


def test_equal_runs_are_equal_and_another_seed_is_another_run(engine: SimpleNamespace, tmp_path: Path) -> None:
    experiment = engine.experiment()
    first, second = (train(experiment, tmp_path / name) for name in ("first", "second"))
    third = train(experiment.model_copy(update={"seed": 1}), tmp_path / "third")
    assert first["run_id"] == second["run_id"] != third["run_id"]
    assert first["metrics"] == second["metrics"]
    steps = [
        [line.get("loss") for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("first", "second", "third")
    ]
    assert steps[0] == steps[1] != steps[2]


def test_a_step_is_divided_by_what_its_images_count_smoothed_or_not(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, float | None]] = []

    def step(self: Any, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None) -> float:
        seen.append((targets, weight))
        return 1.0

    monkeypatch.setattr(type(engine.trainer()), "train_step", step)
    plain = engine.experiment(epochs=1, label_smoothing=0.1)
    weighted = {"data": plain.data.model_copy(update={"class_weights": "balanced"})}
    train(plain.model_copy(update=weighted), engine.out)
    labels = engine.dataset().train.labels
    weights = len(labels) / (3 * np.bincount(labels))
    for targets, weight in seen:
        # Smoothing moves a tenth of each row to the mean of the weights; undone, what its class weighs is left.
        real = targets.any(axis=1)
        counted = ((targets[real].sum(axis=1) - 0.1 * weights.mean()) / 0.9).sum()
        assert weight == pytest.approx(counted, rel=1e-5)
    assert sum(weight for _, weight in seen) == pytest.approx(len(labels)), "1 an image on average"


def test_steps_beyond_what_seeds_keep_apart_are_refused_before_training(engine: SimpleNamespace) -> None:
    experiment = engine.experiment(epochs=10**6)
    check_data(experiment, engine.dataset())  # six steps in an epoch
    large = SimpleNamespace(train=SimpleNamespace(size=8 * 10**6), val=None)
    with pytest.raises(
        UserError, match=r"train\.epochs: 1,000,000 epochs would be 1,000,000,000,000 steps, and a run may"
    ):
        check_data(experiment, large)


@pytest.mark.parametrize("accumulate", [1, 8])
def test_a_batch_larger_than_the_data_computes_no_rows_that_only_fill_it_up(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """Trained, validated and tested with the results of a batch of just the data."""
    rows: dict[str, set[int]] = {}

    def watch(kind: type, name: str) -> None:
        whole = getattr(kind, name)

        def counted(self: Any, images: np.ndarray, *rest: Any, **options: Any) -> Any:
            rows.setdefault(name, set()).add(len(images))
            return whole(self, images, *rest, **options)

        monkeypatch.setattr(kind, name, counted)

    trainer = engine.trainer()
    watch(type(trainer), "train_step")
    watch(type(trainer.model), "logits")
    dataset, found = engine.dataset(), []
    for batch_size in (2**14, 48):
        experiment = engine.experiment(accumulate=accumulate)
        data = experiment.data.model_copy(update={"batch_size": batch_size})
        out = engine.out / str(batch_size)
        metrics = train(experiment.model_copy(update={"data": data}), out)["metrics"]
        found.append((metrics, read_metrics(RunFolder(out).metrics)[-1]["train_loss"]))
    assert found[0] == found[1]
    assert rows == {"train_step": {44 if accumulate == 1 else 48}, "logits": {dataset.val.size, dataset.test.size}}


def test_tf32_where_nothing_rounds_so_is_said_to_be_float32(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    progress = SimpleNamespace(note=said.append, opening=Silent().opening)
    config = engine.experiment()
    rounded = config.model_copy(update={"train": config.train.model_copy(update={"precision": "tf32"})})
    prepare.prepare(rounded, progress)
    assert "train.precision: tf32 is float32 here: what computes rounds no products to TF32" in said
    said.clear()
    prepare.prepare(config, progress)
    assert not [note for note in said if "tf32" in note]
