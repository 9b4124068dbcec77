"""AdaptFormer against timm's blocks with the paper's equations; counts against the closed formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparing import relative

from mlx_peft.config.methods import AdaptFormer
from mlx_peft.core.errors import UserError

LOGITS = 1e-5
"""Relative, float32: some hundred roundings of 1.2e-7 on the way through the blocks."""
ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

WIDTH, DEPTH, CLASSES = 48, 3, 5
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
METHOD = {"name": "adaptformer", "bottleneck": 6, "dropout": 0.0}
MODELS = {
    "plain": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "args": SMALL},
    "average pooling": {"args": SMALL | {"global_pool": "avg"}},
    "layer scale and registers": {"name": "vit_small_patch14_reg4_dinov2", "args": SMALL},
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("blocks", [None, [-1]], ids=["all blocks", "the last block"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_bottleneck_stands_beside_each_mlp(build, batch, away, timms, model, blocks):
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build(METHOD | {"scale": 0.7, "blocks": blocks}, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.2)
    trainer.model.load_adapter(tensors)
    reference, images = timms(trainer, weights | {n: t for n, t in tensors.items() if "head" in n}, batch[0])

    for number in range(len(reference.blocks)) if blocks is None else [len(reference.blocks) - 1]:
        block, of = reference.blocks[number], f"blocks.{number}.adapter_"
        down, b_down, up, b_up = (
            torch.from_numpy(tensors[of + name]) for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        )

        def forward(x, block=block, down=down, b_down=b_down, up=up, b_up=b_up):
            x = x + block.ls1(block.attn(block.norm1(x)))
            tilde = F.relu(block.norm2(x) @ down.T + b_down) @ up.T + b_up  # equation 3
            return block.ls2(block.mlp(block.norm2(x))) + 0.7 * tilde + x  # equation 4

        block.forward = forward
    with torch.no_grad():
        expected = reference(images).numpy()
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
    bare = build({"name": "linear"}, model, weights=weights | {n: t for n, t in tensors.items() if "head" in n})
    assert relative(bare.model.logits(batch[0]), expected) > 1e-3, (
        "the bottlenecks must matter for this to say anything"
    )


def test_it_starts_as_the_bare_model(build, batch):
    bare, trainer = build({"name": "linear"}), build(METHOD)
    assert relative(trainer.model.logits(batch[0]), bare.model.logits(batch[0])) <= LOGITS


def test_down_starts_uniform_within_its_bound_and_the_rest_at_zero(build):
    tensors = build({"name": "adaptformer", "bottleneck": 32}).model.adapter()
    down, bound = tensors["blocks.0.adapter_down.weight"], 1 / np.sqrt(WIDTH)
    assert down.shape == (32, WIDTH) and np.abs(down).max() <= bound
    # 1536 draws give the deviation of a uniform, bound / sqrt 3, to four standard errors of 1.6 per cent
    assert down.std() == pytest.approx(bound / np.sqrt(3), rel=0.07)
    assert not np.array_equal(down, tensors["blocks.1.adapter_down.weight"])
    for name in ("adapter_down.bias", "adapter_up.weight", "adapter_up.bias"):
        assert not tensors[f"blocks.0.{name}"].any()


@pytest.mark.parametrize(("blocks", "count"), [(None, DEPTH), ("last 2", 2), ([1], 1)])
def test_trained_parameters_are_the_closed_formula(build, blocks, count):
    trainer = build({"name": "adaptformer", "blocks": blocks})
    assert trainer.model.parameters.adapter == count * (2 * WIDTH * 64 + 64 + WIDTH)
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)
    assert trainer.model.parameters.adapter + trainer.model.parameters.head == sum(
        t.size for t in trainer.model.adapter().values()
    )


def test_the_chosen_blocks_alone_have_a_bottleneck(build):
    names = build(METHOD | {"blocks": [1]}).model.adapter()
    assert {name.partition(".adapter_")[0] for name in names if "head" not in name} == {"blocks.1"}


def test_merging_is_refused_with_the_reason(build, batch):
    trainer = build(METHOD)
    before = trainer.model.logits(batch[0])
    with pytest.raises(UserError, match=r"method adaptformer cannot be merged: there is a ReLU between its two layers"):
        trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)


def test_checkpointing_gives_the_same_gradients(build, batch, away):
    plain, recomputed = build(METHOD), build(METHOD, train={"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    gradients = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    assert all(gradients[0][name].any() for name in start)
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= ROUNDING


def test_dropout_acts_on_the_bottleneck_in_training_alone(build, batch, away):
    """At a rate where everything is dropped, what is left of a bottleneck is up's bias."""
    trainer, without = build(METHOD | {"dropout": 1 - 1e-9}), build(METHOD)
    start = away(trainer.model.adapter())
    for one in (trainer, without):
        one.model.load_adapter(start)
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), without.model.logits(batch[0]))
    kept = float(without.train_step(*batch, 0.0))
    without.model.load_adapter({n: np.zeros_like(t) if n.endswith("up.weight") else t for n, t in start.items()})
    nothing_kept = float(without.train_step(*batch, 0.0))
    assert float(trainer.train_step(*batch, 0.0)) == pytest.approx(nothing_kept, rel=1e-6)
    assert abs(kept - nothing_kept) > 1e-4


def test_checkpointing_drops_what_training_without_it_drops(build, batch, away):
    method = METHOD | {"dropout": 0.4}
    plain, recomputed = build(method), build(method, train={"gradient_checkpointing": True})
    start, losses = away(plain.model.adapter()), []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        losses.append([float(trainer.train_step(*batch, 1e-2)) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)


def test_frozen_weights_do_not_move(build, batch):
    weights = build({"name": "full"}).model.adapter()
    trainer = build(METHOD, train={"optimizer": {"name": "adamw", "weight_decay": 0.5}}, weights=weights)
    start = trainer.model.adapter()
    for _ in range(2):  # up is zero at first, and down has no gradient yet
        float(trainer.train_step(*batch, 1e-2))
    after = trainer.model.adapter()
    assert all(not np.array_equal(after[name], start[name]) for name in start)
    untrained = {n: np.zeros_like(t) if "adapter_up" in n else t for n, t in after.items()}
    trainer.model.load_adapter(untrained)  # the bare model with the trained head
    bare = build({"name": "linear"}, weights=weights | {n: t for n, t in after.items() if "head" in n})
    assert relative(trainer.model.logits(batch[0]), bare.model.logits(batch[0])) <= LOGITS


def test_half_precision_follows_float32(build, batch, away):
    exact, half = build(METHOD), build(METHOD, train={"precision": "bfloat16"})
    start = away(exact.model.adapter())
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
    # 8 bits of mantissa through a whole ViT
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= 5e-2
    assert all(np.array_equal(half.model.adapter()[name], start[name]) for name in start), "kept in float32"


def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved):
    trainer = build(METHOD)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and "Hugging Face PEFT has no method 'adaptformer'" in notes[0]
    assert again.method == AdaptFormer(bottleneck=6, dropout=0.0)
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))


def test_a_block_that_the_model_lacks_is_refused(build):
    with pytest.raises(UserError, match="the model has no block 3"):
        build(METHOD | {"blocks": [3]})
