"""Reducers, which only tests have, between attention and MLP: against timm's blocks, under methods, in training."""

import importlib

import numpy as np
import pytest
import seams
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative
from seams import LEFT, MODELS, SMALL

# isort: split


ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""
SAME = 1e-6
"""Relative, float32, of a loss that is computed by the same operations, compiled or one by one."""

METHODS = {
    "lora": {"name": "lora", "rank": 2, "targets": ["qkv", "fc1"], "dropout": 0.3},
    "prompts": {"name": "vpt", "tokens": 3, "dropout": 0.3},
    "prompts of each block": {"name": "vpt", "tokens": 3, "deep": True},
    "adaptformer": {"name": "adaptformer", "bottleneck": 4, "dropout": 0.3},
    "ssf": {"name": "ssf"},
}
REDUCERS = {
    "dropped": lambda trainer: seams.dropping(trainer, LEFT),
    "attentive": lambda trainer: seams.attentive(trainer, 9),
    "merged": seams.merging,
}


def transcribed(reference, images: torch.Tensor, reducers: dict[int, str]) -> np.ndarray:
    """timm's blocks, half by half, with what is left after the attention of some; scores grow with the log of sizes."""
    special = reference.num_prefix_tokens
    with torch.no_grad():
        x = reference.norm_pre(reference._pos_embed(reference.patch_embed(images)))
        sizes = torch.ones(x.shape[:2])
        for number, block in enumerate(reference.blocks):
            normed, mask = block.norm1(x), sizes.log()[:, None, None].expand(-1, 1, x.shape[1], -1)
            x = x + block.ls1(block.attn(normed, attn_mask=mask))
            patches, of_patches = x[:, special:], sizes[:, special:]
            if (how := reducers.get(number)) == "merged":
                weighted = (patches * of_patches[..., None]).unflatten(1, (-1, 2)).sum(2)
                of_patches = of_patches.unflatten(1, (-1, 2)).sum(2)
                patches = weighted / of_patches[..., None]
            elif how is not None:
                which = torch.from_numpy(LEFT) if how == "dropped" else attended(block.attn, normed, special)
                patches, of_patches = patches.take_along_dim(which[..., None], 1), of_patches.gather(1, which)
            x, sizes = torch.cat([x[:, :special], patches], 1), torch.cat([sizes[:, :special], of_patches], 1)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return pooled(reference, reference.norm(x), sizes).numpy()


def attended(attention, normed: torch.Tensor, special: int) -> torch.Tensor:
    """The nine patch tokens of which the class token takes most, a mean over the heads, in their order."""
    q, k, _ = attention.qkv(normed).unflatten(2, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    taken = (q[:, :, :1] @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0, special:]
    return taken.topk(9, dim=1).indices.sort(1).values


def pooled(reference, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """timm's heads; a mean counts each token as often as it stands for a patch, and so does attention."""
    if reference.global_pool == "avg":
        start = 0 if reference.pool_include_prefix else reference.num_prefix_tokens
        shares = sizes[:, start:, None] / sizes[:, start:].sum(1)[:, None, None]
        return reference.head(reference.fc_norm((x[:, start:] * shares).sum(1)))
    if reference.global_pool == "map":
        return reference.head(reference.attn_pool(x, attn_mask=sizes.log()[:, None, None]))
    return reference.forward_head(x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_what_is_left_is_attended_and_pooled_as_what_it_stands_for(build, batch, away, timms, name, reducer):
    """Twice, where that can be: what was merged once is heavier in the second merging."""
    model = MODELS[name]
    if reducer == "attentive" and "without a class token" in name:
        model = MODELS["plain"]
    numbers = (0, 1) if reducer == "merged" else (1,)
    weights = away(build({"name": "full"}, model).model.adapter(), 0.3)
    trainer = build({"name": "linear"}, model, weights=weights)
    whole = trainer.model.logits(batch[0])
    for number in numbers:
        trainer.model.network.blocks[number].reducer = REDUCERS[reducer](trainer)
    reference, images = timms(trainer, weights, batch[0])
    expected = transcribed(reference, images, dict.fromkeys(numbers, reducer))
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
    assert relative(whole, expected) > 1e-3, "the reducer must matter for this to say anything"


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_what_is_left_does_not_depend_on_where_prompts_stand(build, batch, away, deep, reducer):
    """Deep prompts are asked in attention, and have left when a reducer comes."""
    trainer = build({"name": "vpt", "tokens": 3, "deep": deep}, MODELS["average pooling"])
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.5))
    seams.block(trainer, 1).reducer = REDUCERS[reducer](trainer)
    behind = trainer.model.logits(batch[0])
    for block in trainer.model.network.blocks:
        block.before = "patch"
    assert relative(trainer.model.logits(batch[0]), behind) <= LOGITS


@pytest.mark.parametrize("reducer", ["attentive", "merged"])
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_drops_merges_and_differentiates_as_without(build, batch, away, method, reducer):
    """Prompts stand in the middle; dropout and stochastic depth draw the same in both passes."""
    found = []
    for checkpointing in (False, True):
        model = {"args": SMALL | {"reg_tokens": 2}, "drop_path": 0.2}
        trainer = build(METHODS[method], model, {"gradient_checkpointing": checkpointing})
        trainer.model.load_adapter(away(trainer.model.adapter(), 0.2))
        for number in (0, 1):
            seams.block(trainer, number).reducer = REDUCERS[reducer](trainer)
        for block in trainer.model.network.blocks:
            block.before = "patch"
        loss, gradients = trainer.loss_and_gradients(*batch)
        assert all(g.any() for g in gradients.values())
        found.append((loss, gradients, [float(trainer.train_step(*batch, 1e-2)) for _ in range(2)]))
    (loss, gradients, losses), (again, others, steps) = found
    assert loss == pytest.approx(again, rel=ROUNDING) and losses == pytest.approx(steps, rel=ROUNDING)
    assert max(relative(others[name], g) for name, g in gradients.items()) <= ROUNDING


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_compiled_step_reduces_as_one_operation_after_the_other_does(build, batch, away, checkpointing, compiled):
    model = {"args": SMALL | {"reg_tokens": 2, "global_pool": "avg"}}
    trainer = build({"name": "vpt", "tokens": 3}, model, {"gradient_checkpointing": checkpointing})
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.2))
    seams.block(trainer, 0).reducer = seams.merging(trainer)
    seams.block(trainer, 1).reducer = seams.dropping(trainer, LEFT % 8)
    loss, _ = trainer.loss_and_gradients(*batch)
    assert float(trainer.train_step(*batch, 0.1)) == pytest.approx(loss, rel=SAME)
    assert float(trainer.train_step(*batch, 0.0)) == pytest.approx(trainer.loss_and_gradients(*batch)[0], rel=SAME)
    assert trainer.loss_and_gradients(*batch)[0] != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("reducer", ["dropped", "merged"])
def test_reducing_in_half_precision_follows_float32(build, batch, reducer):
    logits = []
    for precision in ("float32", "bfloat16"):
        trainer = build({"name": "linear"}, MODELS["average pooling"], {"precision": precision})
        trainer.model.network.blocks[0].reducer = REDUCERS[reducer](trainer)
        logits.append(trainer.model.logits(batch[0]))
    # 8 bits of mantissa through a whole ViT
    assert 0 < relative(logits[1], logits[0]) <= 5e-2


def test_probabilities_are_formed_for_the_rows_that_a_reducer_reads_and_else_not_at_all(build, batch, monkeypatch):
    trainer = build({"name": "linear"}, MODELS["plain"])
    attention = importlib.import_module(type(trainer.model.network.blocks[0].attn).__module__)
    formed, real = [], attention.probabilities

    def watched(q, k, bias=None):
        formed.append(real(q, k, bias))
        return formed[-1]

    monkeypatch.setattr(attention, "probabilities", watched)
    trainer.model.logits(batch[0])
    assert not formed
    trainer.model.network.blocks[1].reducer = seams.attentive(trainer, 9)
    trainer.loss_and_gradients(*batch)
    (rows,) = formed
    assert rows.shape == (4, 3, 1, 17)
    np.testing.assert_allclose(seams.of(trainer).numpy(rows).sum(-1), 1, rtol=SAME)


def test_features_are_kept_before_a_reducer_and_refused_behind_it(build):
    """What a cache holds is tokens; that some of them stand for several, or for others, is not in it."""
    model = {"args": SMALL | {"global_pool": "avg"}}
    trainer = build({"name": "linear"}, model)
    trainer.model.network.blocks[1].reducer = seams.merging(trainer)
    trainer.model.network.eval()
    x = seams.of(trainer).array(np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32))
    numpy = seams.of(trainer).numpy
    whole = numpy(trainer.model.network(x))
    for end in (1, 4):  # before the reducer's block, and where no tokens are left
        np.testing.assert_array_equal(
            numpy(trainer.model.network.suffix(trainer.model.network.prefix(x, end), end)), whole
        )
    for end in (2, 3):
        with pytest.raises(ValueError, match=f"what enters block {end} is not as in a plain model"):
            trainer.model.network.prefix(x, end)


def test_a_simulated_attention_asks_a_heavy_token_as_the_plain_one_does(build):
    trainer = build({"name": "linear"})
    here, random = seams.of(trainer), np.random.default_rng(0)
    package = type(trainer.model.network).__module__.removesuffix(".models.vit")
    simulated = importlib.import_module(f"{package}.quant.simulated").Attend(
        dict.fromkeys(("q", "k", "v", "softmax"), lambda x: x)
    )
    q, k, v = (here.array(random.standard_normal((2, 3, 7, 8), np.float32)) for _ in range(3))
    bias = here.array(np.log(random.integers(1, 9, (2, 1, 1, 7))).astype(np.float32))
    plain = trainer.model.network.blocks[0].attn.attend
    assert relative(simulated(q, k, v, bias), plain(q, k, v, bias)) <= SAME
    assert relative(simulated(q, k, v), plain(q, k, v, bias)) > 1e-2
