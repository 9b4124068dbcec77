"""On a CPU, torch takes a step's rows through the network in several threads, each some of them."""

import numpy as np
import pytest
import torch
from comparing import relative

from torch_ref import threads

SUMMED = 2e-5
"""Relative, float32: the same gradients, added up in another order."""

SGD = {"optimizer": {"name": "sgd", "lr": 0.1}}
"""AdamW would make whole steps of gradients that are nothing but rounding, such as those of a key's bias."""

ENOUGH = (4, 1)
"""One image is enough for a thread."""

METHODS = {
    "lora": {"name": "lora", "rank": 2, "targets": ["qkv", "fc1"]},
    "adalora, whose penalty is of all rows": {"name": "adalora", "init_rank": 3, "target_rank": 2},
    "full": {"name": "full"},
}
DRAWING = {
    "dropout": ({"name": "lora", "rank": 2, "targets": ["qkv"], "dropout": 0.3}, None),
    "stochastic depth": ({"name": "lora", "rank": 2, "targets": ["qkv"]}, {"drop_path": 0.3}),
    "what a method samples": ({"name": "pvera", "rank": 4}, None),
}

pytestmark = pytest.mark.parametrize("build", ["torch"], indirect=True)


@pytest.fixture
def shared(monkeypatch):
    """Two threads, as on a machine with two cores; into how many parts rows were parted for them, each time."""
    before, beside, found = torch.get_num_threads(), threads.beside, []

    def spied(compute, own):
        found.append(len(own))
        return beside(compute, own)

    monkeypatch.setattr(threads, "beside", spied)
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(before)


def steps(trainer, batch, rows):
    """The losses of three steps, and what is trained after them."""
    trainer.model.rows = rows
    losses = [float(trainer.train_step(*batch, 0.1)) for _ in range(3)]
    return losses, trainer.model.adapter()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_two_threads_is_one_of_all_rows(build, batch, shared, method, accumulate):
    train = SGD | {"accumulate": accumulate}
    found = [steps(build(METHODS[method], train=train), batch, rows) for rows in (None, ENOUGH)]
    (losses, whole), (again, in_parts) = found
    assert shared == [2] * (3 * accumulate)
    assert losses == pytest.approx(again, rel=SUMMED)
    assert max(relative(in_parts[name], tensor) for name, tensor in whole.items()) <= SUMMED


def test_an_odd_number_of_rows_counts_each_once(build, batch, shared):
    odd = batch[0][:3], batch[1][:3]
    found = [steps(build(METHODS["full"], train=SGD), odd, rows) for rows in (None, ENOUGH)]
    (losses, whole), (again, in_parts) = found
    assert shared == [2] * 3
    assert losses == pytest.approx(again, rel=SUMMED)
    assert max(relative(in_parts[name], tensor) for name, tensor in whole.items()) <= SUMMED


@pytest.mark.parametrize("drawing", DRAWING)
def test_what_draws_takes_all_rows_at_once_and_the_same_numbers(build, batch, shared, drawing):
    method, model = DRAWING[drawing]
    (losses, whole), (again, others) = (steps(build(method, model), batch, rows) for rows in (None, ENOUGH))
    assert not shared
    assert losses == again
    assert all(np.array_equal(others[name], tensor) for name, tensor in whole.items())


def test_few_rows_of_a_small_model_are_left_to_all_threads(build, batch, shared):
    trainer = build(METHODS["lora"])
    assert trainer.model.rows[1] > len(batch[0])
    trainer.train_step(*batch, 1e-3)
    assert not shared
