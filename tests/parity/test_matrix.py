"""The parity matrix: what ``mlx-peft parity`` prints, each cell a test.

A cell is compared with MLX's operations one by one: ``test_compiled.py`` has the ways in which a step is compiled. The
whole matrix, which is slow, is compiled.
"""

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

from mlx_peft.checks import parity
from mlx_peft.config.methods import Method

SHORT = "vit_tiny_patch16_224"

COMPILED = ("lora", "adalora")
"""A step that is compiled as one, and one that hands out scores besides."""

FULLY = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_dinov2")
"""Models that go through a trajectory under every method."""


def check(model, method, bits=None, steps=True):
    (cell,) = parity.cells([model], [method], [bits], steps=steps)
    assert cell.logits <= parity.LOGITS
    assert cell.merged is None or cell.merged <= parity.LOGITS
    assert cell.loss <= parity.LOGITS
    assert cell.gradients <= parity.GRADIENTS, cell.worst
    assert (cell.trajectory is not None) == (steps and parity.METHODS[method].qat is None)
    assert cell.trajectory is None or cell.trajectory <= parity.TRAJECTORY
    assert not cell.masks
    return cell


@pytest.mark.parametrize("method", parity.PLAIN_METHODS)
def test_backends_agree_under_every_method(method, monkeypatch):
    """On one model, cut to three blocks and sixteen patches: what a method does, it does in every block and row."""
    monkeypatch.setitem(parity.MODELS, SHORT, {"image_size": 64, "args": {"depth": 3}})
    check(SHORT, method)


@pytest.mark.parametrize("model", parity.MODELS)
def test_backends_agree_on_every_model(model):
    """Steps of whole models, which take longest, are compared in the matrix below."""
    check(model, "lora", steps=False)


@pytest.mark.parametrize("method", COMPILED)
def test_backends_agree_when_mlx_compiles(method, monkeypatch, compiled):
    monkeypatch.setitem(parity.MODELS, SHORT, {"image_size": 64, "args": {"depth": 3}})
    check(SHORT, method)


@pytest.mark.parametrize("bits", parity.BITS)
@pytest.mark.parametrize("method", parity.QUANTIZED_METHODS)
def test_backends_agree_over_quantised_bases(method, bits, monkeypatch):
    monkeypatch.setitem(parity.MODELS, SHORT, {"image_size": 64, "args": {"depth": 2}})
    check(SHORT, method, bits)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("bits", parity.BITS)
@pytest.mark.parametrize("method", parity.QUANTIZED_METHODS)
@pytest.mark.parametrize("model", parity.QUANTIZED_MODELS)
def test_backends_agree_in_the_whole_quantised_matrix(model, method, bits):
    """Steps over codes are compared on the small model, above."""
    check(model, method, bits, steps=False)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("model", parity.MODELS)
@pytest.mark.parametrize("method", parity.PLAIN_METHODS)
def test_backends_agree_in_the_whole_matrix(model, method):
    check(model, method, steps=model in FULLY)


def test_every_method_has_a_row():
    every = {kind.model_fields["name"].default for kind in Method.__origin__.__args__}
    assert {row.partition("-")[0] for row in parity.METHODS} == every


def test_only_what_cannot_be_merged_has_no_merged_logits(monkeypatch):
    monkeypatch.setitem(parity.MODELS, SHORT, {"image_size": 32, "args": {"depth": 2}})
    cells = parity.cells([SHORT], ["vpt", "ia3"])
    assert [cell.merged is None for cell in cells] == [True, False]
