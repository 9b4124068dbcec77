"""PyTorch's step as one program: no part of it is left to Python, and it trains as the step that is not compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from halves import daily
from methods.adalora import METHOD as ADALORA
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.exc import CppCompileError

from convert.base import load_base
from mlx_peft.checks.matrix import METHODS, Combination
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from torch_ref import compiling
from torch_ref.entry import build_trainer
from torch_ref.trainer import Trainer

ROUNDING = 1e-6
"""The largest relative error of losses where the same kernels are called in the same order."""
FUSED = 1e-4
"""The same where kernels are made of several others, which adds up otherwise; four steps of training widen it."""
STEPS, CLASSES = 4, 5
MODEL = {"image_size": 32, "args": {"patch_size": 8, "embed_dim": 64, "num_heads": 2, "depth": 1}}
LORA = {"name": "lora", "rank": 2, "targets": ["qkv", "fc1"]}

TRACED: dict[str, Any] = {"backend": "eager", "fullgraph": True, "dynamic": False}
"""The step is traced, where anything that torch leaves to Python is an error; its operations are called one by one."""
DIFFERENTIATED = TRACED | {"backend": "aot_eager"}
"""The backward pass is traced too."""
WHOLE = {"backend": "inductor", "fullgraph": True, "dynamic": False, "options": {"fallback_random": True}}
"""As users have it, which takes a C++ compiler half a minute."""


def experiment(method: dict[str, Any], train: dict[str, Any] | None = None, **more: Any) -> Experiment:
    return Experiment.model_validate({
        "backend": "torch", "method": method, "data": {"name": "digits", "batch_size": 8}, "train": train or {},
        "model": {"name": "vit_tiny_patch16_224", "weights": "none"} | MODEL,
    } | more)  # fmt: skip


def both(config: Experiment) -> tuple[Trainer, Trainer]:
    """The trainer of an experiment without and with a compiled step."""
    base = load_base(config.model, CLASSES, 0, config.quantize)
    plain, compiled = (
        config.model_copy(update={"train": config.train.model_copy(update={"compile": way})}) for way in (False, True)
    )
    return build_trainer(plain, CLASSES, base), build_trainer(compiled, CLASSES, base)


def must_train_alike(config: Experiment, tolerance: float, keep: Any = None) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
    targets = random.integers(0, CLASSES, 8, dtype=np.int32)
    losses = []
    for trainer in both(config):
        losses.append([])
        for number in range(STEPS):
            losses[-1].append(float(trainer.train_step(images, targets, 1e-2, observe=True)))
            if keep is not None and number == 1:
                trainer.mask(keep(trainer.scores()))
    assert losses[0][-1] != losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


DROPPED = experiment(
    LORA | {"dropout": 0.3}, {"accumulate": 2, "gradient_checkpointing": True, "precision": "bfloat16"}
)
"""In parts, and computed again in the backward pass, which must drop what was dropped: operations called one by one
would not, since torch leaves that to what makes the backward pass."""
FEWER = experiment(
    LORA, {"precision": "float16"}, quantize={"bits": 8, "group_size": 32}, tokens={"name": "tome", "r": 4}
)
"""Over codes, with reducers, and first steps that overflow."""


@pytest.mark.parametrize(("config", "program"), [
    pytest.param(DROPPED, DIFFERENTIATED, id="dropped", marks=pytest.mark.slow),
    pytest.param(FEWER, TRACED, id="fewer"),
])  # fmt: skip
def test_a_step_is_traced_without_a_break_and_trains_alike(
    monkeypatch: pytest.MonkeyPatch, config: Experiment, program: dict[str, Any]
) -> None:
    monkeypatch.setattr(compiling, "PROGRAM", program)
    must_train_alike(config, ROUNDING)


def failing(*_: Any) -> Any:
    raise CppCompileError(["g++"], "no such header: Python.h")


BROKEN = {
    "forwards": failing,
    "backwards": aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=failing),
}
"""Compilers that fail."""


@pytest.mark.parametrize("where", daily(BROKEN, "backwards"))
def test_where_the_compiler_fails_the_step_is_computed_uncompiled_and_is_the_same(where: str) -> None:
    """The same draws, and no gradient twice."""
    config = experiment(LORA | {"dropout": 0.3}, {"accumulate": 2})
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
    targets = np.arange(8, dtype=np.int32) % CLASSES
    plain, broken = (build_trainer(config, CLASSES, load_base(config.model, CLASSES, 0)) for _ in range(2))
    broken._loss = compiling.torch.compile(broken.loss, backend=BROKEN[where], dynamic=False)
    with pytest.warns(UserWarning, match=r"torch cannot compile the step, .* uncompiled .*compile error"):
        first = float(broken.train_step(images, targets, 1e-2))
    assert first == float(plain.train_step(images, targets, 1e-2))
    assert float(broken.train_step(images, targets, 1e-2)) == float(plain.train_step(images, targets, 1e-2)) != first


def test_a_step_that_was_to_be_compiled_and_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "PROGRAM", {"backend": failing})
    config = experiment(LORA, {"compile": True})
    trainer = build_trainer(config, CLASSES, load_base(config.model, CLASSES, 0))
    with pytest.raises(UserError, match=r"train\.compile: true: torch cannot compile the step .*compile error"):
        trainer.train_step(np.zeros((8, 28, 28, 3), np.uint8), np.zeros(8, np.int32), 1e-2)


def test_an_error_of_the_step_itself_stays_what_it_is() -> None:
    assert not compiling.is_at_fault(compiling.torch.OutOfMemoryError("CUDA out of memory"))
    assert not compiling.is_at_fault(ValueError("a shape"))


@pytest.mark.slow
def test_masked_triplets_stay_masked_in_a_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "PROGRAM", TRACED)
    half = lambda scores: {name: [i % 2 == 0 for i in range(len(own))] for name, own in scores.items()}  # noqa: E731
    must_train_alike(experiment(ADALORA, {"clip_norm": 1.0}), ROUNDING, half)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_traced_without_a_break_forwards_and_backwards(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(compiling, "PROGRAM", DIFFERENTIATED)
    over_codes = "loftq" in METHODS[method].options or method.startswith("qalora")
    deeper = MODEL | {"args": MODEL["args"] | {"depth": 2}}  # some methods are for the last two blocks
    config = Combination("vit_tiny_patch16_224", method, 8 if over_codes else None, deeper).experiment(0)
    must_train_alike(config.model_copy(update={"backend": "torch"}), ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokens", [{"name": "evit", "keep": 0.5, "blocks": [0]}, {"name": "dyt"}], ids=lambda t: t["name"]
)
def test_every_reducer_is_traced_without_a_break(monkeypatch: pytest.MonkeyPatch, tokens: dict[str, Any]) -> None:
    monkeypatch.setattr(compiling, "PROGRAM", DIFFERENTIATED)
    two = {"name": "vit_tiny_patch16_224", "weights": "none"} | MODEL | {"args": MODEL["args"] | {"depth": 2}}
    must_train_alike(experiment(LORA, {"gradient_checkpointing": True}, tokens=tokens, model=two), ROUNDING)


@pytest.mark.slow
def test_the_program_that_users_have_trains_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "PROGRAM", WHOLE)
    must_train_alike(experiment(LORA | {"dropout": 0.3}, {"accumulate": 2, "gradient_checkpointing": True}), FUSED)


def test_a_step_is_compiled_where_it_is_asked_for_or_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(wanted: object, device: str) -> bool:
        def step() -> None: ...

        return compiling.compiled(step, compiling.torch.device(device), wanted) is not step

    monkeypatch.setattr(compiling, "missing", lambda device: None)
    assert [asked(wanted, "cpu") for wanted in (True, False, "auto")] == [True, False, False]
    assert [asked(wanted, "cuda") for wanted in (True, False, "auto")] == [True, False, True]
    monkeypatch.setattr(compiling, "missing", lambda device: "a C++ compiler (g++)")
    assert not asked("auto", "cuda")
    with pytest.raises(UserError, match=r"train\.compile: true needs a C\+\+ compiler"):
        asked(True, "cuda")
