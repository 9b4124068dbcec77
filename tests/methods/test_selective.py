"""BitFit and full fine-tuning, of all blocks or some: what moves, and how many parameters that is."""

import numpy as np
import pytest
from comparing import relative

from mlx_peft.config.methods import BitFit, Full
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import find
from mlx_peft.vit.shapes import shapes

ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

WIDTH, DEPTH, CLASSES = 48, 3, 5
HEAD = {"head.weight", "head.bias"}
SIZES = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def biases(inside: str) -> set[str]:
    """Those of the blocks whose numbers ``inside`` has."""
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return {f"blocks.{number}.{layer}.bias" for number in inside for layer in layers}


@pytest.mark.parametrize(
    ("method", "moving"),
    [
        ({"name": "bitfit"}, biases("012") | {"patch_embed.proj.bias", "norm.bias"}),
        ({"name": "bitfit", "blocks": "last 2"}, biases("12")),
        ({"name": "bitfit", "blocks": [0]}, biases("0")),
        ({"name": "full", "blocks": [-1]}, biases("2") | {name[:-4] + "weight" for name in biases("2")}),
        ({"name": "full", "blocks": [0, 2]}, biases("02") | {name[:-4] + "weight" for name in biases("02")}),
        ({"name": "linear"}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "moving",
)
def test_a_step_moves_what_was_selected_and_nothing_else(build, batch, method, moving):
    """Under a weight decay that would move every frozen matrix, were it let at them."""
    weights = build({"name": "full"}).model.adapter()
    trainer = build(method, train={"optimizer": {"name": "adamw", "weight_decay": 0.5}}, weights=weights)
    assert trainer.model.adapter().keys() == moving | HEAD
    float(trainer.train_step(*batch, 1e-2))
    after = trainer.model.merged()
    assert {name for name in weights if not np.array_equal(after[name], weights[name])} == moving | HEAD


def test_full_fine_tuning_moves_everything(build, batch):
    trainer = build({"name": "full"})
    start = trainer.model.adapter()
    float(trainer.train_step(*batch, 1e-2))
    after = trainer.model.adapter()
    assert start.keys() == shapes(trainer.model.base.architecture, CLASSES).keys()
    assert not [name for name in start if np.array_equal(after[name], start[name])]


@pytest.mark.parametrize(("blocks", "count", "outside"), [(None, DEPTH, 2), ("last 2", 2, 0), ([1], 1, 0)])
def test_trained_biases_are_the_closed_formula(build, blocks, count, outside):
    trainer = build({"name": "bitfit", "blocks": blocks})
    # norm1 1, qkv 3, proj 1, norm2 1, fc1 4, fc2 1 widths a block; patch embedding and last norm 1
    assert trainer.model.parameters.adapter == WIDTH * (11 * count + outside)
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)
    assert trainer.model.parameters.adapter + trainer.model.parameters.head == sum(
        t.size for t in trainer.model.adapter().values()
    )


@pytest.mark.parametrize(("blocks", "count"), [("last 2", 2), ([1], 1), ("0-2", 3)])
def test_full_fine_tuning_of_some_blocks_is_the_closed_formula(build, blocks, count):
    trainer = build({"name": "full", "blocks": blocks})
    assert trainer.model.parameters.adapter == count * (12 * WIDTH**2 + 13 * WIDTH)
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)


def test_published_count_of_biases_on_a_base_model():
    """102,912 without the head."""
    architecture = find("vit_base_patch16_224").architecture
    sizes = {name: int(np.prod(shape)) for name, shape in shapes(architecture, 1000).items()}
    assert sum(sizes[name] for name in BitFit().selected(architecture)) == 102_912


def test_without_biases_bitfit_has_those_of_the_norms_and_the_patch_embedding(build):
    trainer = build({"name": "bitfit"}, {"args": SIZES | {"qkv_bias": False, "proj_bias": False}})
    assert trainer.model.parameters.adapter == WIDTH * (2 * DEPTH + 2)


@pytest.mark.parametrize("method", [{"name": "bitfit"}, {"name": "full", "blocks": "last 2"}], ids=str)
def test_merging_gives_a_plain_model_with_the_same_logits(build, batch, away, method):
    trainer = build(method)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    plain = build({"name": "linear"}, weights=trainer.model.merged())
    np.testing.assert_array_equal(plain.model.logits(batch[0]), trainer.model.logits(batch[0]))


@pytest.mark.parametrize("method", [{"name": "bitfit"}, {"name": "full", "blocks": "last 2"}], ids=str)
def test_checkpointing_gives_the_same_gradients(build, batch, away, method):
    plain, recomputed = build(method), build(method, train={"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    gradients = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    assert all(gradients[1][name].any() for name in start)
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= ROUNDING


@pytest.mark.parametrize("method", [BitFit(blocks=(1,)), Full(blocks="last 1")], ids=lambda method: method.name)
def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved, method):
    trainer = build(method.model_dump())
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and f"Hugging Face PEFT has no method '{method.name}'" in notes[0]
    assert again.method == method
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))


@pytest.mark.parametrize("name", ["bitfit", "full"])
def test_a_block_that_the_model_lacks_is_refused(build, name):
    with pytest.raises(UserError, match="'last 4' is more than the model's 3 blocks"):
        build({"name": name, "blocks": "last 4"})
