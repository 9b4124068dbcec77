"""VeRA, (IA)^3 and LayerNorm tuning of both backends, opened by Hugging Face PEFT on timm's models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from comparing import relative
from foreign_models import prepared
from peft_reference import gradients, logits, opened
from safetensors.numpy import load_file

# isort: split

from interop.vera_ia3 import (
    DEIT,
    GRADIENTS,
    IA3,
    IMAGES,
    LABELS,
    LOGITS,
    VERA,
    A,
    B,
    build,
    moved,
    own,
    reread,
    written,
)

from convert.adapters.peft import read_adapter, write_adapter

CASES = {
    "vera q and v": (DEIT, VERA | {"targets": ["q", "v"]}),
    "vera k and wholes": (DEIT, VERA | {"targets": ["k", "fc2", "proj"], "projection_key": 5}),
    "vera wholes": (DEIT, VERA | {"targets": "all-linear", "d_initial": 0.2, "dropout": 0.1}),
    "vera distilled": ("deit_tiny_distilled_patch16_224", VERA | {"targets": ["q", "k", "v"]}),
    "vera one block": (DEIT, VERA | {"targets": ["v", "fc1"], "blocks": [-1]}),
    "vera swiglu": ("aimv2_large_patch14_224", VERA | {"targets": ["q", "fc1", "fc2"]}),
    "ia3": (DEIT, IA3),
    "ia3 q": (DEIT, IA3 | {"targets": ["q"], "feedforward": []}),
    "ia3 wholes": (DEIT, IA3 | {"targets": "all-linear", "feedforward": ["fc1", "fc2"]}),
    "ia3 distilled": ("deit_tiny_distilled_patch16_224", IA3),
    "ia3 one block": (DEIT, IA3 | {"blocks": [1]}),
    "ia3 swiglu": ("aimv2_large_patch14_224", IA3 | {"targets": "mlp"}),
    "layernorm": (DEIT, {"name": "layernorm"}),
    "layernorm distilled": ("deit_tiny_distilled_patch16_224", {"name": "layernorm"}),
    "layernorm one block": (DEIT, {"name": "layernorm", "blocks": "last 1"}),
    "layernorm before and pooling": ("vit_base_patch16_siglip_224", {"name": "layernorm"}),
    "layernorm root mean square": ("aimv2_large_patch14_224", {"name": "layernorm"}),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", CASES)
def test_peft_opens_ours_with_the_same_logits_gradients_and_merged_weights(case, backend, tmp_path):
    name, method = CASES[case]
    trainer, base = build(backend, method, name)
    before = trainer.model.logits(IMAGES)
    trainer.model.load_adapter(moved(trainer.model.adapter()))
    write_adapter(tmp_path / "adapter", written(trainer))
    model = opened(base, tmp_path / "adapter", trainable=True)
    expected = logits(model, prepared(IMAGES, base))
    assert relative(trainer.model.logits(IMAGES), expected) < LOGITS
    assert relative(before, expected) > 0.05  # so the adapter does something

    theirs = gradients(model, prepared(IMAGES, base), LABELS)
    _, ours = trainer.loss_and_gradients(IMAGES, LABELS)
    for key, gradient in ours.items():
        assert relative(gradient, own(theirs[key], key, trainer.experiment.method)) < GRADIENTS, key

    plain = {n.replace(".modules_to_save.default", ""): t for n, t in model.merge_and_unload().state_dict().items()}
    for key, tensor in trainer.model.merged().items():
        assert relative(tensor, plain[key].numpy()) < 1e-6, key


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_bit_for_bit(case, tmp_path):
    trainer, _ = build("torch", CASES[case][1], CASES[case][0])
    adapter = dataclasses.replace(written(trainer), tensors=moved(trainer.model.adapter()))
    write_adapter(tmp_path, adapter)
    again = read_adapter(tmp_path)
    assert dataclasses.replace(again, tensors={}) == dataclasses.replace(adapter, tensors={})
    assert again.tensors.keys() == adapter.tensors.keys()
    for key, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_peft_saved_again_is_the_same_model(case, tmp_path):
    name, method = CASES[case]
    trainer, base = build("torch", method, name)
    trainer.model.load_adapter(moved(trainer.model.adapter()))
    write_adapter(tmp_path / "ours", written(trainer))
    opened(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # else: the hub
    again, adapter = reread("torch", base, tmp_path / "theirs", name)
    assert relative(again.model.logits(IMAGES), trainer.model.logits(IMAGES)) < LOGITS
    if method["name"] != "vera":  # whose parts have become one of a higher rank
        both = (trainer.experiment.method, adapter.method)
        ours, theirs = (kind.model_dump(exclude={"blocks", "feedforward"}) for kind in both)
        assert ours == theirs
        assert again.model.parameters == trainer.model.parameters


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("layernorm", 2 * 24 * (2 * 2 + 1)),
        ("layernorm one block", 2 * 24 * 2),
        ("layernorm before and pooling", 2 * 24 * (2 * 2 + 2)),
        ("layernorm root mean square", 24 * (2 * 2 + 2)),
    ],
)
def test_layernorm_tuning_trains_weights_and_biases_of_the_norms(case, count):
    """Two norms a block and the last, and those of embedding or pooling; RMSNorm has no bias."""
    trainer, _ = build("torch", CASES[case][1], CASES[case][0])
    assert trainer.model.parameters.adapter == count


def test_what_peft_does_not_see_is_said(tmp_path):
    for method, parts in ((VERA | {"targets": ["q", "v", "fc1"]}, "q and v"), (IA3, "k and v")):
        trainer, _ = build("torch", method)
        (note,) = write_adapter(tmp_path / method["name"], written(trainer))
        assert f"to Hugging Face PEFT, what adapts {parts} is one adapter of the whole qkv" in note
    for method in (VERA | {"targets": ["qkv"]}, IA3 | {"targets": ["fc2"]}, {"name": "layernorm"}):
        trainer, _ = build("torch", method)
        assert write_adapter(tmp_path / "whole", written(trainer)) == []


def test_the_configuration_of_parts_is_that_of_one_larger_adapter(tmp_path):
    trainer, _ = build("torch", VERA | {"targets": ["q", "v", "fc2"], "blocks": [1]})
    write_adapter(tmp_path, written(trainer))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["save_projection"]) == (3 * 8, True)
    assert config["target_modules"] == r".*blocks\.(1)\..*\.(fc2|qkv)"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert (tensors[A].shape, tensors[B].shape) == ((24, 96), (72, 24))
    assert not tensors[B][24:48, :16].any(), "the rows of k are in no part's block"
    assert not tensors["base_model.model.blocks.1.mlp.fc2.vera_lambda_d"][:16].any()
