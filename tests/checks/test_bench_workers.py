"""The benchmark of threads and processes: what it compares, and how it says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.checks import bench_workers
from mlx_peft.checks.bench_data import Settings, Share
from mlx_peft.checks.bench_workers import AUGMENTS, Supply, needed, supplies
from mlx_peft.core import cores
from mlx_peft.report.workers import workers


def test_threads_and_processes_are_measured_up_to_the_cores_that_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(path)
    made = []
    monkeypatch.setattr(cores, "free", lambda: 5)
    monkeypatch.setattr(bench_workers, "batches", lambda dataset, config, *rest: made.append(config) or list)
    found = supplies(Settings(str(tmp_path), image_size=16, batch_size=4, rounds=2))
    assert [(one.workers, one.number) for one in found] == 2 * [
        *(("threads", number) for number in (1, 2, 4)),
        *(("processes", number) for number in (1, 2, 4)),
    ]
    assert [(config.workers, config.threads) for config in made] == [(one.workers, one.number) for one in found]
    assert [one.augment for one in found] == [name for name in AUGMENTS for _ in range(6)]
    assert all(len(one.images_per_second) == 2 for one in found)


def test_the_table_says_what_more_workers_bring_and_what_a_step_takes_of_it() -> None:
    settings = Settings("images")
    found = [
        Supply("threads", 1, "crop", [90.0, 100.0, 120.0]),
        Supply("threads", 2, "crop", [150.0]),
        Supply("processes", 1, "crop", [50.0]),
    ]
    shares = [Share("mlx", "vit", 32, 0.001, 0.002, 1.6)]
    assert needed(shares) == {"mlx": 20}
    text = workers(settings, found, shares)
    assert "share that a step of mlx takes" in text
    assert "| crop | threads | 1 | 100 | 90 to 120 | 1.00 | 20.0% |" in text
    assert "| crop | threads | 2 | 150 | 150 to 150 | 1.50 | 13.3% |" in text
    assert "| crop | processes | 1 | 50 | 50 to 50 | 1.00 | 40.0% |" in text
    assert workers(settings, found, []).endswith("| crop | processes | 1 | 50 | 50 to 50 | 1.00 |")
