"""Where PEFT's LoRA starts from a layer's weight, or draws both factors: the tensors themselves."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from comparing import relative

from mlx_peft.adaptation.factors import halves, initial_factors
from mlx_peft.config.methods import LoRA
from mlx_peft.vit.sites import Site

SAME = 1e-6
"""Relative: PEFT's float32 beside float64 rounded to it."""

SHAPES = [(40, 24), (24, 40), (24, 24)]


def theirs(weight: np.ndarray, rank: int, init: str, rslora: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and the layer's weight as PEFT leaves it."""
    outputs, inputs = weight.shape
    host = torch.nn.Sequential()
    host.add_module("fc", torch.nn.Linear(inputs, outputs, bias=False))
    host.fc.weight.data = torch.from_numpy(weight.copy())
    torch.manual_seed(7)
    config = peft.LoraConfig(r=rank, lora_alpha=5, target_modules=["fc"], init_lora_weights=init, use_rslora=rslora)  # type: ignore[arg-type]
    layer = peft.get_peft_model(host, config).base_model.model.fc
    factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    A, B, W = (tensor.detach().numpy() for tensor in (*factors, layer.base_layer.weight))
    return A, B, W


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_olora_is_pefts(shape: tuple[int, int], rslora: bool) -> None:
    """Signs and all: a reflection's is no choice."""
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    method = LoRA(rank=6, alpha=5, init="olora", rslora=rslora)
    A, B = initial_factors(method, Site("blocks.0.mlp.fc1", *shape), weight, seed=0)
    expected_A, expected_B, expected_W = theirs(weight, 6, "olora", rslora)
    assert relative(A, expected_A) <= SAME and relative(B, expected_B) <= SAME
    assert relative(weight - method.scaling * B @ A, expected_W) <= SAME


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal_of_pefts_draw_is_pefts(shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    A, B, W = theirs(np.zeros(shape, np.float32), 6, "orthogonal")
    torch.manual_seed(7)
    torch.nn.Linear(inputs, 6, bias=False), torch.nn.Linear(6, outputs, bias=False)  # PEFT's A and B, which draw first
    draw = [torch.randn(size).double().numpy() for size in ((6, 6), (inputs, 3), (3, outputs))]
    found = halves(*draw)
    assert relative(found[0], A) <= SAME and relative(found[1], B) <= SAME
    assert not W.any()
