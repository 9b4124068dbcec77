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


def test_what_is_trained_stays_in_float32_in_half_precision() -> None:
    config = experiment(LORA, {"precision": "bfloat16"})
    trainer = build_trainer(config, CLASSES, load_base(config.model, CLASSES, 0))
    trainer.train_step(*batch(), 1e-3)
    moments = [value for slots in trainer.update.optimizer.state.values() for value in slots.values()]
    trainer.loss_of(*batch(), 8).backward()
    gradients = [p.grad for p in trainer.model.trained.values()]
    assert {t.dtype for t in (*trainer.model.trained.values(), *moments, *gradients)} == {torch.float32}
    assert trainer.model.network.blocks[0].attn.qkv.base_layer.weight.dtype == torch.bfloat16
