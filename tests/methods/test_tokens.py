"""ToMe, EViT and SkipViT: what the papers' equations give, alike in both backends, under every method."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reducing
import timm
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative
from halves import half_of
from method_models import KINDS

# isort: split

import mlx_peft.backend.entry
import torch_ref.entry
from convert.base import load_base
from mlx_peft.checks.parity import GRADIENTS, perturbed
from mlx_peft.config.schema import Experiment
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.places import PATCH
from mlx_peft.vit.relevance import holdings

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}

NARROW = {"embed_dim": 64, "depth": 3, "num_heads": 2}
MODELS = {
    "plain": {"name": "vit_tiny_patch16_224", "image_size": 64, "args": NARROW},
    "registers": {"name": "vit_small_patch14_reg4_dinov2", "image_size": 56, "args": NARROW},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "image_size": 64, "args": NARROW},
    "averaged": {"name": "vit_tiny_patch16_224", "image_size": 64, "args": NARROW | {"global_pool": "avg"}},
}
WHOLE = {
    "vit tiny": {"name": "vit_tiny_patch16_224"},
    "dinov2 with registers": {"name": "vit_small_patch14_reg4_dinov2", "image_size": 224},
    "distilled deit": {"name": "deit_tiny_distilled_patch16_224"},
}
REDUCERS = ("tome r=3", "evit keep=0.6 blocks=[0,2]", "skipvit keep=0.4 from=0 to=2")
TRAINED = "dyt rate=0.4"
"""Its decisions and its loss have tests of their own."""
FULL_REDUCERS = ("tome r=13", "evit keep=0.7 blocks=[3,6,9]", "skipvit keep=0.45 from=2 to=10", "dyt")
FOUR = {
    "lora": {"name": "lora", "rank": 4},
    "vpt-deep": {"name": "vpt", "tokens": 3, "deep": True},
    "linear": {"name": "linear"},
    "full": {"name": "full"},
}
OPTIONS = {
    "vpt": {"tokens": 3}, "adaptformer": {"dropout": 0}, "adalora": {"init_rank": 4, "target_rank": 2},
    "adapter_plus": {"drop_path": 0}, "repadapter": {"dropout": 0},
}  # fmt: skip


def made(
    model: dict, method: dict, tokens: str, backend: str, change: Any = None, train: dict | None = None
) -> SimpleNamespace:
    """A trainer whose adapter was moved from its start, and a batch for it."""
    reducer = reducer_of(tokens)
    experiment = Experiment.model_validate({
        "model": {"weights": "none", **model},
        "method": method,
        "quantize": {"bits": 4, "group_size": 32} if KINDS[method["name"]].over_codes else None,
        "tokens": None if reducer is None else reducer.model_dump(),
        "data": {"name": "digits", "batch_size": 2},
        "train": train or {},
    })  # fmt: skip
    base = load_base(experiment.model, 5, 0, experiment.quantize)
    if change is not None:
        change(base.tensors)
    trainer = BACKENDS[backend].build_trainer(experiment, 5, base)
    trainer.model.load_adapter(perturbed(trainer.model.adapter(), 0))
    side = base.architecture.img_size
    images = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    return SimpleNamespace(
        trainer=trainer, model=trainer.model, images=images, base=base, targets=np.array([0, 4], np.int32)
    )


def attentive(tensors: dict[str, np.ndarray]) -> None:
    """Weights whose attention is spread as after training. As drawn, at their full width, all patches are alike to the
    class token to within a few steps of the rounding, and any difference between two frameworks chooses among them."""
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.weight"):
            tensor *= 4  # of a standard deviation of 0.02
        elif name.endswith(".gamma"):
            tensor[:] = 0.1  # of 1e-5


def same_in_both(model: dict, method: dict, tokens: str, change: Any = None) -> None:
    found = [made(model, method, tokens, backend, change) for backend in BACKENDS]
    logits = [one.model.logits(one.images) for one in found]
    assert relative(*logits) <= LOGITS
    (loss, ours), (expected, theirs) = (one.trainer.loss_and_gradients(one.images, one.targets) for one in found)
    assert loss == pytest.approx(expected, rel=LOGITS)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert relative(ours[name], gradient) <= GRADIENTS, name
    assert all(map(is_head, theirs)) or any(gradient.any() for name, gradient in theirs.items() if not is_head(name))


@pytest.mark.parametrize(
    ("model", "method", "tokens"), half_of(["plain", "registers", "distilled"], FOUR, (*REDUCERS, TRAINED))
)
def test_logits_and_gradients_are_the_same_in_both_backends(model, method, tokens):
    same_in_both(MODELS[model], FOUR[method], tokens)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", FULL_REDUCERS)
@pytest.mark.parametrize("method", FOUR)
@pytest.mark.parametrize("model", WHOLE)
def test_logits_and_gradients_are_the_same_at_the_models_own_size(model, method, tokens):
    same_in_both(WHOLE[model], FOUR[method], tokens, attentive)


OTHERS = sorted(name for name in KINDS.keys() - FOUR.keys() if not KINDS[name].unreduced)


@pytest.mark.parametrize(("method", "tokens"), half_of(OTHERS, (*REDUCERS, TRAINED)))
def test_every_other_method_works_under_every_reducer(method, tokens):
    same_in_both(MODELS["plain"], {"name": method, **OPTIONS.get(method, {})}, tokens)


def transcribed(found: SimpleNamespace, tokens: str) -> tuple[np.ndarray, list[list[set[frozenset[int]]]]]:
    """timm's blocks with the papers' equations between their halves; and the sets of patches behind each block."""
    config, base = reducer_of(tokens), found.base
    description = found.trainer.experiment.model
    reference = timm.create_model(
        description.name, num_classes=5, img_size=description.image_size, **description.args
    ).eval()
    weights = {**base.tensors, **found.model.adapter()}
    reference.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in weights.items()})
    pixels = (torch.from_numpy(found.images) / 255 - torch.tensor(base.preprocessing.mean)) / torch.tensor(
        base.preprocessing.std
    )
    logits, sets = [], []
    for pixel in pixels.permute(0, 3, 1, 2):
        answer, seen = one_image(reference, pixel[None], config)
        logits.append(answer)
        sets.append(seen)
    return np.array(logits), sets


@torch.no_grad()
def one_image(reference: Any, pixel: torch.Tensor, config: Any) -> tuple[np.ndarray, list[set[frozenset[int]]]]:
    special = reference.num_prefix_tokens
    x = reference.norm_pre(reference._pos_embed(reference.patch_embed(pixel)))[0]
    patches = x[special:].numpy()
    image = reducing.Image(x[:special].numpy(), patches, tuple(frozenset({i}) for i in range(len(patches))))
    seen = []
    for number, block in enumerate(reference.blocks):
        x, sizes = torch.from_numpy(image.x).float()[None], torch.zeros(len(image.x))
        if config.name == "tome":  # proportional attention
            sizes = torch.from_numpy(np.log(image.sizes)).float()
        normed, attention = block.norm1(x), block.attn
        q, k, _ = attention.qkv(normed).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        took = (q[:, :, :1] @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + sizes).softmax(-1)[0, :, 0].numpy()
        x = (x + block.ls1(attention(normed, attn_mask=sizes.expand(1, 1, x.shape[1], -1))))[0].numpy()
        image = reducing.replace(image, special=x[:special], patches=x[special:])
        image = reduced(config, number, image, k[0].numpy(), took)
        x = torch.from_numpy(image.x).float()
        x = x + block.ls2(block.mlp(block.norm2(x)))
        image = reducing.replace(image, special=x[:special].numpy(), patches=x[special:].numpy())
        seen.append(set(image.members))
    x = reference.norm(torch.from_numpy(image.x).float())[None]
    if reference.global_pool == "avg":
        sizes = image.sizes[special:] if config.name == "tome" else np.ones(len(image.patches))
        shares = torch.from_numpy(sizes / sizes.sum()).float()
        return reference.head(reference.fc_norm((x[:, special:] * shares[:, None]).sum(1)))[0].numpy(), seen
    return reference.forward_head(x)[0].numpy(), seen


def reduced(config: Any, number: int, image: reducing.Image, keys: np.ndarray, took: np.ndarray) -> reducing.Image:
    if config.name == "tome":
        return reducing.tome(image, keys, config.r)
    if config.name == "evit":
        return reducing.evit(image, took, config.keep) if number in config.blocks else image
    if number == config.start:
        return reducing.leave(image, took, config.keep)
    return reducing.back(image) if number == config.to else image


def sets_of(found: SimpleNamespace) -> list[list[set[frozenset[int]]]]:
    """The patches that each patch token stands for, as each block but the first is entered: of each image."""
    explanation = found.model.explain(found.images)
    per_block = []
    for block, (held, _) in list(zip(explanation.blocks, holdings(explanation), strict=True))[1:]:
        assert ((held > 0).sum(1) == 1).all(), "each patch is in one token, which may go round the block"
        span = block.asked.span(PATCH)
        per_block.append([{frozenset(np.flatnonzero(row).tolist()) for row in rows[span]} for rows in held])
    return [list(images) for images in zip(*per_block, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", REDUCERS)
@pytest.mark.parametrize("model", MODELS)
def test_it_is_what_the_papers_equations_say(model, tokens, backend):
    """The same logits, and behind every block the same sets of patches in a token."""
    found = made(MODELS[model], {"name": "linear"}, tokens, backend)
    logits, sets = transcribed(found, tokens)
    assert any(len(seen[0]) < found.base.architecture.places.count(PATCH) for seen in sets)
    assert relative(found.model.logits(found.images), logits) <= LOGITS
    assert sets_of(found) == [seen[:-1] for seen in sets]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", REDUCERS)
def test_equal_scores_are_told_apart_by_place(tokens, backend):
    """Two kinds of patches, and no positions: what is equal is equally good, and the first comes first."""

    def without_positions(tensors):
        tensors["pos_embed"] = np.zeros_like(tensors["pos_embed"])

    found = made(MODELS["plain"], {"name": "linear"}, tokens, backend, without_positions)
    found.images = np.tile(found.images[:, :16, :16], (1, 4, 4, 1))
    found.images[:, 16:32, 32:] = 255 - found.images[:, 16:32, 32:]
    logits, sets = transcribed(found, tokens)
    assert sets_of(found) == [seen[:-1] for seen in sets]
    assert relative(found.model.logits(found.images), logits) <= LOGITS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", ["tome r=0", "evit keep=1 blocks=[0,2]", "skipvit keep=1 from=0 to=2"])
def test_where_nothing_is_to_be_fewer_it_is_the_plain_model_bit_for_bit(tokens, backend):
    plain, found = (made(MODELS["plain"], FOUR["lora"], text, backend) for text in ("none", tokens))
    np.testing.assert_array_equal(found.model.logits(found.images), plain.model.logits(found.images))
    ours, theirs = (one.trainer.loss_and_gradients(found.images, found.targets)[1] for one in (found, plain))
    assert all(np.array_equal(ours[name], gradient) for name, gradient in theirs.items())


@pytest.mark.parametrize("tokens", (*REDUCERS, TRAINED))
@pytest.mark.parametrize("model", MODELS)
def test_the_configuration_knows_how_many_are_left(model, tokens):
    found = made(MODELS[model], {"name": "linear"}, tokens, "torch")
    explanation = found.model.explain(found.images)
    left = [block.left.count(PATCH) for block in explanation.blocks]
    assert list(reducer_of(tokens).left(found.base.architecture)) == left


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", (*REDUCERS, TRAINED))
@pytest.mark.parametrize("method", ["lora", "vpt-deep"])
def test_recomputed_blocks_choose_the_same_tokens(method, tokens, backend):
    once, again = (
        made(MODELS["registers"], FOUR[method], tokens, backend, train={"gradient_checkpointing": checkpointing})
        for checkpointing in (False, True)
    )
    (loss, gradients), (expected, theirs) = (
        one.trainer.loss_and_gradients(one.images, one.targets) for one in (again, once)
    )
    assert loss == pytest.approx(expected, rel=LOGITS)
    assert all(relative(gradients[name], gradient) <= LOGITS for name, gradient in theirs.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", (*REDUCERS, TRAINED))
def test_in_half_precision_the_step_is_about_the_same(tokens, backend):
    """Scores are computed in float32, of keys that have been rounded: a token or two may be another."""
    exact, rounded = (
        made(MODELS["plain"], FOUR["lora"], tokens, backend, train={"precision": precision})
        for precision in ("float32", "bfloat16")
    )
    losses = [one.trainer.loss_and_gradients(one.images, one.targets)[0] for one in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    float(rounded.trainer.train_step(rounded.images, rounded.targets, 1e-3))
    assert np.isfinite(rounded.model.logits(rounded.images)).all()
