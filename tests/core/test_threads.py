"""How many threads a command computes with: as many as there are cores, as few as are busy, or what a user has set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlx_peft.cli.process import prepared
from mlx_peft.config.schema import Experiment
from mlx_peft.core import cores, threads
from mlx_peft.training.run import environment
from mlx_peft.training.work import threads_worth

CORES = 4


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux machine of four cores, where nobody has said anything; the environment is as before afterwards."""
    monkeypatch.setattr(cores, "whole", lambda: CORES)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", {})


def said() -> dict[str, str]:
    """What the environment says of threads."""
    return {name: os.environ[name] for name in (threads.NUMBER, *threads.WAITING) if name in os.environ}


def test_a_command_takes_a_thread_for_each_core_and_lets_them_sleep() -> None:
    with prepared():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("4", "PASSIVE")


@pytest.mark.parametrize("waiting", threads.WAITING)
def test_what_a_user_has_set_stays(waiting: str) -> None:
    os.environ.update({"OMP_NUM_THREADS": "3", waiting: "7"})
    threads.settle()
    threads.at_most(1)
    assert said() == {"OMP_NUM_THREADS": "3", waiting: "7"}


def test_small_work_is_left_to_fewer() -> None:
    threads.settle()
    threads.at_most(9)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    threads.at_most(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_the_library_changes_nothing_where_no_command_has() -> None:
    threads.at_most(1)
    assert said() == {}


def test_a_process_that_a_command_started_settles_anew() -> None:
    threads.settle()
    threads.at_most(1)
    threads.settle()
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_elsewhere_nothing_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    threads.settle()
    assert said() == {}


@pytest.mark.parametrize(
    ("rows", "width", "expected"),
    [(32 * 17, 96, 1), (2 * 197, 192, 1), (4 * 197, 192, 2), (8 * 197, 384, 16)],
    ids=["the quickstart", "two images of ViT-Ti", "four", "eight of ViT-S"],
)
def test_a_thread_is_for_so_much_work(rows: int, width: int, expected: int) -> None:
    assert threads.worth(rows, width) == expected


def test_the_work_of_an_experiment_is_that_of_a_part_of_its_batch() -> None:
    plan = {"model": {"name": "vit_small_patch16_224", "weights": "none"}, "data": {"name": "digits", "batch_size": 8}}
    assert threads_worth(Experiment.model_validate(plan | {"method": {"name": "linear"}})) == 16
    halves = plan | {"method": {"name": "linear"}, "train": {"accumulate": 2}}
    assert threads_worth(Experiment.model_validate(halves)) == 8


def test_a_model_that_its_name_does_not_tell_of_is_left_every_core() -> None:
    model = {"name": "vit_small_patch16_224", "weights": "other/", "args": {"num_heads": 5}}
    plan = {"model": model, "method": {"name": "linear"}, "data": {"name": "digits", "batch_size": 1}}
    assert threads_worth(Experiment.model_validate(plan)) == CORES


def test_a_run_says_with_how_many_threads_it_was_made() -> None:
    threads.settle()
    facts = environment("fake 1.0")
    assert (facts["OMP_NUM_THREADS"], facts["OMP_WAIT_POLICY"]) == ("4", "PASSIVE")
    assert int(facts["free_cores"]) >= 1


COUNTED = """
import os
from mlx_peft.cli.process import prepared
with prepared():
    import torch
    print(torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
"""


def test_pytorch_takes_what_was_settled() -> None:
    given = {"PATH": os.defpath, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, env=given)
    taken, settled = map(int, done.stdout.split())
    assert taken == settled >= 1
