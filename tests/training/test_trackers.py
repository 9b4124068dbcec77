"""Each tracker shows what ``metrics.jsonl`` says, the experiment, and the end of a run; a resumed run goes on there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mlx_peft.training.run import read_metrics
from mlx_peft.training.trackers.shown import tagged
from mlx_peft.training.tracking import TRACKERS, check_trackers, show_end
from mlx_peft.training.train import train

Points = dict[str, list[tuple[int, float]]]
"""Of each tag the steps and the values."""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation" / "confusion.png"
    path.parent.mkdir()
    Image.new("RGB", (4, 2), (255, 0, 0)).save(path)
    return path


def expected(run: Path) -> Points:
    found: Points = {}
    for record in read_metrics(run / "metrics.jsonl"):
        for tag, value in tagged(record):
            found.setdefault(tag, []).append((int(record["step"]), pytest.approx(value, rel=1e-6)))
    return found


def tracked(engine: SimpleNamespace, name: str, picture: Path) -> Any:
    """A run that is stopped in the middle and goes on, with its end shown: its result."""
    experiment = engine.experiment(epochs=2, checkpoint_every=4).model_copy(update={"track": [name]})
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("mlx_peft.training.fit.Loop.end_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, engine.out)
    result = train(experiment, engine.out, resume=True)
    show_end(experiment, engine.out, result, [picture])
    return result


def in_mlflow(place: Path) -> tuple[Points, dict[str, str], list[str]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = (one for one in client.search_experiments() if one.name == "mlx-peft")
    (run,) = client.search_runs([experiment.experiment_id])
    points = {
        tag: sorted({(point.step, point.value) for point in client.get_metric_history(run.info.run_id, tag)})
        for tag in run.data.metrics
    }
    files = [file.path for file in client.list_artifacts(run.info.run_id, "evaluation")]
    return points, run.data.params, files


def in_trackio(place: Path) -> tuple[Points, dict[str, Any], list[str]]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("mlx-peft")
    points: Points = {}
    files: list[str] = []
    for row in SQLiteStorage.get_logs("mlx-peft", name):
        for tag, value in row.items():
            if isinstance(value, dict):
                files.append(tag)
            elif tag not in ("step", "timestamp"):
                points.setdefault(tag, []).append((int(row["step"]), value))
    return points, SQLiteStorage.get_run_config("mlx-peft", name) or {}, files


def in_wandb(place: Path) -> tuple[Points, dict[str, Any], list[str]]:
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    config: dict[str, Any] = {}
    files = [str(path) for path in (place / "wandb").rglob("*.png")]
    for content in (content for file in sorted(place.rglob("*.wandb")) for content in written(file.read_bytes())):
        record = Record()
        record.ParseFromString(content)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for tag, value in row.items():
            if not tag.startswith("_"):
                points.setdefault(tag, []).append((int(row["_step"]), value))
        for item in record.summary.update:
            if (tag := item.key or "/".join(item.nested_key)).startswith("final/"):
                points.setdefault(tag, []).append((0, json.loads(item.value_json)))
        for item in (*record.config.update, *record.run.config.update):
            config[item.key] = json.loads(item.value_json)
    return points, config, files


BLOCK, HEAD = 2**15, 7
FULL, FIRST, LAST = 1, 2, 4


def written(content: bytes) -> Iterator[bytes]:
    """What was written to a file of LevelDB's log format: blocks of parts, each a checksum, its length and its kind."""
    at, whole = HEAD, b""
    while at + HEAD <= len(content):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part = content[at + HEAD : at + HEAD + size]
        at += HEAD + size
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            yield whole


@pytest.mark.slow  # their packages take seconds to load
@pytest.mark.parametrize(("name", "read"), [("mlflow", in_mlflow), ("trackio", in_trackio), ("wandb", in_wandb)])
def test_a_run_is_shown_with_its_experiment_its_end_and_its_pictures(
    engine: SimpleNamespace,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    read: Callable[[Path], tuple[Points, dict[str, Any], list[str]]],
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, value in (
        ("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db"),
        ("TRACKIO_DIR", str(tmp_path / "trackio")),
        ("WANDB_MODE", "offline"),
        ("WANDB_DIR", str(tmp_path)),
        ("WANDB_SILENT", "true"),
    ):
        monkeypatch.setenv(variable, value)
    result = tracked(engine, name, picture)
    points, config, files = read(tmp_path)
    for tag, wanted in expected(engine.out).items():
        if tag != "train/images_per_second":  # of the process that was killed, where it had made that step before
            assert sorted(set(points[tag])) == wanted, tag
    assert [value for _, value in points["final/test/top1"]][-1] == pytest.approx(result["metrics"]["test"]["top1"])
    assert str(config["train.epochs"]) == "2" and "data.root" not in config
    assert any("confusion" in file for file in files)


def test_tensorboard_has_the_end_and_the_pictures_too(engine: SimpleNamespace, picture: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    result = tracked(engine, "tensorboard", picture)
    events = EventAccumulator(str(engine.out)).Reload()
    assert "config" in events.Tags()["tensors"]
    assert events.Tensors("final/test/top1")[-1].tensor_proto.float_val[0] == pytest.approx(
        result["metrics"]["test"]["top1"], rel=1e-6
    )
    assert "evaluation/confusion" in events.Tags()["tensors"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_said_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from mlx_peft.core.errors import UserError

    kind = TRACKERS[name]
    monkeypatch.setitem(sys.modules, kind.package, None)
    with pytest.raises(UserError, match=rf"track: {name} is not installed; .*mlx-peft\[{kind.extra}\]"):
        check_trackers([name])
