"""TensorBoard's events say what ``metrics.jsonl`` says, and need no other framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from mlx_peft.core.errors import UserError
from mlx_peft.training.run import read_metrics
from mlx_peft.training.trackers.shown import tag_of
from mlx_peft.training.tracking import open_trackers
from mlx_peft.training.train import train

HISTORY = [
    {"step": 1, "epoch": 1, "loss": 0.5, "lr": 0.1, "images_per_second": 9.0},
    {"step": 2, "epoch": 1, "train_loss": 0.4, "val_top1": 0.75, "val_loss": 0.3, "seconds": 1.0},
]

CONFIG = "config"
"""The tag of the experiment, as a text."""


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, read as TensorBoard reads them."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag != CONFIG
    }


def points(folder: Path) -> list[tuple[str, int]]:
    """Tag and step of every point in every event file, as whoever reads the files themselves finds them."""
    return [
        (value.tag, event.step)
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag != CONFIG
    ]


def expected(records: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard should show of records: its values are float32."""
    return {
        tag: [(int(record["step"]), pytest.approx(record[name], rel=1e-6)) for record in records if name in record]
        for name in dict.fromkeys(name for record in records for name in record)
        if (tag := tag_of(name))
    }


def test_a_run_shows_loss_learning_rate_and_validation_accuracy(engine: SimpleNamespace) -> None:
    experiment = engine.experiment().model_copy(update={"track": ["tensorboard"]})
    train(experiment, engine.out)
    shown = scalars(engine.out)
    assert {"train/loss", "train/learning_rate", "val/top1"} <= set(shown)
    assert shown == expected(read_metrics(engine.out / "metrics.jsonl"))


def test_after_a_resume_no_step_is_there_twice_and_none_is_missing(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = engine.experiment(checkpoint_every=4).model_copy(update={"track": ["tensorboard"]})
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("mlx_peft.training.fit.Loop.end_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, engine.out)
    assert [step for step, _ in scalars(engine.out)["train/loss"]] == [1, 2, 4, 6]
    before = set(engine.out.glob("events.*"))
    train(experiment, engine.out, resume=True)
    assert before < set(engine.out.glob("events.*")), "a file that is watched stays"
    shown = expected(read_metrics(engine.out / "metrics.jsonl"))
    assert scalars(engine.out) == shown
    assert sorted(points(engine.out)) == sorted((tag, step) for tag, some in shown.items() for step, _ in some)


def test_a_tensorboard_that_is_watching_forgets_what_was_undone(tmp_path: Path) -> None:
    for tracker in open_trackers(["tensorboard"], tmp_path, [*HISTORY, {"step": 9, "loss": 7.0}]):
        tracker.close()
    watching = EventAccumulator(str(tmp_path)).Reload()
    for tracker in open_trackers(["tensorboard"], tmp_path, HISTORY):
        tracker.close()
    watching.Reload()
    assert [event.step for event in watching.Tensors("train/loss")] == [1]


def test_events_are_written_without_torch_or_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlx_peft.training.tracking import open_trackers\n"
        f"open_trackers(['tensorboard'], Path({str(tmp_path)!r}), {HISTORY!r})[0].close()\n"
        "print(sorted({'torch', 'tensorflow', 'mlx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert scalars(tmp_path) == expected(HISTORY)


def test_a_missing_package_is_refused_with_the_extra_before_a_folder_is_made(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'mlx-peft\[track\]'"):
        train(engine.experiment().model_copy(update={"track": ["tensorboard"]}), engine.out)
    assert not engine.out.exists()


def test_ranks_are_shown_under_their_own_names(tmp_path: Path) -> None:
    ranks = {"rank/blocks.0.attn.qkv": 4, "rank/blocks.0.attn.qkv/q": 0}
    for tracker in open_trackers(["tensorboard"], tmp_path, [*HISTORY, {"step": 3, "epoch": 1, **ranks}]):
        tracker.close()
    assert {tag: shown for tag, shown in scalars(tmp_path).items() if tag.startswith("rank/")} == {
        name: [(3, rank)] for name, rank in ranks.items()
    }
