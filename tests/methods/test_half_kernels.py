"""What a training step in half precision is made of in MLX, on a device: counted in the compiled step, before it runs.

A count is of one block among others: what a model of four blocks has more than one of three.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

# isort: split
import mlx.core as mx
from graphs import BARE_NORM, NORM, NORM_BACKWARD, PRODUCTS, Graph, a_device

from convert.base import load_base
from mlx_peft.config.methods import Method
from mlx_peft.config.schema import Experiment
from mlx_peft.core.sections import sections, variants
from mlx_peft.protocols.loading import load_backend

CLASSES, BATCH, SIZE = 5, 4, 32
LAYERS = ["qkv", "proj", "fc1", "fc2"]
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "bitfit": {"name": "bitfit"},
    "layernorm": {"name": "layernorm"},
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 4, "targets": LAYERS},
    "dora": {"name": "lora", "rank": 4, "targets": LAYERS, "dora": True},
    "adalora": {"name": "adalora", "targets": LAYERS},
}

IN_FLOAT32 = {"oft", "boft", "fact", "qalora"}
"""Rotations are near 1, where half precision has few numbers: inputs are turned in float32. FacT's factors are products
of smaller ones, in float32 too. QA-LoRA is of codes alone, and has kernels of its own."""
OTHERS = sorted(variants(sections(Method)).keys() - METHODS.keys() - IN_FLOAT32)

ATTENTION, ATTENTION_BACKWARD = 2, 4
"""Products: q k^T and p v; and a gradient for each of their factors."""
PRODUCTS_OF_A_LAYER = {
    "linear": 1,
    "bitfit": 1 + 1,  # forward, and back to x
    "layernorm": 1 + 1,
    "full": 1 + 2,  # and to W
    "lora": 2 + 5,  # A x, and W x + B A x in one; from g: g B, (g B) A, g W onto that, and the gradients of A and B
    "dora": 2 + 5 + 1,  # and W + B A, whose rows' norms are taken
    "adalora": 2 + 5,
}
OF_WEIGHTS = {"dora": len(LAYERS)}
"""Products in float32: of weights, in which a small update would be lost; none of activations is."""

FORWARD = Counter({"elementwise": 4, NORM: 2, "Softmax": 1})
"""Passes over activations: q / sqrt d, the activation function, and two sums with the residual stream."""
BACKWARD = Counter({"elementwise": 6, NORM_BACKWARD: 2, "Sum": 1, "Concatenate": 1})
"""The same backward, and two more for the softmax, beside its sum; the gradients of q, k and v are put together."""
CAST_AND_SUMMED = Counter({"elementwise": 1, "Sum": 1})
"""What the gradient of a bias takes: it is added up in float32."""


def times(number: int, passes: Counter[str]) -> Counter[str]:
    return Counter({name: number * count for name, count in passes.items()})


PASSES = {
    "linear": FORWARD,
    "bitfit": FORWARD + BACKWARD + times(len(LAYERS) + 2, CAST_AND_SUMMED),
    # The gradient of a norm's weight takes the norm without it, a product with that, and a sum, and shares the cast.
    "layernorm": FORWARD + BACKWARD + times(2, CAST_AND_SUMMED + Counter({BARE_NORM: 1, "elementwise": 1, "Sum": 1})),
    # What a product adds up in float32 are rows that have A x beside x: this is the pass that makes them. It is in the
    # place of a third product, which read W x and wrote the sum.
    "lora": FORWARD + BACKWARD + times(len(LAYERS), Counter({"Concatenate": 1})),
}
PASSES["full"] = PASSES["layernorm"] + times(len(LAYERS), CAST_AND_SUMMED)
# The gradient of E, in float32: A's times A, summed over the inputs. They are r rows, and no activations.
PASSES["adalora"] = PASSES["lora"] + times(len(LAYERS), Counter({"elementwise": 2, "Sum": 1}))

PENALTIES = {"adalora": 3 * (1 + 2)}
"""Products in float32: M M^T of all factors of one shape at once, and two backward; these layers' have three shapes."""


@cache
def step(method: str, depth: int, compiled: bool) -> tuple[Any, list[mx.array]]:
    """The trainer, and loss and gradients of a batch, of which nothing is computed."""
    args = {"patch_size": 8, "embed_dim": 64, "depth": depth, "num_heads": 2}
    model = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": SIZE, "args": args}
    experiment = Experiment.model_validate(
        {
            "model": model,
            "method": METHODS.get(method, {"name": method}),
            "data": {"name": "digits", "batch_size": BATCH},
            "train": {"precision": "bfloat16"},
        }
    )
    trainer: Any = load_backend("mlx").build_trainer(experiment, CLASSES, load_base(experiment.model, CLASSES, 0))
    function = trainer._gradients if compiled else trainer._loss_and_gradients
    with a_device():
        loss, gradients = function(
            trainer.model.frozen, trainer.model.trained, IMAGES, mx.zeros((BATCH,), mx.int32), mx.array(4.0),
            mx.array(1.0), mx.random.key(0),
        )  # fmt: skip
    return trainer, [loss, *gradients.values()]


IMAGES = mx.array(np.zeros((BATCH, SIZE, SIZE, 3), np.uint8))


def graph(method: str, depth: int, folder: Path) -> Graph:
    return Graph.of(folder / "step.dot", step(method, depth, True)[1], images=IMAGES)


@pytest.mark.parametrize("method", METHODS)
def test_a_block_has_the_products_and_the_passes_that_its_equations_have(
    method: str, compiled: None, tmp_path: Path
) -> None:
    less, more = (graph(method, depth, tmp_path) for depth in (3, 4))
    attention = ATTENTION + ATTENTION_BACKWARD * (method != "linear")
    assert more.products() - less.products() == attention + len(LAYERS) * PRODUCTS_OF_A_LAYER[method]
    if method in PASSES:
        assert more.passes("images") - less.passes("images") == PASSES[method]


def products(method: str, depth: int, folder: Path) -> list[set[str]]:
    """The types of numbers that each product takes."""
    trainer, results = step(method, depth, False)
    arrays = {f"p{number}": a for number, a in enumerate((trainer.model.frozen | trainer.model.trained).values())}
    known = {name: str(array.dtype).removeprefix("mlx.core.") for name, array in arrays.items()}
    drawn = Graph.of(folder / "step.dot", results, **arrays)
    return [taken for kernel, taken in drawn.types(known) if kernel.name in PRODUCTS]


@pytest.mark.parametrize("method", METHODS)
def test_every_product_of_activations_is_in_half_precision(method: str, tmp_path: Path) -> None:
    found = products(method, 4, tmp_path)
    wide = [taken for taken in found if taken != {"bfloat16"}]
    assert len(found) > 4 * len(LAYERS)
    assert len(wide) == 4 * OF_WEIGHTS.get(method, 0) + PENALTIES.get(method, 0)


@pytest.mark.parametrize("method", OTHERS)
def test_so_it_is_under_every_method_as_it_comes(method: str, tmp_path: Path) -> None:
    found = products(method, 2, tmp_path)
    assert len(found) > 2 * len(LAYERS)
    assert [taken for taken in found if taken != {"bfloat16"}] == []


@pytest.mark.parametrize("wrong", ["a float32 product", "a norm apart", "another pass"])
def test_what_should_not_be_there_is_counted(wrong: str, compiled: None, tmp_path: Path) -> None:
    x, weight = mx.ones((BATCH, 8, 8), mx.bfloat16), mx.ones((8, 8), mx.bfloat16)
    wide = mx.ones((8, 8))

    def right(x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, weight[0], weight[0], 1e-6) @ weight

    def ways(x: mx.array) -> mx.array:
        if wrong == "a float32 product":
            return right(x) @ wide
        if wrong == "a norm apart":
            return (mx.fast.layer_norm(x, None, None, 1e-6) * weight[0]) @ weight
        return (right(x) * 2) @ weight

    with a_device():
        graphs = [
            Graph.of(tmp_path / f"{n}.dot", [mx.compile(f)(x)], images=x, wide=wide)
            for n, f in enumerate((right, ways))
        ]
        (uncompiled,) = [Graph.of(tmp_path / "u.dot", [ways(x)], images=x, wide=wide, weight=weight)]
    passes = [one.passes("images") for one in graphs]
    if wrong == "a float32 product":
        known = {"images": "bfloat16", "weight": "bfloat16", "wide": "float32"}
        found = [taken for kernel, taken in uncompiled.types(known) if kernel.name in PRODUCTS]
        assert found == [{"bfloat16"}, {"float32"}]
    else:
        assert passes[0] != passes[1]


def test_a_step_is_asked_for_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = step("lora", 3, False)[0]

    def wait(*_: Any) -> None:
        raise AssertionError("it is waited for")

    monkeypatch.setattr(mx, "eval", wait)
    monkeypatch.setattr(mx, "synchronize", wait)
    loss = trainer.train_step(np.array(IMAGES), np.zeros(BATCH, np.int32), 1e-3)
    assert np.isfinite(float(loss)), "which is waited for here"
