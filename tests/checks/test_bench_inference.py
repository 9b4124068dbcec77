"""The benchmark of mixed batches: what each contender answers, and how the figures are told."""

from __future__ import annotations

import json
import mmap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from machines import Machine

from convert.base import load_base
from mlx_peft.checks import bench_inference
from mlx_peft.checks.bench_inference import MERGED, MIXED, SWITCHED, Contender, Holding, Report, Settings, Timing
from mlx_peft.checks.resident import resident_bytes
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_peer_of_banks
from mlx_peft.report.inference import inference

SMALL = Settings("vit_tiny_patch16_224", 32, batch_size=4, rank=1, counts=(1, 2), rounds=1, resident=3)
SAME = 1e-5
"""The same sums in another order, of logits of about 1."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("adapters")
    bench_inference.write(SMALL, folder)
    return Settings(**{**vars(SMALL), "folder": str(folder)})


def test_a_mixed_batch_is_answered_as_after_a_switch_to_each(settings: Settings) -> None:
    mixed, switched = (Contender("torch", way, settings) for way in (MIXED, SWITCHED))
    agree(mixed.answer, switched.switch, lambda images: switched.answer(images, []), settings.names[:2])


def test_so_it_is_in_peft(settings: Settings) -> None:
    config, names = bench_inference.experiment(settings), settings.names[:2]
    base = load_base(config.model, bench_inference.CLASSES, config.seed)
    bank = load_peer_of_banks("peft").build_bank(config, bench_inference.CLASSES, base, names)
    agree(bank.mixed, bank.switch, bank.logits, names)


def agree(mixed, switch, logits, names: list[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    answers = mixed(images, names)
    for row, name in enumerate(names):
        switch(name)
        np.testing.assert_allclose(answers[row], logits(images[[row]])[0], rtol=0, atol=SAME)
    assert np.abs(answers[0] - answers[1]).max() > 100 * SAME


def test_every_contender_is_asked_the_same_batches_and_the_first_of_each_kind_is_not_counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[object]] = {}

    class Worker:
        def __init__(self, name: str) -> None:
            self.name, self.answer = name, bench_inference.work(name, settings)

        def ask(self, request: object) -> object:
            asked.setdefault(self.name, []).append(request)
            return self.answer(request)

    @contextmanager
    def workers(module: str, names: list[str], given: object):
        yield {name: Worker(name) for name in names}

    monkeypatch.setattr(bench_inference.turns, "workers", workers)
    monkeypatch.setattr(bench_inference, "write", lambda settings, folder: 1000)
    report = bench_inference.run(SMALL, ["torch"])
    assert list(asked) == [f"torch {way}" for way in (MERGED, MIXED, SWITCHED)]
    assert asked["torch merged"] == asked["torch mixed"] == asked["torch one by one"]
    batches = asked["torch mixed"][:-1]
    assert len(batches) == 4 and all(len(batch) == 4 for batch in batches)
    assert [len(set(batch)) for batch in batches] == [1, 1, 2, 2]
    assert [len(timing.wall) for timing in report.timings] == [1] * 6
    assert [len(timing.switches) for timing in report.timings] == [0, 0, 1, 0, 0, 2]
    assert [held.adapters for held in report.holdings] == [3] and report.holdings[0].own == 3000
    assert inference([report], Machine(0.0).others()).count("torch, mixed") == 2


def test_tables_and_json() -> None:
    timings = [
        Timing("torch", MERGED, 2, [1.0, 1.0], [2.0, 2.0], []),
        Timing("torch", MIXED, 2, [1.25, 1.25], [2.0, 4.0], []),
        Timing("peft", MIXED, 2, [2.0, 2.5], [4.0, 4.0], []),
        Timing("peft", SWITCHED, 2, [4.0, 4.0], [4.0, 4.0], [0.033, 0.035, 0.033]),
    ]
    report = Report(SMALL, timings, [Holding("torch", "torch 2", 200, 2**30, 2**30 + 2**28)])
    others = Machine(0.0).others()
    text = inference([report], others)
    assert "| torch, mixed | 2 | 3.2 | 0.80 | 0.75 | 1.80 | 1.50 | - |" in text
    assert "| peft, one by one | 2 | 1.0 | 0.25 | 0.50 | 0.56 | 1.00 | 33.00 |" in text
    assert "| torch | torch 2 | 200 | 1,024 | 1,280 | 1.25 |" in text
    assert "CPUs, of which other processes took 0%; images/s are the fastest round's" in text
    document = json.loads(json.dumps(bench_inference.summary([report], others)))
    assert document["reports"][0]["timings"][1]["wall"] == [1.25, 1.25]


MEGABYTE = bytes([1]) * 2**20


def test_what_is_held_is_counted() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 2**27) as fresh:
        # No array: one of NumPy's may get pages that the process had already. And bit by bit: the bytes may stay.
        for _ in range(len(fresh) // len(MEGABYTE)):
            fresh.write(MEGABYTE)
        assert resident_bytes() - before == pytest.approx(len(fresh), rel=0.1)


def test_a_contender_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"there is no jax here: there are .*torch"):
        bench_inference.run(SMALL, ["jax"])


def test_adapters_are_written_once_for_all(settings: Settings) -> None:
    assert sorted(path.name for path in Path(settings.folder).iterdir()) == settings.names[:2]
