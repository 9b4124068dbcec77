"""Rotary positions against timm's ``Eva``: computed once, among prompts, where patches were dropped or merged."""

import numpy as np
import pytest
import seams
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative
from methods.small_eva import ARGS, KINDS, MODEL, of_timm
from seams import LEFT, pixels
from timm.models.eva import Eva

from mlx_peft.config.tokens import ToMe

PROMPTS = {"name": "vpt", "tokens": 4, "deep": True}


@pytest.fixture
def weights(build, away):
    """Of a whole model, none at its start."""
    return away(build({"name": "full"}, MODEL).model.adapter(), 0.3)


@torch.no_grad()
def transcribed(model: Eva, images: torch.Tensor, prompts: dict[int, torch.Tensor], left: np.ndarray | None):
    """timm's blocks, half by half: prompts stand before the patches of each block, and after the first's attention only
    some patch tokens are left, each with the angles of its own place."""
    x, rope = model._pos_embed(model.patch_embed(images))
    rope = rope.expand(len(x), 1, *rope.shape)  # (batch, 1, tokens, d)
    for number, block in enumerate(model.blocks):
        prompt = prompts.get(number, torch.zeros(1, 0, 48)).expand(len(x), -1, -1)
        block.attn.num_prefix_tokens = 5 + prompt.shape[1]
        x = torch.cat([x[:, :5], prompt, x[:, 5:]], dim=1)
        x = x + block.gamma_1 * block.attn(block.norm1(x), rope=rope)
        x = torch.cat([x[:, :5], x[:, 5 + prompt.shape[1] :]], dim=1)
        if number == 0 and left is not None:
            kept = torch.from_numpy(left)
            x = torch.cat([x[:, :5], x[:, 5:].take_along_dim(kept[..., None], dim=1)], dim=1)
            rope = rope.take_along_dim(kept[:, None, :, None], dim=2)
        x = x + block.gamma_2 * block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_computed_once_goes_on_as_from_images(build, batch, away, kind):
    model = {"args": ARGS | KINDS[kind][0]}
    trainer = build({"name": "lora", "rank": 2, "blocks": "last 1"}, model)
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.3))
    assert trainer.model.prefix.end == 2
    features = trainer.model.features(batch[0])
    assert relative(trainer.model.logits(features), trainer.model.logits(batch[0])) <= LOGITS


def test_what_attention_took_is_timms(build, batch, away):
    weights = away(build({"name": "full"}, MODEL).model.adapter(), 0.3)
    trainer = build({"name": "linear"}, MODEL, weights=weights)
    found = trainer.model.explain(batch[0], None)
    reference, taken = of_timm(weights), []
    for block in reference.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, given, p: taken.append(p.numpy()))
    with torch.no_grad():
        expected = reference(pixels(trainer, batch[0])).numpy()
    assert relative(found.logits, expected) <= LOGITS
    for one, p in zip(found.blocks, taken, strict=True):
        assert relative(one.probabilities, p) <= LOGITS


def test_a_merged_token_has_the_place_of_the_one_that_it_was_merged_into(build, batch, away):
    weights = away(build({"name": "full"}, MODEL).model.adapter(), 0.3)
    trainer = build({"name": "linear"}, MODEL, weights=weights)
    network, reference = trainer.model.network, of_timm(weights)
    plain = seams.block(trainer, 1).reducer
    network.reduce(ToMe(r=3))
    seams.block(trainer, 1).reducer = plain
    here = seams.of(trainer)
    x = here.array(np.ascontiguousarray(pixels(trainer, batch[0]).permute(0, 2, 3, 1).numpy()))
    tokens = network.between(network.embed(x), 0, 1)
    indices, sizes, before = (torch.from_numpy(here.numpy(a)).clone() for a in (tokens.indices, tokens.sizes, tokens.x))
    assert indices.shape == (4, 13) and all({*range(0, 16, 2)} < {*row} for row in indices.tolist())  # all of B
    assert (sizes.sum(1) == 16).all() and (sizes > 1).any()

    block, rope = reference.blocks[1], reference.rope.get_embed(shape=(4, 4))
    asked = torch.cat([torch.ones(4, 5), sizes], dim=1).log()[:, None, None]
    with torch.no_grad():
        rows = rope[indices.long()][:, None]
        middle = before + block.gamma_1 * block.attn(block.norm1(before), rope=rows, attn_mask=asked)
        expected = middle + block.gamma_2 * block.mlp(block.norm2(middle))
    assert relative(here.numpy(network.between(tokens, 1, 2).x), expected) <= LOGITS


@pytest.mark.one_in(2)
@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("before", [None, "register", "patch"], ids=["last", "after the class token", "in the middle"])
@pytest.mark.parametrize("left", [None, LEFT], ids=["all patches", "some patches"])
def test_each_token_keeps_its_place_among_prompts_and_where_others_are_dropped(build, batch, away, left, before, pool):
    model = {"args": ARGS | {"global_pool": pool}}
    weights = away(build({"name": "full"}, model).model.adapter(), 0.3)
    trainer = build(PROMPTS, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.5) | {n: t for n, t in weights.items() if "head" in n}
    trainer.model.load_adapter(tensors)
    for block in trainer.model.network.blocks:
        block.before = before
    if left is not None:
        seams.block(trainer, 0).reducer = seams.dropping(trainer, left)

    reference = of_timm(weights)
    reference.global_pool = pool
    prompts = {int(n.split(".")[1]): torch.from_numpy(t) for n, t in tensors.items() if n.endswith("prompts")}
    expected = transcribed(reference, pixels(trainer, batch[0]), prompts, left)
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
