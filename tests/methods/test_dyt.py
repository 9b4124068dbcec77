"""DyT: what the paper's equations give, alike in both backends; its draws, its loss and its routers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reducing
import scipy.stats
import timm
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative

# isort: split
import mlx.core as mx

import mlx_peft.backend.entry
import mlx_peft.backend.models.stochastic
import torch_ref.entry
import torch_ref.models.stochastic
from convert.base import load_base
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.checks.parity import GRADIENTS
from mlx_peft.config.schema import Experiment
from mlx_peft.config.tokens import DyT, is_router
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import PATCH

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
NARROW = {"embed_dim": 64, "depth": 3, "num_heads": 2}
MODELS = {
    "plain": {"name": "vit_tiny_patch16_224", "image_size": 64, "args": NARROW},
    "registers": {"name": "vit_small_patch14_reg4_dinov2", "image_size": 56, "args": NARROW},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "image_size": 64, "args": NARROW},
    "averaged": {"name": "vit_tiny_patch16_224", "image_size": 64, "args": NARROW | {"global_pool": "avg"}},
}
LORA = {"name": "lora", "rank": 4}
LINEAR = {"name": "linear"}


def made(backend: str, model: str = "plain", method: dict = LINEAR, seed: int = 0, train: Any = None, **tokens: Any):
    """A trainer as it is at the start but for wider routers, so that each lets some through, and a batch for it."""
    experiment = Experiment.model_validate({
        "model": {"weights": "none", **MODELS[model]},
        "method": method,
        "seed": seed,
        "tokens": {"name": "dyt", "rate": 0.4, **tokens},
        "data": {"name": "digits", "batch_size": 3},
        "train": train or {},
    })  # fmt: skip
    base = load_base(experiment.model, 5, 0)
    trainer = BACKENDS[backend].build_trainer(experiment, 5, base)
    start = trainer.model.adapter()
    moved = np.random.default_rng(4)
    trainer.model.load_adapter({
        name: moved.standard_normal(tensor.shape).astype(np.float32) if is_router(name) else tensor
        for name, tensor in start.items()
    })  # fmt: skip
    side = base.architecture.img_size
    images = np.random.default_rng(3).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    return SimpleNamespace(
        trainer=trainer, model=trainer.model, images=images, base=base, targets=np.array([0, 1, 4]), start=start
    )


def transcribed(found: SimpleNamespace) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, dict[str, torch.Tensor]]:
    """timm's blocks with the paper's equations between their halves.

    Returns the logits; which patches go through the MLP behind each router, ``(images, routers, patches)``; their
    share; and the routers.
    """
    description, adapter = found.trainer.experiment.model, found.model.adapter()
    reference = timm.create_model(
        description.name, num_classes=5, img_size=description.image_size, **description.args
    ).eval()
    routers = {name: torch.tensor(adapter.pop(name), requires_grad=True) for name in found.start if is_router(name)}
    weights = {**found.base.tensors, **adapter}
    reference.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in weights.items()})
    mean, std = found.base.preprocessing.mean, found.base.preprocessing.std
    pixels = (torch.from_numpy(found.images) / 255 - torch.tensor(mean)) / torch.tensor(std)
    special = reference.num_prefix_tokens
    x = reference.norm_pre(reference._pos_embed(reference.patch_embed(pixels.permute(0, 3, 1, 2))))
    masks, gates = [], []
    for number, block in enumerate(reference.blocks):
        x = x + block.ls1(block.attn(block.norm1(x)))
        gate = torch.ones(*x.shape[:2], 1)
        if number < len(routers["routers.bias"]):
            w, b = routers["routers.weight"][number], routers["routers.bias"][number]
            patches = x[:, special:].detach().numpy()
            masks.append(np.array([reducing.dyt(each, w.detach().numpy(), b.item()) for each in patches]))
            slope = torch.sigmoid((x[:, special:] @ w + b) / found.trainer.experiment.tokens.temperature)
            gates.append(torch.from_numpy(masks[-1]).float() + slope - slope.detach())
            gate = torch.cat([gate[:, :special], gates[-1][..., None]], dim=1)
        x = x + gate * block.ls2(block.mlp(block.norm2(x)))
    return reference.forward_head(reference.norm(x)), np.stack(masks, axis=1), torch.stack(gates).mean(), routers


def fed(found: SimpleNamespace) -> np.ndarray:
    """Which patches go through the MLP of each block that has a router; all other tokens go through every one."""
    seen = []
    for block in found.model.explain(found.images).blocks:
        if block.fed is not None:
            patches = block.left.span(PATCH)
            seen.append(block.fed[:, patches])
            assert np.delete(block.fed, np.r_[patches], axis=1).all()
    return np.stack(seen, axis=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_it_is_what_the_papers_equations_say(model, backend):
    """The same logits, the same patches past the MLPs, and the same loss and gradients of what is trained."""
    found = made(backend, model)
    logits, masks, share, routers = transcribed(found)
    assert all(0 < mask.mean() < 1 for mask in masks.swapaxes(0, 1))
    np.testing.assert_array_equal(fed(found), masks)
    assert relative(found.model.logits(found.images), logits.detach().numpy()) <= LOGITS
    loss, gradients = found.trainer.loss_and_gradients(found.images, found.targets.astype(np.int32))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(found.targets)) + 2 * (share - 0.4) ** 2
    assert loss == pytest.approx(expected.item(), rel=LOGITS)
    for (name, parameter), gradient in zip(
        routers.items(), torch.autograd.grad(expected, list(routers.values())), strict=True
    ):
        assert relative(gradients[name], gradient.numpy()) <= GRADIENTS, name
        assert gradient.abs().sum() > 0 and parameter.shape == gradient.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_go_through_every_mlp(backend):
    found = made(backend, "registers", {"name": "vpt", "tokens": 3})
    assert 0 < fed(found).mean() < 1  # which says so of the others too


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_all_but_nothing_is_nothing(backend):
    """A router without weights says 0 of each token, and one with the smallest of biases too: none goes through."""
    found = made(backend)
    routers = {name: np.zeros_like(tensor) for name, tensor in found.start.items() if is_router(name)}
    for bias, through in ((0.0, False), (1e-6, False), (1e-3, True)):
        found.model.load_adapter(found.start | routers | {"routers.bias": np.full_like(routers["routers.bias"], bias)})
        assert (fed(found) == through).all()
    plain = BACKENDS[backend].build_model(found.base, 5, found.trainer.experiment.method)
    plain.load_adapter({name: tensor for name, tensor in found.start.items() if not is_router(name)})
    assert relative(found.model.logits(found.images), plain.logits(found.images)) <= LOGITS


@pytest.mark.parametrize("library", [mlx_peft.backend.models.stochastic, torch_ref.models.stochastic])
def test_the_draws_are_those_of_two_gumbels_difference(library):
    """Kolmogorov and Smirnov's test of 20,000 draws, seeded: it fails once in ten thousand seeds."""
    zeros = mx.zeros((20_000,)) if library.__name__.startswith("mlx") else torch.zeros(20_000)
    with library.randomness(1):
        drawn = np.asarray(library.logistic(zeros, True))
        assert not library.logistic(zeros, False).any()
    assert not library.logistic(zeros, True).any()
    gumbels = np.random.default_rng(0).gumbel(size=(2, 20_000))
    assert scipy.stats.kstest(drawn, "logistic").pvalue > 1e-4
    assert scipy.stats.ks_2samp(drawn, gumbels[0] - gumbels[1]).pvalue > 1e-4
    with library.randomness(1):
        np.testing.assert_array_equal(np.asarray(library.logistic(zeros, True)), drawn)


def test_both_backends_begin_with_the_same_routers():
    ours, theirs, other = made("mlx"), made("torch"), made("torch", seed=1)
    for name in ("routers.weight", "routers.bias"):
        np.testing.assert_array_equal(ours.start[name], theirs.start[name])
    assert ours.start["routers.weight"].std() == pytest.approx(0.02, rel=0.2) and not ours.start["routers.bias"].any()
    assert not np.array_equal(theirs.start["routers.weight"], other.start["routers.weight"])


@pytest.mark.parametrize("model", MODELS)
def test_the_adapters_tensors_are_known_without_a_model(model):
    found = made("torch", model, LORA)
    experiment = found.trainer.experiment
    wanted = adapter_shapes(experiment.method, found.base.architecture, 5, tokens=experiment.tokens)
    assert wanted == {name: tensor.shape for name, tensor in found.start.items()}
    assert wanted["routers.weight"] == (3 if model == "averaged" else 2, 64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [LORA, {"name": "vpt", "tokens": 3, "deep": True}], ids=["lora", "vpt-deep"])
def test_a_step_draws_and_gives_the_same_however_it_is_computed(method, backend):
    """Twice, and with blocks that are computed again in the backward pass, which draws what the first one drew."""
    steps = []
    for train in ({}, {}, {"gradient_checkpointing": True}):
        one = made(backend, method=method, train=train)
        quiet = one.trainer.loss_and_gradients(one.images, one.targets.astype(np.int32))[0]
        loss = float(one.trainer.train_step(one.images, one.targets.astype(np.int32), 1e-2))
        assert loss != pytest.approx(quiet, rel=1e-5)
        steps.append(one.model.adapter())
    first, again, recomputed = steps
    assert all(np.array_equal(first[name], tensor) for name, tensor in again.items())
    assert all(relative(first[name], tensor) <= GRADIENTS for name, tensor in recomputed.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_a_checkpoint_it_goes_on_to_the_same_bytes(backend):
    whole, first, second = (made(backend, method=LORA) for _ in range(3))
    targets = whole.targets.astype(np.int32)
    for trainer, steps in ((whole.trainer, 4), (first.trainer, 2)):
        for _ in range(steps):
            trainer.train_step(whole.images, targets, 1e-2)
    second.trainer.load_state(first.trainer.state())
    for _ in range(2):
        second.trainer.train_step(whole.images, targets, 1e-2)
    after = second.trainer.state()
    assert all(after[name].tobytes() == array.tobytes() for name, array in whole.trainer.state().items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_the_share_goes_to_the_rate(rate, backend):
    found = made(backend, rate=rate, weight=20, train={"optimizer": {"name": "adamw", "lr": 0.02}})
    before = abs(fed(found).mean() - rate)
    for _ in range(40):
        found.trainer.train_step(found.images, found.targets.astype(np.int32), 0.02)
    assert abs(fed(found).mean() - rate) < min(before, 0.1)


def test_a_model_of_one_block_whose_patches_nobody_reads_has_no_use_for_it():
    one = Architecture(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3)
    with pytest.raises(UserError, match="dyt needs a block that patch tokens come out of"):
        DyT().check(one)
    DyT().check(one.model_copy(update={"global_pool": "avg"}))
