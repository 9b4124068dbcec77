"""VPT against timm's blocks with the prompts where the paper has them; counts against the closed formula."""

import numpy as np
import pytest
import torch
from comparing import relative

from mlx_peft.config.methods import VPT
from mlx_peft.core.errors import UserError

LOGITS = 1e-5
"""Relative, float32: some hundred roundings of 1.2e-7 on the way through the blocks."""
ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

WIDTH, DEPTH, CLASSES, TOKENS = 48, 3, 5, 4
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
SHALLOW, DEEP = ({"name": "vpt", "tokens": TOKENS, "deep": deep} for deep in (False, True))
MODELS = {
    "plain": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "args": SMALL},
    "average pooling": {"args": SMALL | {"global_pool": "avg"}},
    "attention pooling without a class token": {"name": "vit_base_patch16_siglip_224", "args": SMALL},
    "layer scale and registers": {"name": "vit_small_patch14_reg4_dinov2", "args": SMALL},
    "norm before the blocks": {"name": "vit_base_patch16_clip_224", "args": SMALL},
}


def prompted(reference, images, prompts: dict[int, torch.Tensor], leave: list[int]) -> np.ndarray:
    """The paper's equations 4 to 8: prompts go in after the class token, and out after the blocks ``leave``."""
    with torch.no_grad():
        x = reference.norm_pre(reference.patch_drop(reference._pos_embed(reference.patch_embed(images))))
        inside = 0
        for number, block in enumerate(reference.blocks):
            if number in prompts:
                new = prompts[number].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], new, x[:, 1 + inside :]], dim=1)
                inside = new.shape[1]
            x = block(x)
            if number in leave:
                x, inside = torch.cat([x[:, :1], x[:, 1 + inside :]], dim=1), 0
        return reference.forward_head(reference.norm(x)).numpy()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", [SHALLOW, DEEP], ids=["shallow", "deep"])
@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        *((model, None) for model in MODELS),
        *(("average pooling", blocks) for blocks in ([-1], [1], [0, 2])),
        ("plain", [0, 2]),
    ],
    ids=str,
)
def test_prompts_behind_and_before_the_patches_do_what_the_papers_do(build, batch, away, timms, model, method, blocks):
    model = MODELS[model]
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build(method | {"blocks": blocks}, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.5)
    trainer.model.load_adapter(tensors)
    head = {n: t for n, t in tensors.items() if "head" in n}
    reference, images = timms(trainer, weights | head, batch[0])

    prompts = {int(n.split(".")[1]): torch.from_numpy(t) for n, t in tensors.items() if n.endswith("prompts")}
    numbers = [b % DEPTH for b in blocks] if blocks else list(range(DEPTH))
    assert list(prompts) == (numbers if method["deep"] else numbers[:1])
    expected = prompted(reference, images, prompts, numbers if method["deep"] else numbers[-1:])
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
    for block in trainer.model.network.blocks:
        block.before = "patch"
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
    bare = build({"name": "linear"}, model, weights=weights | head)
    assert relative(bare.model.logits(batch[0]), expected) > 1e-4, "the prompts must matter for this to say anything"


@pytest.mark.parametrize(("blocks", "count"), [(None, DEPTH), ("last 2", 2), ([1], 1)])
def test_trained_parameters_are_the_closed_formulas(build, blocks, count):
    shallow, deep = build(SHALLOW | {"blocks": blocks}), build(DEEP | {"blocks": blocks})
    assert shallow.model.parameters.adapter == TOKENS * WIDTH
    assert deep.model.parameters.adapter == count * TOKENS * WIDTH
    for trainer in (shallow, deep):
        assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)
        assert trainer.model.parameters.adapter + trainer.model.parameters.head == sum(
            t.size for t in trainer.model.adapter().values()
        )


def test_prompts_start_uniform_within_the_authors_bound_and_differ_by_block(build):
    tensors = build(DEEP | {"tokens": 50}).model.adapter()
    prompts, bound = tensors["blocks.0.prompts"], np.sqrt(6 / (3 * 8**2 + WIDTH))
    assert prompts.shape == (1, 50, WIDTH) and np.abs(prompts).max() <= bound
    # 2400 draws give the deviation of a uniform, bound / sqrt 3, to four standard errors of 1.3 per cent
    assert prompts.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert not np.array_equal(prompts, tensors["blocks.1.prompts"])


@pytest.mark.parametrize("method", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_merging_is_refused_with_the_reason(build, batch, method):
    trainer = build(method)
    before = trainer.model.logits(batch[0])
    with pytest.raises(UserError, match=r"method vpt cannot be merged: its prompts are tokens"):
        trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("method", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_checkpointing_gives_the_same_gradients(build, batch, away, method, pool):
    model = {"args": SMALL | {"global_pool": pool}}
    plain, recomputed = build(method, model), build(method, model, {"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    gradients = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    assert all(gradients[0][name].any() for name in start)
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= ROUNDING


@pytest.mark.parametrize("method", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_dropout_acts_on_the_prompts_in_training_alone(build, batch, method):
    """At a rate where everything is dropped, tokens of zeros are left."""
    trainer, without = build(method | {"dropout": 1 - 1e-9}), build(method)
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), without.model.logits(batch[0]))
    start = without.model.adapter()
    kept = float(without.train_step(*batch, 0.0))
    without.model.load_adapter({n: np.zeros_like(t) if n.endswith("prompts") else t for n, t in start.items()})
    nothing_kept = float(without.train_step(*batch, 0.0))
    assert float(trainer.train_step(*batch, 0.0)) == pytest.approx(nothing_kept, rel=1e-6)
    assert abs(kept - nothing_kept) > 1e-5


@pytest.mark.parametrize("method", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_checkpointing_drops_what_training_without_it_drops(build, batch, method):
    method = method | {"dropout": 0.4}
    plain, recomputed = build(method), build(method, train={"gradient_checkpointing": True})
    losses = [[float(trainer.train_step(*batch, 1e-2)) for _ in range(3)] for trainer in (plain, recomputed)]
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)


def test_prompts_and_head_alone_move(build, batch):
    weights = build({"name": "full"}).model.adapter()
    trainer = build(DEEP, train={"optimizer": {"name": "adamw", "weight_decay": 0.5}}, weights=weights)
    start = trainer.model.adapter()
    float(trainer.train_step(*batch, 1e-2))
    after = trainer.model.adapter()
    assert all(not np.array_equal(after[name], start[name]) for name in start)
    fresh = build(DEEP, weights=weights)
    fresh.model.load_adapter(after)
    np.testing.assert_array_equal(fresh.model.logits(batch[0]), trainer.model.logits(batch[0]))


def test_half_precision_follows_float32(build, batch):
    exact, half = build(DEEP), build(DEEP, train={"precision": "bfloat16"})
    # 8 bits of mantissa through a whole ViT
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= 5e-2
    assert all(np.array_equal(half.model.adapter()[n], t) for n, t in exact.model.adapter().items()), "kept in float32"


@pytest.mark.parametrize("method", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved, method):
    trainer = build(method)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and "Hugging Face PEFT has no method 'vpt'" in notes[0]
    assert again.method == VPT(**method)
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))


def test_a_block_that_the_model_lacks_is_refused(build):
    with pytest.raises(UserError, match="goes past the model's last block, 2"):
        build(DEEP | {"blocks": "1-3"})
