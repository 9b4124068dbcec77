"""What is timed and counted of fewer tokens, and how it is told."""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import Machine
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import torch_ref.entry
from convert.base import Base, load_base
from mlx_peft.artifacts import reduced
from mlx_peft.artifacts.reduced import Accuracy
from mlx_peft.checks import bench_tokens, products, turns
from mlx_peft.checks.bench_tokens import ANSWER, TRAIN, Settings, settings_of
from mlx_peft.config.methods import Linear
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.core.errors import UserError
from mlx_peft.report import tokens
from mlx_peft.training.train import train

OWN = 0.04
"""A reducer's own products, of all: ToMe compares each half of its tokens with the other, by keys of 64
numbers, which is much of a model this narrow."""

WIDE = {"args": {"embed_dim": 192, "depth": 4, "num_heads": 3}}
ARCHITECTURES = {
    "class token": {"name": "vit_tiny_patch16_224", **WIDE},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", **WIDE},
    "registers and an average": {
        "name": "vit_tiny_patch16_224", "args": WIDE["args"] | {"reg_tokens": 4, "global_pool": "avg"},
    },
    "gated": {"name": "vit_giant_patch14_dinov2", "image_size": 140, **WIDE},
}  # fmt: skip
REDUCERS = ("none", "tome r=40", "evit keep=0.5 blocks=[1,2]", "skipvit keep=0.3 from=0 to=2")


def counted(act: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("text", REDUCERS)
def test_the_operations_are_those_that_torch_counts(name: str, text: str) -> None:
    model, reducer = Model.model_validate({"weights": "none", **ARCHITECTURES[name]}), reducer_of(text)
    base: Base = load_base(model, 10, 0)
    size, heads = base.architecture.img_size, 2 * 10 * base.architecture.feature_dim * (1 + base.architecture.distilled)
    images = np.zeros((1, size, size, 3), np.uint8)
    answering = torch_ref.entry.build_model(base, 10, Linear(), tokens=reducer)
    found = counted(lambda: answering.logits(images)) - heads
    ours = products.flops(products.forward(base.architecture, 1, reducer))
    assert found == ours if reducer is None else ours <= found <= (1 + OWN) * ours
    experiment = Experiment.model_validate(
        {
            "model": model.model_dump(mode="json"),
            "method": {"name": "ia3"},  # which has no products of its own
            "data": {"name": "digits", "batch_size": 1},
            "tokens": None if reducer is None else reducer.model_dump(mode="json"),
        }
    )
    trainer = torch_ref.entry.build_trainer(experiment, 10, base)
    found = counted(lambda: trainer.train_step(images, np.zeros(1, np.int32), 1e-3)) - 3 * heads
    ours = products.flops(products.step(base.architecture, 1, reducer))
    assert found == ours if reducer is None else ours <= found <= (1 + OWN) * ours


SMALL = Model.model_validate(
    {
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "args": {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    }
)


def test_the_plain_model_comes_first_and_each_reducer_once() -> None:
    settings = settings_of(SMALL, ["tome r=2", "evit blocks=[1]", "none", "tome   r=2"], ["torch"], rounds=1)
    assert settings.reducers == ("none", "tome   r=2", "evit blocks=[1]") and settings.model["weights"] == "none"
    for wrong, said in (
        (["tome r=9"], "half of the model's 16 patches"),
        (["tomme"], "did you mean 'tome'"),
        (["none"], "no reducer is named"),
    ):
        with pytest.raises(UserError, match=said):
            settings_of(SMALL, wrong)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_process_answers_with_the_seconds_of_what_it_is_asked(backend: str) -> None:
    settings = settings_of(SMALL, ["tome r=2", "skipvit keep=0.5 from=0 to=1"], [backend], batch_size=2, warmup=1)
    answer = bench_tokens.work(backend, Settings(**json.loads(json.dumps(settings.__dict__))))
    assert all(answer([reducer, what]) > 0 for reducer in settings.reducers for what in (ANSWER, TRAIN))


class Clock:
    """A worker for which a reducer halves the time of an answer, and of a step nothing."""

    asked: list[tuple[str, str, str]]

    def __init__(self, name: str, asked: list) -> None:
        self.name, self.asked = name, asked

    def ask(self, request: list[str]) -> float:
        self.asked.append((self.name, *request))
        return 0.1 if request[0] != "none" and request[1] == ANSWER else 0.2


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, list, list]:
    asked: list = []

    @contextmanager
    def workers(module: str, names: Any, settings: Any) -> Any:
        yield {name: Clock(name, asked) for name in names}

    monkeypatch.setattr(turns, "workers", workers)
    settings = settings_of(SMALL, ["tome r=2", "tome r=4"], ["mlx", "torch"], rounds=2, batch_size=4)
    return settings, bench_tokens.run(settings), asked


def test_in_each_round_everything_is_timed_once_and_a_reducer_right_behind_the_plain_model(
    speeds: tuple[Settings, list, list],
) -> None:
    _, found, asked = speeds
    assert len(asked) == 2 * 16 and asked[:16] == asked[16:] and len(set(asked)) == 12
    own = [asked[start : start + 4] for start in range(0, 16, 4)]
    assert [turn[0][::2] for turn in own] == [(name, what) for what in (ANSWER, TRAIN) for name in ("mlx", "torch")]
    assert all([text for _, text, _ in turn] == ["none", "none", "tome r=2", "tome r=4"] for turn in own)
    assert all(len(one.seconds) == 2 for one in found), "what comes first is not counted"
    assert {one.times for one in found if one.what == TRAIN} == {1.0}
    assert {(one.reducer, one.times) for one in found if one.what == ANSWER} == {
        ("none", 1.0), ("tome r=2", 2.0), ("tome r=4", 2.0)
    }  # fmt: skip
    assert [one.images_per_second for one in found[:1]] == [20.0]
    flops = {one.reducer: one.flops for one in found if one.what == ANSWER}
    assert flops["none"] > flops["tome r=2"] > flops["tome r=4"]


ACCURACIES = [
    Accuracy("none", False, "val", "top1", (0.9, 0.92)),
    Accuracy("tome r=2", False, "val", "top1", (0.8, 0.84)),
    Accuracy("tome r=2", True, "val", "top1", (0.9,)),
]


def test_a_table_csv_and_a_picture_say_the_same(speeds: tuple[Settings, list, list], tmp_path: Path) -> None:
    settings, found, _ = speeds
    assert "top-1" not in tokens.table(settings, found, Machine(0.0).others())
    assert tokens.draw(found, []).keys() == {".png", ".pdf"}
    files = tokens.write(tmp_path, settings, found, Machine(0.0).others(), ACCURACIES)
    assert [file.name for file in files] == ["tokens.md", "tokens.csv", "tokens.png", "tokens.pdf"]
    assert "val top-1, off the shelf (%)" in files[0].read_text()
    (line,) = (line for line in files[0].read_text().splitlines() if line.startswith("| tome r=2 "))
    assert "40.0 (2.00)" in line and line.endswith("| 82.00 ± 2.83 | 90.00 |")
    assert Image.open(files[2]).size[0] > Image.open(files[2]).size[1]
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert len(rows) == 12 and {row["tokens"] for row in rows} == {"none", "tome r=2", "tome r=4"}
    (row,) = (row for row in rows if (row["tokens"], row["backend"], row["what"]) == ("tome r=2", "mlx", ANSWER))
    assert (float(row["images/s"]), float(row["times"]), row["split"], row["metric"]) == (40, 2, "val", "top1")
    assert float(row["off the shelf mean"]) == pytest.approx(0.82) and row["trained with it runs"] == "1"


def test_a_run_is_measured_under_every_reducer_or_under_its_own(tmp_path: Path) -> None:
    experiment = {
        "backend": "torch",
        "model": SMALL.model_copy(update={"weights": "none"}).model_dump(mode="json"),
        "method": {"name": "linear"},
        "data": {"name": "digits", "batch_size": 128, "split": {"val": 0.3, "test": 0.2}},
        "train": {"epochs": 1, "optimizer": {"name": "adamw", "lr": 0.01}},
    }
    plain, own = tmp_path / "plain", tmp_path / "own"
    train(Experiment.model_validate(experiment), plain)
    train(Experiment.model_validate(experiment | {"tokens": {"name": "tome", "r": 2}}), own)
    found = reduced.accuracies([plain, own], ["none", "tome r=2", "tome r=6"])
    assert [(one.reducer, one.trained) for one in found] == [
        ("none", False), ("tome r=2", False), ("tome r=6", False), ("tome r=2", True)
    ]  # fmt: skip
    results = [json.loads((run / "result.json").read_text())["metrics"]["test"]["top1"] for run in (plain, own)]
    assert [found[0].values, found[3].values] == [(results[0],), (results[1],)]
    (validated,) = reduced.accuracies([plain], ["none"], "val")
    best = json.loads((plain / "result.json").read_text())["metrics"]["val"]["top1"]
    assert (validated.split, validated.values) == ("val", (best,)) and best != results[0]

    names, timed = ["none", "tome r=2"], Experiment.model_validate(experiment).model
    reduced.must_be_seeds([plain, own], names, timed)
    with pytest.raises(UserError, match="is not a finished run"):
        reduced.must_be_seeds([plain, tmp_path], names, timed)
    with pytest.raises(UserError, match=r"own was trained with tome r=2, which is not timed: name it too"):
        reduced.must_be_seeds([plain, own], ["none", "tome r=6"], timed)
    with pytest.raises(UserError, match="another model, or of another size of images"):
        reduced.must_be_seeds([plain], names, timed.model_copy(update={"image_size": 96}))
    other = tmp_path / "other"
    train(Experiment.model_validate(experiment | {"method": {"name": "bitfit"}}), other)
    with pytest.raises(UserError, match="differ in their images or their method"):
        reduced.must_be_seeds([plain, other], names, timed)
