"""What a model tells of its attention: against timm's probabilities, torch's gradients, and the papers' equations."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import seams
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative
from seams import LEFT, MODELS, SMALL

from mlx_peft.vit import relevance

# isort: split

GRADIENTS = 1e-4
"""Relative, float32: gradients of a softmax's results, which are differences of near numbers."""

MERGED = {
    "lora": {"name": "lora", "rank": 2, "targets": ["qkv", "fc1"], "dropout": 0.3},
    "ssf": {"name": "ssf"},
    "ia3": {"name": "ia3"},
}
BESIDE = {
    "prompts": {"name": "vpt", "tokens": 3, "dropout": 0.3},
    "prompts of each block": {"name": "vpt", "tokens": 3, "deep": True},
    "adaptformer": {"name": "adaptformer", "bottleneck": 4, "dropout": 0.3},
}


def watched(reference, images: torch.Tensor, classes: list[int]) -> tuple[np.ndarray, list, list]:
    """timm's logits, attention's probabilities in each block, and their gradients, by hooks on what follows softmax."""
    probabilities: list[torch.Tensor] = []

    def keep(module, inputs):
        inputs[0].retain_grad()
        probabilities.append(inputs[0])

    for block in reference.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(keep)
    if reference.global_pool == "map":
        pool = reference.attn_pool
        pool.forward = lambda x, attn_mask=None: pooled(pool, x, lambda p: keep(None, (p,)))
    logits = reference(images)
    logits[torch.arange(len(classes)), classes].sum().backward()
    numpy = [p.detach().numpy() for p in probabilities]
    return logits.detach().numpy(), numpy, [p.grad.numpy() for p in probabilities]


def pooled(pool, x: torch.Tensor, keep) -> torch.Tensor:
    """timm's ``AttentionPoolLatent``, which has no module behind its softmax."""
    batch, tokens, dim = x.shape
    q = pool.q(pool.latent.expand(batch, -1, -1)).reshape(batch, 1, pool.num_heads, -1).transpose(1, 2)
    k, v = pool.kv(x).reshape(batch, tokens, 2, pool.num_heads, -1).permute(2, 0, 3, 1, 4)
    p = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    keep(p)
    x = pool.proj((p @ v).transpose(1, 2).reshape(batch, 1, dim))
    return (x + pool.mlp(pool.norm(x)))[:, 0]


def read(architecture, R: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Of one image's map over all tokens: what is read of each token at the end."""
    special = architecture.num_prefix_tokens
    start = 0 if architecture.pool_include_prefix else special
    of_mean = R[start:].mean(0)
    if architecture.global_pool == "map":
        return (last[0] @ R[start:])[special:]
    rows = {"token": R[: 1 + architecture.distilled].mean(0), "avg": of_mean, "token_avg": (R[0] + of_mean) / 2}
    return rows[architecture.global_pool][special:]


def rolled(architecture, probabilities: list) -> np.ndarray:
    """Abnar and Zuidema's attention rollout of each image: A = 0.5 W + 0.5 I, rows normalised, multiplied."""
    found = []
    for image in range(len(probabilities[0])):
        R = np.eye(probabilities[0].shape[-1])
        for p in probabilities[: architecture.depth]:
            A = 0.5 * p[image].mean(0) + 0.5 * np.eye(len(R))
            R = (A / A.sum(1, keepdims=True)) @ R
        found.append(read(architecture, R, probabilities[-1][image].mean(0)))
    return np.stack(found)


def weighted(architecture, probabilities: list, gradients: list) -> np.ndarray:
    """Chefer et al.'s relevance of each image: R = R + A R, A = E_h((dA * A)+)."""
    found = []
    for image in range(len(probabilities[0])):
        R = np.eye(probabilities[0].shape[-1])
        each = [np.clip(p[image] * g[image], 0, None).mean(0) for p, g in zip(probabilities, gradients, strict=True)]
        for A in each[: architecture.depth]:
            R = R + A @ R
        found.append(read(architecture, R, each[-1]))
    return np.stack(found)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("classes", [None, [4, 3, 2, 0]], ids=["likeliest", "asked"])
def test_the_maps_are_those_of_timms_probabilities_and_torchs_gradients(build, batch, away, timms, name, classes):
    weights = away(build({"name": "full"}, MODELS[name]).model.adapter(), 0.3)
    trainer = build({"name": "linear"}, MODELS[name], weights=weights)
    found = trainer.model.explain(batch[0], classes)
    reference, images = timms(trainer, weights, batch[0])
    expected = reference(images).argmax(1).tolist() if classes is None else classes
    logits, probabilities, gradients = watched(reference, images, expected)
    assert found.classes.tolist() == expected
    assert relative(found.logits, logits) <= LOGITS
    architecture = trainer.model.base.architecture
    own = [*found.blocks, *([found.pool] if found.pool is not None else [])]
    for one, p, g in zip(own, probabilities, gradients, strict=True):
        rows = one.probabilities.shape[2]  # of the last block only what is read asks
        assert relative(one.probabilities, p[:, :, :rows]) <= LOGITS
        assert relative(one.gradients, g[:, :, :rows]) <= GRADIENTS
    assert relative(relevance.rollout(found), rolled(architecture, probabilities)) <= LOGITS
    assert relative(relevance.gradient_weighted(found), weighted(architecture, probabilities, gradients)) <= GRADIENTS


@pytest.mark.parametrize("method", MERGED)
def test_under_a_method_the_maps_are_those_of_the_merged_model(build, batch, away, method):
    trainer = build(MERGED[method])
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.2))
    found = trainer.model.explain(batch[0])
    plain = build({"name": "linear"}, weights=trainer.model.merged()).model.explain(batch[0], found.classes)
    assert relative(relevance.rollout(found), relevance.rollout(plain)) <= GRADIENTS
    assert relative(relevance.gradient_weighted(found), relevance.gradient_weighted(plain)) <= GRADIENTS


@pytest.mark.parametrize("method", BESIDE)
def test_under_a_method_that_stands_beside_the_gradients_are_the_slopes_of_the_logit(build, batch, away, method):
    trainer = build(BESIDE[method])
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.2))
    found = trainer.model.explain(batch[0], [4, 3, 2, 0])
    here, network = seams.of(trainer), trainer.model.network
    package = importlib.import_module(f"{trainer.model.__module__.removesuffix('.model')}.watched")
    random, x = np.random.default_rng(0), trainer.model.pixels(seams.of(trainer).array(batch[0]))
    for number, block in enumerate(found.blocks):
        way = random.standard_normal(block.probabilities.shape).astype(np.float32)
        logits = []
        for step in (1e-2, -1e-2):
            with package.watched(network) as (looks, _):
                looks[number].change = here.array(step * way)
                logits.append(here.numpy(network(x))[range(4), [4, 3, 2, 0]])
        slopes = (logits[0] - logits[1]) / 2e-2
        # A secant of a curve in float32
        assert relative((block.gradients * way).sum((1, 2, 3)), slopes) <= 1e-2


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_prompts_hold_no_patch_and_take_what_the_others_leave_them(build, batch, away, deep):
    """The equations with a column for each token that ever entered, of which those of patches are looked at."""
    trainer = build({"name": "vpt", "tokens": 3, "deep": deep})
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.5))
    found = trainer.model.explain(batch[0])
    for image, row in enumerate(relevance.rollout(found)):
        R = np.eye(17)
        for block in found.blocks:
            W = block.probabilities[image].mean(0)
            if (entering := W.shape[1] - len(R)) > 0:
                R = np.block([[R, np.zeros((len(R), entering))], [np.zeros((entering, R.shape[1])), np.eye(entering)]])
            R = 0.5 * (W + np.eye(*W.shape)) @ R
            R = R[: len(block.left)]
        assert len(R) == 1 and R.sum() == pytest.approx(1)
        assert relative(row, R[0, 1:17]) <= LOGITS


def matrices(how: str, found, image: int) -> list[np.ndarray]:
    """From old to new tokens after each block, by what the reducers of the tests do behind blocks 0 and 1."""
    if how == "dropped":
        return [np.eye(17)[[0, *(1 + LEFT[image])]], np.eye(10)[[0, *(1 + LEFT[image] % 9)]]]
    if how == "attentive":
        chosen = []
        for block in found.blocks[:2]:
            took = block.probabilities[image, :, 0, 1:].mean(0)
            chosen.append(np.eye(len(took) + 1)[[0, *(1 + np.sort(np.argsort(-took)[: 9 - 3 * len(chosen)]))]])
        return chosen
    pairs = []
    for count in (16, 8):
        M = np.zeros((1 + count // 2, 1 + count))
        M[0, 0] = 1
        for new in range(count // 2):
            M[1 + new, 1 + 2 * new : 3 + 2 * new] = 0.5
        pairs.append(M)
    return pairs


REDUCERS = {
    "dropped": lambda trainer, number: seams.dropping(trainer, LEFT % (16, 9)[number]),
    "attentive": lambda trainer, number: seams.attentive(trainer, 9 - 3 * number),
    "merged": lambda trainer, number: seams.merging(trainer),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("pool", ["token", "avg", "token_avg"])
def test_where_tokens_are_fewer_the_maps_follow_what_became_of_them(build, batch, away, reducer, pool):
    trainer = build({"name": "full"}, {"args": SMALL | {"global_pool": pool}})
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.3))
    for number in (0, 1):
        trainer.model.network.blocks[number].reducer = REDUCERS[reducer](trainer, number)
    found = trainer.model.explain(batch[0])
    assert relative(found.logits, trainer.model.logits(batch[0])) <= LOGITS
    pairs = [(relevance.rollout(found), 0.5, False), (relevance.gradient_weighted(found), 1.0, True)]
    for row, kept, of_class in pairs:
        for image in range(4):
            R = np.eye(17)
            for block, M in zip(found.blocks, [*matrices(reducer, found, image), None], strict=True):
                W = block.probabilities[image] * (block.gradients[image] if of_class else 1)
                W = np.clip(W, 0, None).mean(0)
                R = kept * np.eye(*W.shape) @ R + (1 if of_class else 0.5) * W @ R
                R = R if M is None else M @ R
            rows = {"token": R[:1], "avg": R[1:], "token_avg": [R[0], R[1:].mean(0)]}[pool] if len(R) > 1 else R
            assert relative(row[image], np.mean(rows, axis=0)[1:]) <= LOGITS


def test_what_each_token_holds_is_told_block_by_block(build, batch):
    trainer = build({"name": "linear"})
    for number in (0, 1):
        trainer.model.network.blocks[number].reducer = seams.merging(trainer)
    found = trainer.model.explain(batch[0])
    held = relevance.holdings(found)
    assert [there.shape[1:] for there, _ in held] == [(17, 16), (9, 16), (5, 16)]
    assert [through for _, through in held] == [17, 9, 5]
    np.testing.assert_allclose(held[2][0][0, 1:], np.repeat(np.eye(4), 4, axis=1) / 4)
    took = relevance.taken(found)
    np.testing.assert_allclose(
        np.stack(took).sum(-1) + [b.probabilities.mean(1)[:, 0, 0] for b in found.blocks], 1, rtol=1e-5
    )
    np.testing.assert_allclose(took[2][0], np.repeat(found.blocks[2].probabilities[0].mean(0)[0, 1:] / 4, 4), rtol=1e-5)


def test_looking_leaves_nothing_behind(build, batch, monkeypatch):
    """Who only answers forms no probabilities, before and after, and answers the same."""
    trainer = build({"name": "vpt", "tokens": 3})
    before = trainer.model.logits(batch[0])
    blocks = [seams.block(trainer, number) for number in range(3)]
    parts = [(block.attn.attend, block.reducer) for block in blocks]
    trainer.model.explain(batch[0])
    looking = importlib.import_module(f"{trainer.model.__module__.removesuffix('.model')}.watched")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(looking.Look, "__call__", lambda look, p: 1 / 0)
        trainer.model.explain(batch[0])
    again = [(block.attn.attend, block.reducer) for block in blocks]
    assert all(one is other for old, new in zip(parts, again, strict=True) for one, other in zip(old, new, strict=True))
    attention = importlib.import_module(type(blocks[0].attn).__module__)
    monkeypatch.setattr(attention, "probabilities", lambda *args: pytest.fail("probabilities were formed"))
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
