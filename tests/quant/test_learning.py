"""Training beside a quantised base: what is frozen, what is counted, what it computes, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from comparing import relative
from pydantic import ValidationError

from convert.base import load_base
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

ROUNDING = 1e-5
"""Relative, float32: the same products in another order, through two blocks."""

FOUR = {"bits": 4, "group_size": 32}
ADAPTING = [
    {"name": "lora", "targets": "all-linear"},
    {"name": "lora", "targets": ["q", "v"], "rslora": True},
    {"name": "lora", "dora": True, "targets": ["q", "v", "fc1"]},
    {"name": "lora", "init": "pissa"},
    {"name": "adalora"},
    {"name": "vera", "rank": 16},
    {"name": "ia3"},
    {"name": "fact"},
    {"name": "ssf"},
]


def near(a, b):
    return relative(a, b) <= ROUNDING


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ADAPTING, ids=str)
def test_dequantised_and_merged_it_gives_the_logits_that_training_saw(build, batch, described, method):
    trainer = build(method, FOUR)
    before = trainer.model.logits(batch[0])
    with pytest.raises(UserError, match="is quantised"):
        trainer.model.merged()
    assert np.array_equal(trainer.model.logits(batch[0]), before)
    tensors = trainer.model.merged(dequantize=True)
    assert np.array_equal(trainer.model.logits(batch[0]), before)  # as if nothing had been merged
    config = described({"name": "linear"})
    base = replace(load_base(config.model, 5, 0), tensors=tensors)
    assert near(type(trainer)(config, 5, base).model.logits(batch[0]), before)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ADAPTING, ids=str)
def test_a_step_trains_the_adapter_and_leaves_the_base_alone(build, batch, method):
    trainer = build(method, FOUR)
    start, first = trainer.model.adapter(), float(trainer.train_step(*batch, 1e-2))
    losses = [first, *(float(trainer.train_step(*batch, 1e-2)) for _ in range(10))]
    assert losses[-1] < losses[0]
    moved = trainer.model.adapter()
    assert all(not np.array_equal(moved[n], start[n]) for n in start if not trainer.experiment.method.keeps(n))
    assert not any(name.endswith(("scales", "biases", ".weight")) and "head" not in name for name in moved)


def test_quantised_weights_are_what_the_layers_of_the_blocks_become(build):
    tensors = build({"name": "linear"}, FOUR).model.merged()
    plain = build({"name": "linear"}).model.merged()
    words = {name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.dtype == np.uint32}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert words == {f"blocks.{block}.{layer}" for block in range(2) for layer in layers}
    assert tensors["blocks.0.attn.qkv.weight"].shape == (192, 64 * 4 // 32)
    assert tensors["blocks.0.mlp.fc2.scales"].shape == tensors["blocks.0.mlp.fc2.biases"].shape == (64, 256 // 32)
    stay = plain.keys() - {f"{layer}.weight" for layer in words} - {"head.weight", "head.bias"}
    assert all(np.array_equal(tensors[name], plain[name]) for name in stay)


def test_parameters_are_counted_as_if_nothing_were_quantised(build):
    method = {"name": "lora", "rank": 4}
    assert build(method, {"bits": 3, "group_size": 64}).model.parameters == build(method).model.parameters


def test_features_before_the_first_trained_block_may_be_kept(build, batch):
    trainer = build({"name": "lora", "blocks": [1]}, FOUR)
    assert trainer.model.prefix.end == 1
    assert near(trainer.model.logits(trainer.model.features(batch[0])), trainer.model.logits(batch[0]))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_leaves_the_codes_alone(build, batch, precision):
    half, whole = (build({"name": "lora"}, FOUR, precision=p) for p in (precision, "float32"))
    exact = whole.model.logits(batch[0])
    error = relative(half.model.logits(batch[0]), exact)
    assert 0 < error < 0.05
    assert np.isfinite(float(half.train_step(*batch, 1e-3)))
    codes = "blocks.0.mlp.fc1.weight"
    plain = [build({"name": "linear"}, FOUR, precision=p).model.merged()[codes] for p in (precision, "float32")]
    assert np.array_equal(*plain)


def test_gradient_checkpointing_changes_no_gradient(build, batch):
    method = {"name": "lora", "dora": True}
    (_, plain), (_, again) = (
        build(method, FOUR, gradient_checkpointing=on).loss_and_gradients(*batch) for on in (False, True)
    )
    assert all(near(again[name], plain[name]) for name in plain)


def test_codes_are_not_trained_but_biases_and_norms_may_be(build, batch):
    with pytest.raises(UserError, match=r"method full trains blocks\.0\.attn\.qkv\.weight.*codes have no gradient"):
        build({"name": "full"}, FOUR)
    for name, suffix in (("bitfit", "attn.qkv.bias"), ("layernorm", "norm1.weight")):
        trainer = build({"name": name}, FOUR)
        before = trainer.model.adapter()[f"blocks.0.{suffix}"]
        trainer.train_step(*batch, 1e-2)
        assert not np.array_equal(trainer.model.adapter()[f"blocks.0.{suffix}"], before)
        merged = trainer.model.merged()  # what stays quantised needs no leave
        assert merged["blocks.0.attn.qkv.weight"].dtype == np.uint32
        assert np.array_equal(merged[f"blocks.0.{suffix}"], trainer.model.adapter()[f"blocks.0.{suffix}"])


def test_a_group_that_divides_no_width_is_refused_with_those_that_fit(described):
    tiny = Model(name="vit_tiny_patch16_224", weights="none")
    with pytest.raises(UserError) as error:
        load_base(tiny, 5, 0, Quantization(bits=4, group_size=128))
    assert str(error.value) == (
        "quantize.group_size: 128 does not divide the inputs of qkv (width 192), proj (width 192), fc1 (width 192); "
        "groups of 32 or 64 fit every layer"
    )
    narrow = described({"name": "linear"}, model={"args": {"patch_size": 8, "embed_dim": 48, "num_heads": 3}})
    with pytest.raises(UserError, match="no group fits every layer"):
        load_base(narrow.model, 5, 0, Quantization(bits=4))


@pytest.mark.parametrize(
    ("quantize", "wrong"), [({"bits": 7}, "bits"), ({"bits": 4, "group_size": 16}, "group_size"), ({}, "bits")]
)
def test_other_bits_and_groups_are_no_configuration(described, quantize, wrong):
    with pytest.raises(ValidationError, match=rf"quantize\.{wrong}"):
        described({"name": "lora"}, quantize)


def test_an_experiment_is_not_quantised_unless_it_says_so(described):
    assert described({"name": "lora"}).quantize is None
    assert Quantization(bits=4).group_size == 64
