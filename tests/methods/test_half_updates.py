"""A small update arrives in half precision: what it adds to a layer's 16-bit output is right in the mean.

An output is rounded to the next 16-bit number, and an update that is less than the distance between two of them moves
it there now and then. Whether as often as it should, one output cannot tell; the slope of all outputs' changes against
the exact update can: it is 1, where an update that is added to rounded outputs is lost, and leaves a slope near 0.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas

# isort: split
import mlx.core as mx
from comparing import relative
from halves import third_of
from mlx.utils import tree_flatten, tree_unflatten

import mlx_peft.backend.entry
import mlx_peft.backend.methods.targets
import mlx_peft.backend.models.stochastic
import torch_ref.entry
import torch_ref.methods.targets
import torch_ref.models.stochastic
from convert.base import load_base
from mlx_peft.backend.models.tokens import Tokens as MlxTokens
from mlx_peft.checks.precision import ROUND_OFF
from mlx_peft.config.schema import Experiment
from mlx_peft.vit.initial import normal
from torch_ref.models.tokens import Tokens as TorchTokens

NEAR = 0.1
"""How far a slope may be from 1. There are 293,760 outputs, or 97,920 inputs; where an update is 2^-d of the distance
between two 16-bit numbers, the deviation of a slope is about the root of 2^d over their number: 0.02 at most here."""
COARSE = 0.25
"""The same of magnitudes, whose change is alike in all rows: what it does is decided 288 times. And of a block, in
which what a first bottleneck changes is rounded anew by everything behind it."""
ROUNDINGS = 8
"""That a gradient in half precision may be off by, as ``checks.precision`` has it."""

WIDTH, ROWS = 96, (60, 17)
UPDATE = {"bfloat16": 2.0**-12, "float16": 2.0**-15}
"""Of an output's deviation: at most an eighth of the distance between two 16-bit numbers of that size."""

LAYER = "blocks.0.attn.qkv"
LAYERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "targets": ["qkv"]},
    "lora of parts": {"rank": 3, "targets": ["q", "v"], "rslora": True},
    "lora with dropout": {"rank": 8, "targets": ["qkv"], "dropout": 0.5},
    "lora over codes": {"rank": 3, "targets": ["qkv"]},
    "lora with pissa": {"rank": 3, "targets": ["qkv"], "init": "pissa"},
    "lora with magnitudes": {"rank": 3, "targets": ["qkv"], "dora": True},
    "lora with pissa and magnitudes": {"rank": 3, "targets": ["v"], "dora": True, "init": "pissa"},
    "lora with magnitudes and dropout": {"rank": 3, "targets": ["v"], "dora": True, "init": "pissa", "dropout": 0.5},
    "adalora": {"init_rank": 4, "target_rank": 2, "targets": ["qkv"]},
    "qalora": {"rank": 3, "targets": ["qkv"]},
    "vera": {"rank": 6, "targets": ["q", "v"]},
    "pvera": {"rank": 6, "targets": ["q", "v"]},
    "pvera with draws": {"rank": 6, "targets": ["q", "v"]},
    "fact": {"rank": 3, "dropout": 0.0},
    "fact with dropout": {"rank": 3, "dropout": 0.3},
    "loha": {"rank": 3, "targets": ["qkv"]},
    "lokr": {"rank": 3, "targets": ["qkv"]},
    "miss": {"rank": 16, "targets": ["qkv"]},
    "randlora": {"rank": 16, "targets": ["qkv"]},
}
BLOCKS: dict[str, dict[str, Any]] = {
    "adaptformer": {"bottleneck": 6},
    "adapter_plus": {"bottleneck": 6},
    "houlsby": {"bottleneck": 6},
    "convpass": {"bottleneck": 6},
}
METHODS = LAYERS | BLOCKS
OVER_CODES = {"lora over codes", "qalora"}
DRAWN = {case for case, options in METHODS.items() if options.get("dropout")} | {"pvera with draws"}
"""Both precisions draw the same."""


class Torch:
    """What a test does with a layer or a block of one backend."""

    entry, stochastic = torch_ref.entry, torch_ref.models.stochastic

    def array(self, values: np.ndarray, precision: str) -> Any:
        return torch.from_numpy(values.astype(np.float32)).to(getattr(torch, precision))

    def numbers(self, array: Any) -> np.ndarray:
        return array.detach().double().numpy()

    def function(self, network: Any, case: str) -> Any:
        if case in LAYERS:
            return torch_ref.methods.targets.find(network, LAYER)
        return lambda x: network.blocks[0](TorchTokens(x, network.architecture.places), network.positions).x

    def passed(self, network: Any, case: str, x: Any, cotangent: Any) -> tuple[Any, Any, dict[str, Any]]:
        """y, and the gradients of x and of what is trained."""
        network.zero_grad()
        x.requires_grad_()
        y = self.function(network, case)(x)
        y.backward(cotangent)
        return y, x.grad, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


class Mlx:
    """The same."""

    entry, stochastic = mlx_peft.backend.entry, mlx_peft.backend.models.stochastic

    def array(self, values: np.ndarray, precision: str) -> Any:
        return mx.array(values.astype(np.float32)).astype(getattr(mx, precision))

    def numbers(self, array: Any) -> np.ndarray:
        return np.array(array.astype(mx.float32), np.float64)

    def function(self, network: Any, case: str) -> Any:
        if case in LAYERS:
            return mlx_peft.backend.methods.targets.find(network, LAYER)
        return lambda x: network.blocks[0](MlxTokens(x, network.architecture.places), network.positions).x

    def passed(self, network: Any, case: str, x: Any, cotangent: Any) -> tuple[Any, Any, dict[str, Any]]:
        """y, and the gradients of x and of what is trained."""
        own = network.trainable_parameters()
        leaves = [array for _, array in tree_flatten(own)]

        def function(x: Any, *leaves: Any) -> Any:
            network.update(tree_unflatten(list(zip((name for name, _ in tree_flatten(own)), leaves, strict=True))))
            return self.function(network, case)(x)

        (y,), (dx, *gradients) = mx.vjp(function, [x, *leaves], [cotangent])
        network.update(own)
        return y, dx, dict(zip((name for name, _ in tree_flatten(own)), gradients, strict=True))


SIDES = {"torch": Torch(), "mlx": Mlx()}


class Passed(NamedTuple):
    """In float64."""

    y: np.ndarray
    dx: np.ndarray
    gradients: dict[str, np.ndarray]


class Trained:
    """A model of one block in a precision, whose biases are as large as what its products give."""

    def __init__(self, side: Any, case: str, precision: str) -> None:
        self.side, self.case, self.precision = side, case, precision
        codes = {"bits": 8, "group_size": 32} if case in OVER_CODES else None
        args = {"patch_size": 8, "embed_dim": WIDTH, "depth": 1, "num_heads": 3}
        experiment = Experiment.model_validate({
            "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": args},
            "method": {"name": case.split()[0], **METHODS[case]}, "quantize": codes,
            "data": {"name": "digits", "batch_size": 4}, "train": {"precision": precision},
        })  # fmt: skip
        base = load_base(experiment.model, 5, 0, experiment.quantize)
        biases = {n: normal(t.shape, 0.3, 0, n) for n, t in base.tensors.items() if n.endswith("qkv.bias")}
        self.model = side.entry.build_trainer(experiment, 5, replace(base, tensors=base.tensors | biases)).model
        self.start = self.model.adapter()

    def passed(self, size: float, given_in: str) -> Passed:
        """Of numbers of a precision, with the adapter moved so far from its start, in directions that are always the
        same; what a method keeps of its start stays."""
        self.model.load_adapter({
            name: tensor if "pissa" in name else tensor + size * normal(tensor.shape, 1, 0, name)
            for name, tensor in self.start.items()
        })  # fmt: skip
        widths = (WIDTH, 3 * WIDTH if self.case in LAYERS else WIDTH)
        rounded = (self.side.array(normal((*ROWS, width), 1, 0, str(width)), given_in) for width in widths)
        x, cotangent = (self.side.array(self.side.numbers(array), self.precision) for array in rounded)
        self.model.network.train()
        with self.side.stochastic.randomness(0) if self.case in DRAWN else nullcontext():
            y, dx, gradients = self.side.passed(self.model.network, self.case, x, cotangent)
        found = {name: self.side.numbers(gradient) for name, gradient in gradients.items()}
        return Passed(self.side.numbers(y), self.side.numbers(dx), {n: g for n, g in found.items() if g.any()})


def slope(changes: np.ndarray, exact: np.ndarray) -> float:
    return float((changes * exact).sum() / (exact * exact).sum())


@pytest.mark.parametrize(("backend", "precision", "case"), third_of(SIDES, UPDATE, METHODS))
def test_a_small_update_arrives_whole(backend: str, precision: str, case: str) -> None:
    half, wide = (Trained(SIDES[backend], case, which) for which in (precision, "float32"))
    before, size = wide.passed(0, precision), 1e-3
    for _ in range(3):
        after = wide.passed(size, precision)
        size *= UPDATE[precision] * before.y.std() / (after.y - before.y).std()
    after, start, end = wide.passed(size, precision), half.passed(0, precision), half.passed(size, precision)
    near = NEAR if case in LAYERS and "magnitudes" not in case else COARSE
    assert slope(end.y - start.y, after.y - before.y) == pytest.approx(1, abs=near)
    if case in LAYERS:
        assert slope(end.dx - start.dx, after.dx - before.dx) == pytest.approx(1, abs=near)
    assert end.gradients.keys() == after.gradients.keys()
    for name, gradient in after.gradients.items():
        assert relative(end.gradients[name], gradient) <= ROUNDINGS * ROUND_OFF[precision], name
