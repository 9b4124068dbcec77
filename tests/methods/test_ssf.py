"""SSF against timm's model with hooks; its merge against the equation; counts against the closed formula."""

import numpy as np
import pytest
import torch
from comparing import relative
from torch import nn

from mlx_peft.config.methods import SSF
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import find

LOGITS = 1e-5
"""Relative, float32: some hundred roundings of 1.2e-7 on the way through the blocks."""
ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""

WIDTH, DEPTH, CLASSES = 48, 3, 5
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}
MODELS = {
    "plain": {},
    "norms of q and k, average pooling": {
        "args": {"patch_size": 8, **SMALL, "qk_norm": True, "scale_attn_norm": True, "global_pool": "avg"}
    },
    "norm before the blocks": {
        "name": "vit_base_patch16_clip_224",
        "args": {"patch_size": 8, **SMALL},
    },
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "args": {"patch_size": 8, **SMALL}},
    "attention pooling": {"name": "vit_base_patch16_siglip_224", "args": {"patch_size": 8, **SMALL}},
    "layer scale and registers": {"name": "vit_small_patch14_reg4_dinov2", "args": {"patch_size": 8, **SMALL}},
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_layers_output_is_scaled_and_shifted(build, batch, away, timms, model):
    """Hooks on timm's own modules, found by their types: nothing here has a list of names."""
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build({"name": "ssf"}, model, weights=weights)
    tensors = away(trainer.model.adapter())
    trainer.model.load_adapter(tensors)
    reference, images = timms(trainer, weights | {n: t for n, t in tensors.items() if "head" in n}, batch[0])

    operations = [
        path
        for path, layer in reference.named_modules()
        if isinstance(layer, nn.Linear | nn.LayerNorm | nn.Conv2d) and path not in ("head", "head_dist")
    ]
    assert {name.removesuffix(".ssf_scale") for name in tensors if name.endswith("scale")} == set(operations)
    for path in operations:
        scale, shift = (torch.from_numpy(tensors[f"{path}.ssf_{kind}"]) for kind in ("scale", "shift"))

        def scaled(layer, _, output, scale=scale, shift=shift):
            if isinstance(layer, nn.Conv2d):
                return output * scale[:, None, None] + shift[:, None, None]
            return output * scale + shift

        reference.get_submodule(path).register_forward_hook(scaled)
    with torch.no_grad():
        expected = reference(images).numpy()
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS


def test_the_merged_weights_are_the_equations(build, away):
    weights = away(build({"name": "full"}).model.adapter())
    trainer = build({"name": "ssf"}, weights=weights)
    tensors = away(trainer.model.adapter())
    trainer.model.load_adapter(tensors)
    merged = trainer.model.merged()
    assert merged.keys() == weights.keys()
    for path in ("patch_embed.proj", "blocks.0.norm1", "blocks.2.attn.qkv", "blocks.1.mlp.fc2", "norm"):
        scale, shift = tensors[f"{path}.ssf_scale"], tensors[f"{path}.ssf_shift"]
        weight, bias = weights[f"{path}.weight"], weights[f"{path}.bias"]
        assert relative(merged[f"{path}.weight"], (weight.T * scale).T) <= ROUNDING
        assert relative(merged[f"{path}.bias"], bias * scale + shift) <= ROUNDING
    for name in ("cls_token", "pos_embed"):
        np.testing.assert_array_equal(merged[name], weights[name])


@pytest.mark.parametrize("method", [{}, {"blocks": "last 2"}], ids=str)
def test_merging_leaves_the_logits_and_the_model_alone(build, batch, away, method):
    weights = away(build({"name": "full"}).model.adapter())
    trainer = build({"name": "ssf"} | method, weights=weights)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    before = trainer.model.logits(batch[0])
    merged = trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    assert relative(build({"name": "linear"}, weights=weights).model.logits(batch[0]), before) > 1e-3
    plain = build({"name": "full"})
    plain.model.load_adapter(merged)
    assert relative(plain.model.logits(batch[0]), before) <= LOGITS


@pytest.mark.parametrize(
    ("args", "layer"),
    [
        ({"qkv_bias": False}, r"blocks\.0\.attn\.qkv has no bias.*2 other layers"),
        ({"norm_layer": "rmsnorm"}, r"blocks\.0\.norm1 has no bias.*6 other layers"),
        ({"qkv_bias": False, "depth": 1}, r"blocks\.0\.attn\.qkv has no bias, which alone could take the shift$"),
    ],
)
def test_a_layer_without_a_bias_refuses_the_merge_before_anything_is_changed(build, batch, away, args, layer):
    sizes = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    trainer = build({"name": "ssf"}, {"args": sizes | args})
    trainer.model.load_adapter(away(trainer.model.adapter()))
    before, names = trainer.model.logits(batch[0]), trainer.model.adapter().keys()
    with pytest.raises(UserError, match=layer):
        trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    assert trainer.model.adapter().keys() == names


def test_trained_parameters_are_the_closed_formula(build):
    trainer = build({"name": "ssf"})
    # norm1 1, qkv 3, proj 1, norm2 1, fc1 4, fc2 1 widths a block, patch embedding and last norm 1; two vectors each
    assert trainer.model.parameters.adapter == 2 * WIDTH * (11 * DEPTH + 2)
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)
    assert trainer.model.parameters.adapter + trainer.model.parameters.head == sum(
        t.size for t in trainer.model.adapter().values()
    )


def test_published_count_on_a_base_model():
    """205,824 without the head: the paper's table has 0.21 M."""
    assert 2 * sum(SSF().layers(find("vit_base_patch16_224").architecture).values()) == 205_824


def test_some_blocks_alone(build):
    trainer = build({"name": "ssf", "blocks": [-1]})
    layers = {name.rpartition(".")[0] for name in trainer.model.adapter()} - {"head"}
    assert layers == {
        f"blocks.2.{layer}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    }
    assert trainer.model.parameters.adapter == 2 * 11 * WIDTH


def test_the_norm_in_a_patch_embedding_and_the_one_after_pooling_count_like_every_other():
    architecture = find("vit_base_patch16_224").architecture
    plain = SSF().layers(architecture).keys()
    other = architecture.model_copy(update={"embed_norm": True, "global_pool": "avg"})
    assert SSF().layers(other).keys() ^ plain == {"patch_embed.norm", "fc_norm", "norm"}


def test_both_first_layers_of_a_swiglu(build):
    sizes = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    trainer = build({"name": "ssf"}, {"args": sizes | {"mlp_layer": "swiglu", "act_layer": "silu"}})
    assert {"blocks.0.mlp.fc1_g.ssf_scale", "blocks.0.mlp.fc1_x.ssf_scale"} <= trainer.model.adapter().keys()


def test_scales_start_around_one_and_shifts_around_zero(build):
    tensors = build({"name": "ssf"}).model.adapter()
    for kind, mean in (("scale", 1), ("shift", 0)):
        values = np.concatenate([t for name, t in tensors.items() if name.endswith(kind)])
        # 1680 draws: the mean to four standard errors of 0.02 / 41, the deviation to four of 1.7 per cent
        assert values.mean() == pytest.approx(mean, abs=2e-3)
        assert values.std() == pytest.approx(0.02, rel=0.07)
    assert not np.array_equal(tensors["blocks.0.norm1.ssf_shift"], tensors["blocks.1.norm1.ssf_shift"])


def test_checkpointing_gives_the_same_gradients(build, batch, away):
    plain, recomputed = build({"name": "ssf"}), build({"name": "ssf"}, train={"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    gradients = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= 2e-5


def test_only_scales_shifts_and_the_head_move(build, batch):
    trainer = build({"name": "ssf"}, train={"optimizer": {"name": "adamw", "weight_decay": 0.5}})
    start = trainer.model.adapter()
    float(trainer.train_step(*batch, 1e-2))
    after = trainer.model.adapter()
    assert all(not np.array_equal(after[name], start[name]) for name in start)
    assert {name.rpartition(".")[2] for name in start} == {"ssf_scale", "ssf_shift", "weight", "bias"}


def test_half_precision_follows_float32(build, batch, away):
    exact, half = build({"name": "ssf"}), build({"name": "ssf"}, train={"precision": "bfloat16"})
    start = away(exact.model.adapter())
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
    # 8 bits of mantissa through a whole ViT
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= 5e-2
    assert all(np.array_equal(half.model.adapter()[name], start[name]) for name in start), "kept in float32"


def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved):
    trainer = build({"name": "ssf", "blocks": "last 2"})
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and "Hugging Face PEFT has no method 'ssf'" in notes[0]
    assert again.method == SSF(blocks="last 2")
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))
