"""The held-out splits: what trains and what selects is never handed the test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.adapters.peft import read_adapter
from mlx_peft.data import ArrayImages, Dataset, Split
from mlx_peft.training import feed as feed_module
from mlx_peft.training import prepare
from mlx_peft.training import train as train_module
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train


def test_the_test_split_is_read_once_and_after_all_else(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    original = feed_module.eval_batches

    def spy(split: Any, *rest: Any) -> Any:
        order.append(split.name)
        return original(split, *rest)

    for module in (feed_module, train_module):
        monkeypatch.setattr(module, "eval_batches", spy)
    train(engine.experiment(), engine.out)
    assert order == ["val", "val", "val", "val", "test"]  # each epoch, and what the selected one says of each image


def test_nothing_that_trains_or_selects_is_handed_the_test_split(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = []
    parts = {"check_data": prepare, "planned": prepare, "feed": train_module, "cached_feed": train_module}
    for name, module in parts.items():
        whole = getattr(module, name)

        def spied(*arguments: Any, _whole: Any = whole, **options: Any) -> Any:
            handed.extend(a for a in (*arguments, *options.values()) if isinstance(a, Dataset))
            return _whole(*arguments, **options)

        monkeypatch.setattr(module, name, spied)
    result = train(engine.experiment(early_stopping=1), engine.out)
    assert len(handed) == 3  # the fake model has no frozen prefix whose features could be kept
    assert all(dataset.test is None for dataset in handed)
    assert result["metrics"]["test"] is not None


def test_another_test_split_changes_the_test_s_metrics_and_nothing_else(
    engine: SimpleNamespace, tmp_path: Path
) -> None:
    """Its labels are turned around and its images are black: no parameter, no choice and no other metric moves."""
    dataset = engine.dataset()
    black = ArrayImages.whole(np.zeros((dataset.test.size, 8, 8, 3), np.uint8), "test")
    results = []
    for name, test in (("a", dataset.test), ("b", Split("test", black, 2 - dataset.test.labels))):
        engine.install(replace(dataset, test=test))
        results.append(train(engine.experiment(early_stopping=1), tmp_path / name))
    one, other = results
    assert one["metrics"]["test"] != other["metrics"]["test"]
    assert one["metrics"]["val"] == other["metrics"]["val"]
    assert one["selected"] == other["selected"]
    adapters = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("a", "b")]
    assert adapters[0] == adapters[1]


def test_without_held_out_splits_the_result_says_so(engine: SimpleNamespace) -> None:
    engine.install(engine.dataset(val=False, test=False))
    result = train(engine.experiment(), engine.out)
    assert result["metrics"] == {"val": None, "test": None}
    assert result["selected"] == {"epoch": 3, "by": "last epoch"}
    last = load_checkpoint(RunFolder(engine.out).last)[0]
    np.testing.assert_array_equal(read_adapter(engine.out / "adapter").tensors["head.weight"], last["head.weight"])
