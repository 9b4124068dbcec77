"""MLX's compiled functions take their arrays as arguments: what is loaded into a model compiles nothing again."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from convert.base import load_base
from mlx_peft.backend.model import Model
from mlx_peft.backend.models.block import Block
from mlx_peft.backend.models.stochastic import current_key
from mlx_peft.backend.trainer import Trainer
from mlx_peft.config.schema import Experiment

SIZE, CLASSES = 16, 5
IMAGES = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
TARGETS = np.array([0, 1, 2, 4], np.int32)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 2},
    "with kept tensors": {"name": "vera", "rank": 4},
    "full": {"name": "full"},
}


def trainer(method: str, **train: Any) -> Trainer:
    model = {
        "name": "vit_tiny_patch16_224", "weights": "none", "image_size": SIZE,
        "args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    }  # fmt: skip
    experiment = Experiment.model_validate(
        {"model": model, "method": METHODS[method], "data": {"name": "digits", "batch_size": 4}, "train": train}
    )
    return Trainer(experiment, CLASSES, load_base(experiment.model, CLASSES, 0))


def adapters(model: Model, count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    start = sorted(model.adapter().items())
    return [{n: t + random.normal(0, 0.3, t.shape).astype(np.float32) for n, t in start} for _ in range(count)]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, compiled: None) -> list[str]:
    """One entry for each time that the network was traced; what is compiled already runs without it."""
    found: list[str] = []
    forward = Model.forward

    def traced(self: Model, inputs: mx.array) -> mx.array:
        found.append("training" if self.network.training else "evaluation")
        return forward(self, inputs)

    monkeypatch.setattr(Model, "forward", traced)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_another_adapter_is_answered_with_by_what_is_compiled(method: str, traces: list[str]) -> None:
    model = trainer(method).model
    first, second = adapters(model, 2)
    answers = []
    for tensors in (first, second, first):
        model.load_adapter(dict(reversed(tensors.items())))  # in whatever order a file has them
        answers.append(model.logits(IMAGES))
    assert traces == ["evaluation"]
    np.testing.assert_array_equal(answers[0], answers[2])
    assert not np.allclose(answers[0], answers[1])
    model.load_adapter({name: tensor.astype(np.float64) for name, tensor in second.items()})
    np.testing.assert_array_equal(model.logits(IMAGES), answers[1])
    model.load_adapter({name: tensor.astype(np.float16) for name, tensor in second.items()})
    model.logits(IMAGES)
    assert traces == ["evaluation"] and {tensor.dtype for tensor in model.trained.values()} == {mx.float32}
    mx.disable_compile()
    model.load_adapter(second)
    np.testing.assert_allclose(model.logits(IMAGES), answers[1], rtol=1e-4, atol=1e-5)  # by the order of some sums


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_state_is_trained_on_by_what_is_compiled(method: str, parts: int, traces: list[str]) -> None:
    one, other = trainer(method, accumulate=parts), trainer(method)
    one.train_step(IMAGES, TARGETS, 1e-2)
    state = one.state()
    losses = [float(one.train_step(IMAGES, TARGETS, 1e-2))]
    one.load_state(dict(reversed(state.items())))
    losses.append(float(one.train_step(IMAGES, TARGETS, 1e-2)))
    assert traces == ["training"]
    assert losses[0] == losses[1]
    assert one.model.adapter().keys() == other.model.adapter().keys()


def untouched(model: Model) -> bool:
    """Whether the network has the very arrays that the model holds."""
    there, held = dict(tree_flatten(model.network.parameters())), model.frozen | model.trained
    return there.keys() == held.keys() and all(there[name] is array for name, array in held.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tracing_leaves_nothing_of_its_own_in_the_network(checkpointing: bool, traces: list[str]) -> None:
    """Neither the arrays lent to it, nor those of a block that is computed again in the backward pass."""
    one = trainer("lora", gradient_checkpointing=checkpointing)
    for act in (
        lambda: one.train_step(IMAGES, TARGETS, 1e-2),
        lambda: one.model.logits(IMAGES),
        lambda: one.loss_and_gradients(IMAGES, TARGETS),
    ):
        act()
        assert untouched(one.model)
    mx.eval(one.model.network.parameters())


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_error_while_tracing_leaves_nothing_either(
    checkpointing: bool, compiling: bool, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first block, in the second, and in the backward pass, in which blocks are computed again."""
    one, feed = trainer("lora", gradient_checkpointing=checkpointing), Block.feed
    held = dict(one.model.frozen | one.model.trained)
    if not compiling:
        mx.disable_compile()
    for last in (1, 2, *([3] if checkpointing else [])):
        for act in (
            *([lambda: one.model.logits(IMAGES)] if last < 3 else []),
            lambda: one.loss_and_gradients(IMAGES, TARGETS),
            lambda: one.train_step(IMAGES, TARGETS, 1e-2),
        ):
            calls: list[mx.array] = []

            def failing(self: Block, x: mx.array, last: int = last, calls: list[mx.array] = calls) -> mx.array:
                calls.append(x)
                if len(calls) == last:
                    raise RuntimeError("broken off")
                return feed(self, x)

            monkeypatch.setattr(Block, "feed", failing)
            with pytest.raises(RuntimeError, match="broken off"):
                act()
            assert untouched(one.model) and current_key() is None
            assert all(array is held[name] for name, array in (one.model.frozen | one.model.trained).items())
    assert one.step == 0
    monkeypatch.setattr(Block, "feed", feed)
    float(one.train_step(IMAGES, TARGETS, 1e-2))
