"""The learning rate: its ends, its shape, its warm-up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.config.schema import Schedule
from mlx_peft.training.schedule import learning_rate

NAMES = ("constant", "linear", "cosine")


def rates(name: str, warmup: float, steps: int) -> list[float]:
    return [learning_rate(step, steps, 0.5, Schedule(name=name, warmup=warmup)) for step in range(steps)]


@pytest.mark.parametrize("name", NAMES)
def test_without_warmup_the_first_step_has_the_full_rate(name: str) -> None:
    assert rates(name, 0.0, 10)[0] == 0.5


def test_warmup_rises_in_equal_steps_to_the_peak_that_the_first_step_after_it_has() -> None:
    assert rates("constant", 0.4, 10) == pytest.approx([0.1, 0.2, 0.3, 0.4, *[0.5] * 6])


def test_linear_falls_in_equal_steps_to_zero_after_the_last() -> None:
    assert rates("linear", 0.0, 5) == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_is_at_half_of_the_peak_halfway_through_its_decay() -> None:
    assert rates("cosine", 0.2, 10)[2:7:4] == pytest.approx([0.5, 0.25])


@settings(max_examples=50)
@given(st.sampled_from(NAMES), st.floats(0, 0.99), st.integers(1, 300))
def test_every_step_has_a_rate_above_zero_and_none_above_the_peak(name: str, warmup: float, steps: int) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(name, warmup, steps))


@settings(max_examples=50)
@given(st.sampled_from(NAMES), st.floats(0, 0.99), st.integers(1, 300))
def test_the_rate_rises_during_the_warmup_and_never_after_it(name: str, warmup: float, steps: int) -> None:
    found = rates(name, warmup, steps)
    turn = round(warmup * steps)
    assert found[:turn] == sorted(found[:turn])
    assert found[turn:] == sorted(found[turn:], reverse=True)
