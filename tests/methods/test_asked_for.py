"""What a step asks of PyTorch: nothing waits for the device, and attention is a flash kernel's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from methods.test_compiled_steps import ADALORA, CLASSES, LORA, experiment
from torch.utils._python_dispatch import TorchDispatchMode

from convert.base import load_base
from torch_ref.entry import build_trainer
from torch_ref.methods.lora import LoRALinear
from torch_ref.models.layers import Linear

READ = torch.ops.aten._local_scalar_dense.default
"""What ``item``, ``float``, ``int`` and ``bool`` of a tensor call: on a device, each waits for all before it."""
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
COPIES = ("cpu", "numpy", "tolist")


class Asked(TorchDispatchMode):
    """Notes every operation with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    def of(self, function: Any) -> list[tuple[Any, ...]]:
        return [args for called, args, _ in self.calls if called is function]


def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (8, 28, 28, 3), np.uint8), random.integers(0, CLASSES, 8, np.int32)


def forbidden(name: str) -> Callable[..., None]:
    def copy(*_: object, **__: object) -> None:
        raise AssertionError(f"a step called {name}, which waits for the device")

    return copy


STEPS = {
    "float32": (LORA, {}),
    "float16, in parts, clipped": (LORA, {"precision": "float16", "accumulate": 2, "clip_norm": 1.0}),
    "AdaLoRA in float16": (ADALORA, {"precision": "float16"}),
    "SGD": (LORA, {"optimizer": {"name": "sgd", "momentum": 0.9}}),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_waits_for_nothing_that_it_computes(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    method, train = STEPS[case]
    config = experiment(method, train)
    trainer = build_trainer(config, CLASSES, load_base(config.model, CLASSES, 0))
    keep = {name: [True] * (len(own) - 1) + [False] for name, own in trainer.scores().items()}
    for name in COPIES:
        monkeypatch.setattr(torch.Tensor, name, forbidden(name))
    with Asked() as asked:
        for _ in range(2):
            loss = trainer.train_step(*batch(), 1e-3, observe=True)
            trainer.mask(keep)
        assert asked.of(READ) == []
        float(loss)
        assert len(asked.of(READ)) == 1  # so that a read is seen


def test_attention_in_half_precision_is_a_flash_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes no mask, half precision alone, and q, k and v as they lie in the product that made them."""
    config = experiment(LORA, {"precision": "bfloat16"})
    trainer = build_trainer(config, CLASSES, load_base(config.model, CLASSES, 0))
    with Asked() as asked:
        trainer.train_step(*batch(), 1e-3)
    (call,) = asked.of(FLASH)
    q, k, v = call[:3]
    assert {tensor.dtype for tensor in (q, k, v)} == {torch.bfloat16}
    assert len({tensor.untyped_storage().data_ptr() for tensor in (q, k, v)}) == 1
    assert [tensor.stride(-1) for tensor in (q, k, v)] == [1, 1, 1]
    assert call[5:] == ()  # neither mask nor scale


def test_an_update_smaller_than_a_rounding_of_the_weight_counts_in_half_precision() -> None:
    """What a layer gives changes by as much as in float32, on the mean: each number of it is rounded for itself."""
    generator = torch.Generator().manual_seed(0)
    base = Linear(64, 64)
    base.weight.data = torch.empty(64, 64).uniform_(0.5, 1, generator=generator).to(torch.bfloat16)
    A, B = (torch.randn(shape, generator=generator) for shape in ((2, 64), (64, 2)))
    B *= 2.0**-12 / (B @ A).abs().max()  # a rounding of a weight is up to 2^-9
    assert torch.equal((base.weight + B @ A).to(torch.bfloat16), base.weight)
    layer, x = LoRALinear(base, A, torch.zeros_like(B), 1.0), torch.randn(4096, 64, generator=generator).bfloat16()
    before = layer(x).float()
    layer.lora_B.data = B
    after, exact = layer(x), x.float() @ A.T @ B.T
    assert float(((after.float() - before) * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=0.05)
    after.float().sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32
