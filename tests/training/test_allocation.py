"""How ranks are dealt out: against PEFT's own schedule, by hand, and in the training loop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator

from mlx_peft.config.methods import AdaLoRA, Linear, LoRA
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.allocation import RankAllocator, allocator, ranks
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.fit import fit
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.resume import stands
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.stop import Interrupted, StopSignal
from mlx_peft.training.train import train

ADAPTERS = [f"blocks.{block}.attn.{name}" for block in range(2) for name in ("qkv", "proj")]
SCHEDULES = [(60, 10, 15, 5), (60, 0, 0, 1), (37, 3, 8, 4), (100, 20, 79, 10), (24, 0, 5, 100)]
"""Steps, t_init, t_final, delta_t."""


def method(init_rank: int = 6, target_rank: int = 2, **schedule: int) -> AdaLoRA:
    return AdaLoRA(init_rank=init_rank, target_rank=target_rank, **schedule)


def scheduled(case: tuple[int, int, int, int]) -> RankAllocator:
    steps, t_init, t_final, delta_t = case
    return RankAllocator(method(t_init=t_init, t_final=t_final, delta_t=delta_t), steps)


def pefts(case: tuple[int, int, int, int]) -> PeftAllocator:
    steps, tinit, tfinal, delta = case
    config = peft.AdaLoraConfig(init_r=6, target_r=2, total_step=steps, tinit=tinit, tfinal=tfinal, deltaT=delta)
    theirs = PeftAllocator(SimpleNamespace(named_parameters=list), config, "default")
    theirs.init_bgt, theirs.target_bgt = 6 * len(ADAPTERS), 2 * len(ADAPTERS)
    return theirs


@pytest.mark.parametrize("case", SCHEDULES, ids=str)
def test_the_budget_of_each_step_is_pefts(case: tuple[int, int, int, int]) -> None:
    ours, theirs = scheduled(case), pefts(case)
    for t in range(1, case[0] + 1):
        budget, masks = theirs.budget_schedule(t)
        assert ours.budget(t, len(ADAPTERS)) == budget
        last = case[0] - case[2]
        assert ours.decides(t) == (t == last or (masks and t < last))
        assert ours.observes(t) == (t < last)


@pytest.mark.parametrize("case", SCHEDULES, ids=str)
def test_no_mask_falls_into_the_steps_before_and_after(case: tuple[int, int, int, int]) -> None:
    steps, t_init, t_final, _ = case
    ours = scheduled(case)
    decisions = [t for t in range(1, steps + 1) if ours.decides(t)]
    assert decisions[0] > t_init
    assert decisions[-1] == steps - t_final
    assert ours.budget(decisions[-1], 4) == 8
    assert [t for t in range(1, steps + 1) if ours.settled(t)] == list(range(steps - t_final, steps + 1))


def test_the_lowest_scores_of_all_layers_are_masked() -> None:
    ours = RankAllocator(method(init_rank=3, target_rank=1), 10)
    scores = {"a": np.array([5.0, 0.1, 3.0], np.float32), "b": np.array([0.2, 0.3, 4.0], np.float32)}
    assert ours.decide(scores, 10) == {"a": [True, False, False], "b": [False, False, True]}
    assert ours.budget(5, 2) == 2 + int(4 * 0.5**3)
    assert ours.decide(scores, 1)["a"] == [True, False, True]  # of 6, int(2 + 4 * 0.9^3) = 4 stay
    assert ranks(ours.decide(scores, 1)) == {"a": 2, "b": 2}


def test_equal_scores_at_the_threshold_are_all_masked() -> None:
    ours = RankAllocator(method(init_rank=3, target_rank=2), 10)
    scores = {"a": np.array([1.0, 1.0, 2.0], np.float32), "b": np.array([1.0, 3.0, 4.0], np.float32)}
    assert ours.decide(scores, 10) == {"a": [False, False, True], "b": [False, True, True]}


def test_masks_are_pefts_for_any_scores() -> None:
    import torch

    case = (40, 4, 6, 3)
    ours, theirs = scheduled(case), pefts(case)
    random = np.random.default_rng(0)
    for t in range(5, 35):
        drawn = {name: random.choice([0.0, 1.0, *random.random(40)], 6).astype(np.float32) for name in ADAPTERS}
        budget, _ = theirs.budget_schedule(t)
        threshold = torch.kthvalue(torch.from_numpy(np.concatenate(list(drawn.values()))), theirs.init_bgt - budget)
        expected = {n: (~(torch.from_numpy(s) <= threshold[0].item())).tolist() for n, s in drawn.items()}
        assert ours.decide(drawn, t) == expected


@pytest.mark.parametrize(("t_init", "t_final", "steps"), [(30, 30, 60), (0, 60, 60), (70, 0, 60), (5, 5, 3)])
def test_a_schedule_beyond_the_run_is_refused_with_its_numbers(t_init: int, t_final: int, steps: int) -> None:
    message = rf"t_init {t_init} \+ method.t_final {t_final} leave no step to prune in: the run has {steps} in all"
    for target_rank in (2, 6):
        with pytest.raises(UserError, match=message):
            allocator(method(target_rank=target_rank, t_init=t_init, t_final=t_final), steps)


def test_a_mask_before_anything_is_known_of_the_triplets_is_refused() -> None:
    with pytest.raises(UserError, match="before any importance is known"):
        allocator(method(t_final=4), 5)
    assert allocator(method(target_rank=6, t_final=4), 5) is not None


@pytest.mark.parametrize("other", [LoRA(), Linear()])
def test_other_methods_have_no_ranks_to_deal_out(other: Any) -> None:
    assert allocator(other, 10) is None


def test_nothing_is_refused_into_a_folder(engine: SimpleNamespace) -> None:
    experiment = dealing(engine, t_init=100)
    with pytest.raises(UserError, match="the run has 18 in all"):
        train(experiment, engine.out)
    assert not engine.out.exists()


# In the loop, with a trainer whose scores are a function of the step, so that ranks change and revive.


def dealing(engine: SimpleNamespace, **options: int) -> Experiment:
    schedule = {"t_init": 3, "t_final": 5, "delta_t": 2} | options
    experiment: Experiment = engine.experiment(log_every=100)
    return experiment.model_copy(update={"method": method(**schedule)})


def make_trainer(engine: SimpleNamespace) -> Any:
    trainer = engine.trainer()
    plain = trainer.train_step

    def train_step(
        images: np.ndarray, targets: np.ndarray, lr: float, *, weight: Any = None, observe: bool = False
    ) -> Any:
        trainer.log.append(("observe" if observe else "pass", trainer.count + 1))
        return plain(images, targets, lr)

    def scores() -> dict[str, np.ndarray]:
        random = np.random.default_rng(trainer.count)
        return {name: random.random(6).astype(np.float32) for name in ADAPTERS}

    trainer.train_step, trainer.scores, trainer.masks = train_step, scores, []
    trainer.mask = lambda keep: trainer.masks.append((trainer.count, keep))
    return trainer


def run(engine: SimpleNamespace, folder: Path, experiment: Experiment, trainer: Any, progress: Any = None) -> Any:
    folder.mkdir(exist_ok=True)
    feed, place, progress = engine.feed(experiment, engine.dataset()), RunFolder(folder), progress or Silent()
    position = stands(place, trainer, experiment, feed.steps, {}, progress)
    with StopSignal().listening() as stop:
        return fit(trainer, experiment, feed, place, position, identity={}, progress=progress, stop=stop)


def dealt(folder: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if any(key.startswith("rank/") for key in line)]


def test_steps_are_observed_and_masked_by_the_schedule(engine: SimpleNamespace) -> None:
    trainer = make_trainer(engine)
    run(engine, engine.out, dealing(engine), trainer)
    assert [t for what, t in trainer.log if what == "observe"] == list(range(1, 13))
    assert [t for t, _ in trainer.masks] == [4, 6, 8, 10, 12, 13, 14, 15, 16, 17, 18]
    last = trainer.masks[5][1]
    assert all(keep is last for _, keep in trainer.masks[5:]), "one object, so that a trainer need not look again"
    assert sum(ranks(last).values()) == 2 * len(ADAPTERS)


def test_a_step_without_a_decision_is_not_waited_for(engine: SimpleNamespace) -> None:
    trainer = make_trainer(engine)
    run(engine, engine.out, dealing(engine), trainer)
    log = [event for event in trainer.log if event[0] in ("launch", "read")]
    assert log[:4] == [("launch", 0), ("launch", 1), ("read", 0), ("launch", 2)]


def test_ranks_are_recorded_at_the_start_and_whenever_they_change(engine: SimpleNamespace) -> None:
    trainer = make_trainer(engine)
    run(engine, engine.out, dealing(engine), trainer)
    lines = dealt(engine.out)
    assert lines[0] == {"step": 1, "epoch": 1} | {f"rank/{name}": 6 for name in ADAPTERS}
    patterns: dict[int, dict[str, int]] = {t: ranks(keep) for t, keep in trainer.masks}
    assert [line["step"] for line in lines[1:]] == [4, 6, 8, 10, 12, 13]
    for line in lines[1:]:
        assert {name: line[f"rank/{name}"] for name in ADAPTERS} == patterns[int(line["step"])]


def test_equal_ranks_need_no_mask(engine: SimpleNamespace) -> None:
    trainer = make_trainer(engine)
    position = run(engine, engine.out, dealing(engine, target_rank=6), trainer)
    assert trainer.masks == []
    assert [line["step"] for line in dealt(engine.out)] == [1]
    assert position.best_epoch > 0 and "observe" not in {what for what, _ in trainer.log}


def test_only_an_epoch_within_the_budget_is_selected(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr("mlx_peft.training.fit.measured", lambda *_: {"top1": next(found), "loss": 1.0, "count": 21})
    experiment = dealing(engine, t_final=2)  # the last mask is at step 22 of 24, in the fourth epoch
    patient = experiment.train.model_copy(update={"epochs": 4, "early_stopping": 1})
    position = run(engine, engine.out, experiment.model_copy(update={"train": patient}), make_trainer(engine))
    assert (position.best_epoch, position.epoch, position.best["top1"]) == (4, 4, 0.6)
    assert load_checkpoint(RunFolder(engine.out).best)[1]["epoch"] == 4


@pytest.mark.parametrize("at", [2, 5, 9, 12, 13, 15])
def test_a_run_that_goes_on_deals_out_as_one_that_never_stopped(
    engine: SimpleNamespace, tmp_path: Path, at: int
) -> None:
    import os
    import signal

    class Impatient(Silent):
        def step(self, event: StepEvent) -> None:
            if event.step == at:
                os.kill(os.getpid(), signal.SIGINT)

    experiment = dealing(engine)
    whole = make_trainer(engine)
    run(engine, tmp_path / "whole", experiment, whole)
    first, second = make_trainer(engine), make_trainer(engine)
    with pytest.raises(Interrupted):
        run(engine, tmp_path / "parts", experiment, first, Impatient())
    run(engine, tmp_path / "parts", experiment, second)
    assert first.masks + second.masks == whole.masks
    assert dealt(tmp_path / "parts") == dealt(tmp_path / "whole")
