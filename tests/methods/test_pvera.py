"""PVeRA on a ViT, of both backends: what it draws in a step, and that it draws nothing as it answers."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import relative
from methods.conftest import moved

METHOD = {"name": "pvera", "rank": 7, "targets": ["q", "v", "fc1"]}
SGD = {"optimizer": {"name": "sgd", "momentum": 0.0}}


def test_a_step_draws_the_same_twice_and_where_blocks_are_computed_again(build, batch):
    ends = []
    for train in (SGD, SGD, SGD | {"gradient_checkpointing": True}):
        trainer = build(METHOD, train=train)
        start = moved(trainer.model.adapter())
        trainer.model.load_adapter(start)
        quiet, _ = trainer.loss_and_gradients(*batch)
        losses = [float(trainer.train_step(*batch, 0.1)) for _ in range(2)]
        assert losses[0] != pytest.approx(quiet, rel=1e-4)
        ends.append(({n: t - start[n] for n, t in trainer.model.adapter().items() if "shared" not in n}, losses))
    for change, losses in ends[1:]:
        assert losses == pytest.approx(ends[0][1], rel=1e-6)
        for name, step in change.items():
            # The step is read off parameters of size 0.1: their last digit is 1e-8.
            np.testing.assert_allclose(step, ends[0][0][name], rtol=1e-3, atol=1e-7, err_msg=name)


def test_log_variances_are_trained_and_answers_do_not_depend_on_them(build, batch):
    trainer = build(METHOD, train=SGD)
    start = moved(trainer.model.adapter())
    trainer.model.load_adapter(start)
    float(trainer.train_step(*batch, 0.1))
    name = "blocks.1.mlp.fc1.pvera_lambda_d"
    assert (trainer.model.adapter()[name][7:] != start[name][7:]).all()
    trainer.model.load_adapter(start)
    answers = trainer.model.logits(batch[0])
    for changed, same in ((slice(7, None), True), (slice(7), False)):
        other = {n: t.copy() for n, t in start.items()}
        other[name][changed] += 1.0
        trainer.model.load_adapter(other)
        assert (relative(trainer.model.logits(batch[0]), answers) < 1e-6) == same


def test_half_precision_follows_float32_in_training_too(build, batch):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = build(METHOD, train=SGD | {"precision": precision})
        trainer.model.load_adapter(moved(trainer.model.adapter()))
        losses.append(float(trainer.train_step(*batch, 0.1)))
    assert losses[1] == pytest.approx(losses[0], rel=0.2)  # other draws' roundings: 8 bits
