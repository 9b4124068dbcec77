"""AdamW's step against its equations in float64: right to float32's rounding at every beta and every step."""

import math

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas

# isort: split
import mlx.core as mx

import mlx_peft.backend.training
import torch_ref.training
from mlx_peft.config.rates import Rates
from mlx_peft.config.schema import Train

NAME, LR, EPS, WIDTH = "norm.weight", 1e-2, 1e-8, 16
ROUNDING = 1e-6
"""Relative, float32: some ten operations of 6e-8 each, on positive numbers, so that nothing cancels."""

BETAS = [(0.9, 0.999), (0.9, 0.999999), (0.999, 0.9999999), (0.5, 0.99999999), (0.0, 0.999), (0.0, 0.0)]
STEPS = [1, 2, 10, 1000, 10**6, 2**24 - 1, 2**24 + 1, 2**25 + 11]
"""In float32, 2^24 + 1 is 2^24."""


def moments(step: int, betas: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A gradient, and the moments before the step, of gradients of the same size."""
    random = np.random.default_rng(step)
    m, v = ((1 - beta ** (step - 1)) * random.uniform(0.5, 1, WIDTH) for beta in betas)
    return random.uniform(0.5, 1, WIDTH).astype(np.float32), m.astype(np.float32), v.astype(np.float32)


def expected(g: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, betas: tuple[float, float]) -> np.ndarray:
    """What is taken from a parameter: Kingma and Ba 2015, algorithm 1, in float64."""
    g, m, v = (x.astype(np.float64) for x in (g, m, v))
    corrections = [-math.expm1(step * math.log(beta)) if beta else 1.0 for beta in betas]
    m, v = (beta * old + (1 - beta) * new for beta, old, new in zip(betas, (m, v), (g, g * g), strict=True))
    return LR * (m / corrections[0]) / (np.sqrt(v / corrections[1]) + EPS)


def ours(config: Train, g: np.ndarray, m: np.ndarray, v: np.ndarray, steps: int) -> np.ndarray:
    """The same of the MLX backend."""
    parameters = {NAME: mx.zeros(WIDTH)}
    update = mlx_peft.backend.training.Update(config, parameters, Rates(None))
    slots = update.initial_slots(parameters)
    (group,) = slots
    slots[group] |= {"step": mx.array(steps, mx.uint64), NAME: {"m": mx.array(m), "v": mx.array(v)}}
    parameters, slots = update(parameters, slots, {NAME: mx.array(g)}, mx.array(LR))
    assert int(slots[group]["step"]) == steps + 1
    return -np.array(parameters[NAME])


def theirs(config: Train, g: np.ndarray, m: np.ndarray, v: np.ndarray, steps: int) -> np.ndarray:
    """The same of torch_ref."""
    parameter = torch.nn.Parameter(torch.zeros(WIDTH))
    update = torch_ref.training.Update(config, {NAME: parameter}, Rates(None))
    state = {"step": torch.tensor(float(steps)), "exp_avg": torch.tensor(m), "exp_avg_sq": torch.tensor(v)}
    update.load_state({f"slots.{NAME}.{slot}": value for slot, value in state.items()})
    parameter.grad = torch.tensor(g)
    update(LR)
    return -parameter.detach().numpy()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("backend", [ours, theirs], ids=["mlx", "torch"])
def test_bias_correction_is_right_at_every_beta_and_step(backend, betas, step):
    config = Train.model_validate({"optimizer": {"name": "adamw", "betas": betas, "eps": EPS, "weight_decay": 0.0}})
    arrays = moments(step, betas)
    moved = backend(config, *arrays, step - 1)
    np.testing.assert_allclose(moved, expected(*arrays, step, betas), rtol=ROUNDING)


def test_torchs_own_counters_do_not_stand_still():
    """Ten steps from 2^24, which one by one are none in float32: there it counts to the nearest even number."""
    betas = (0.9, 0.99999999)
    config = Train.model_validate({"optimizer": {"name": "adamw", "betas": betas, "weight_decay": 0.0}})
    parameter = torch.nn.Parameter(torch.zeros(WIDTH))
    update = torch_ref.training.Update(config, {NAME: parameter}, Rates(None))
    ones = torch.ones(WIDTH)
    update.load_state(
        {f"slots.{NAME}.{slot}": ones.clone() for slot in ("exp_avg", "exp_avg_sq")}
        | {f"slots.{NAME}.step": torch.tensor(2.0**24)}
    )
    for _ in range(10):
        parameter.grad = ones.clone()
        update(LR)
    assert float(update.optimizer.state[parameter]["step"]) == pytest.approx(2**24 + 10, abs=2)
