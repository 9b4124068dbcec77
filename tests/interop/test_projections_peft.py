"""What RandLoRA and PVeRA draw, as Hugging Face PEFT draws it: what all layers share, and PVeRA's noise."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import scipy.stats
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative

# isort: split
import mlx.core as mx
import mlx.nn as nn
from interop.tuners import EVERYWHERE
from interop.vera_ia3 import IMAGES, LABELS, build, moved, trained_by_peft

import mlx_peft.backend.methods.pvera
import mlx_peft.backend.models.stochastic
import torch_ref.methods.pvera
import torch_ref.models.stochastic
from mlx_peft.adaptation.projections import bases, projections
from mlx_peft.config.methods import RandLoRA

DRAWS = {"mlx": mlx_peft.backend.models.stochastic, "torch": torch_ref.models.stochastic}
PVERA = {"name": "pvera", "rank": 6, "targets": ["q", "v", "fc1"]}
STEP = 1e-4
"""Relative, of one step of two backends: float32, and twice as many operations for a gradient as for logits."""


@pytest.mark.parametrize("kind", ["uniform", "sparse", "very_sparse"])
@pytest.mark.parametrize(
    ("key", "rank", "inputs", "outputs"),
    [(0, 7, 24, 72), (3, 32, 384, 1152), (2**32 + 5, 6, 99, 99), (9, 40, 96, 24)],
)
def test_the_bases_of_randlora_are_pefts_bit_for_bit(kind, key, rank, inputs, outputs):
    layer = torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
    options = {"sparse": kind == "sparse", "very_sparse": kind == "very_sparse"}
    config = peft.RandLoraConfig(r=rank, target_modules=["0"], projection_prng_key=key, **options)
    model = peft.get_peft_model(layer, config).base_model
    own = bases(RandLoRA(rank=rank, bases=kind, projection_key=key), min(inputs, outputs), max(inputs, outputs))
    for ours, theirs in zip(own, (model.randlora_A, model.randlora_B), strict=True):
        np.testing.assert_array_equal(ours, theirs["default"].numpy())


def test_the_projections_of_pvera_are_pefts_bit_for_bit():
    layer = torch.nn.Sequential(torch.nn.Linear(48, 144))
    model = peft.get_peft_model(layer, peft.PveraConfig(r=5, target_modules=["0"], projection_prng_key=11)).base_model
    for ours, theirs in zip(projections(11, 5, 48, 144, halves=2), (model.pvera_A, model.pvera_B), strict=True):
        np.testing.assert_array_equal(ours, theirs["default"].numpy())


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (
            lambda: peft.RandLoraConfig(r=5, target_modules=rf"{EVERYWHERE}(proj|fc1|fc2)", projection_prng_key=3),
            {"name": "randlora", "rank": 5, "targets": ["proj", "fc1", "fc2"], "projection_key": 3},
        ),
        (
            lambda: peft.PveraConfig(r=5, target_modules=rf"{EVERYWHERE}(proj|fc1|fc2)", projection_prng_key=3),
            {"name": "pvera", "rank": 5, "targets": ["proj", "fc1", "fc2"], "projection_key": 3},
        ),
    ],
    ids=["randlora", "pvera"],
)
def test_what_layers_of_several_sizes_share_is_pefts(config, method, backend, tmp_path):
    model, _ = trained_by_peft(config(), tmp_path)
    trainer, _ = build(backend, method)
    for name in ("A", "B"):
        theirs = getattr(model.base_model, f"{method['name']}_{name}")["default"].numpy()
        np.testing.assert_array_equal(trainer.model.adapter()[f"shared.{method['name']}_{name}"], theirs)


@pytest.mark.parametrize("library", DRAWS.values(), ids=DRAWS)
def test_what_is_sampled_is_normal_with_that_mean_and_variance(library):
    """Kolmogorov and Smirnov's test of 20,000 draws, seeded: it fails once in ten thousand seeds."""
    make = mx.full if library is DRAWS["mlx"] else torch.full
    mean, spread = make((20_000,), 3.0), make((20_000,), float(np.log(4.0)))
    with library.randomness(1):
        drawn = np.asarray(library.sampled(mean, spread, True))
        assert library.sampled(mean, spread, False) is mean
    assert library.sampled(mean, spread, True) is mean
    assert scipy.stats.kstest(drawn, scipy.stats.norm(3.0, 2.0).cdf).pvalue > 1e-4
    with library.randomness(1):
        np.testing.assert_array_equal(np.asarray(library.sampled(mean, spread, True)), drawn)


def noise(seed: int):
    """A stream of normal numbers for both backends and for PEFT."""
    stream = np.random.default_rng(seed)
    return lambda x: stream.standard_normal(tuple(x.shape)).astype(np.float32)


def given(monkeypatch, backend: str, seed: int) -> None:
    draw, wrapped = noise(seed), mx.array if backend == "mlx" else torch.from_numpy
    monkeypatch.setattr(DRAWS[backend], "normal", lambda x: wrapped(draw(x)))


def test_in_training_a_layer_of_pvera_is_pefts_given_the_same_noise(backend, monkeypatch):
    random = np.random.default_rng(0)
    dense = torch.nn.Linear(24, 36)
    config = peft.PveraConfig(r=5, target_modules=["0"])
    theirs = peft.get_peft_model(torch.nn.Sequential(dense), config).train().base_model.model[0]
    vectors = {"pvera_lambda_d": random.standard_normal(10), "pvera_lambda_b": random.standard_normal(36)}
    for name, values in vectors.items():
        getattr(theirs, name)["default"].data = torch.from_numpy(values.astype(np.float32))
    x = random.standard_normal((2, 3, 24)).astype(np.float32)
    draw = noise(1)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn_like", lambda x: torch.from_numpy(draw(x)))
        expected = theirs(torch.from_numpy(x)).detach().numpy()

    given(monkeypatch, backend, 1)
    wrapped = mx.array if backend == "mlx" else torch.from_numpy
    methods = mlx_peft.backend.methods if backend == "mlx" else torch_ref.methods
    linear = methods.vera.Linear(24, 36)
    linear.weight, linear.bias = (as_parameter(backend, p.detach().numpy()) for p in (dense.weight, dense.bias))
    shared = {"mlx": nn.Module, "torch": torch.nn.Module}[backend]()
    for name in ("pvera_A", "pvera_B"):
        setattr(shared, name, as_parameter(backend, getattr(theirs, name)["default"].numpy()))
    ours = methods.pvera.PVeRALinear(linear, shared, 0.1)
    for name, values in vectors.items():
        setattr(ours, name, as_parameter(backend, values.astype(np.float32)))
    with DRAWS[backend].randomness(0):
        found = ours(wrapped(x))
    found = np.asarray(found if backend == "mlx" else found.detach())
    assert relative(found, expected) < 1e-6
    answered = ours(wrapped(x))
    assert relative(np.asarray(answered if backend == "mlx" else answered.detach()), expected) > 0.1


def as_parameter(backend: str, values: np.ndarray):
    return mx.array(values) if backend == "mlx" else torch.nn.Parameter(torch.from_numpy(values.copy()))


def test_a_step_of_pvera_is_the_same_in_both_backends_given_the_same_noise(monkeypatch):
    ends, losses = [], []
    for backend in DRAWS:
        given(monkeypatch, backend, 2)
        trainer, _ = build(backend, PVERA)
        start = moved(trainer.model.adapter())
        trainer.model.load_adapter(start)
        quiet, _ = trainer.loss_and_gradients(IMAGES, LABELS)
        losses.append(float(trainer.train_step(IMAGES, LABELS, 1e-2)))
        assert abs(losses[-1] - quiet) > 1e-3  # so the noise does something
        ends.append({name: tensor - start[name] for name, tensor in trainer.model.adapter().items()})
    assert losses[0] == pytest.approx(losses[1], rel=STEP)
    for name, change in ends[0].items():
        if not name.startswith("shared"):
            assert np.abs(change).max() > 0
            assert relative(change, ends[1][name]) < 1e-2, name  # Adam's first step is the sign of the gradient
