"""Training in half precision: it ends where float32 ends, and a step that overflows leaves everything as it was."""

from functools import cache

import numpy as np
import pytest

import mlx_peft.backend.training
import torch_ref.training

LORA = {"name": "lora", "rank": 4, "targets": ["qkv", "fc2"]}
ADALORA = {"name": "adalora", "init_rank": 4, "target_rank": 2, "targets": ["qkv", "fc2"]}
ONE_BLOCK = {"args": {"patch_size": 16, "embed_dim": 48, "depth": 1, "num_heads": 3}}

OPTIMIZERS = {
    "adamw": {"name": "adamw", "lr": 1e-2},
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 1e-3},
    "momentum": {"name": "sgd", "lr": 0.03, "momentum": 0.9},
    "nesterov": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
}
WAYS = {"whole": {}, "accumulated and clipped": {"accumulate": 2, "clip_norm": 1.0}}

FIRST_SCALE = 2.0**20
"""Of the loss: a few steps overflow before it is small enough."""
TOO_LARGE = 2.0**40
"""A scale of the loss under which any gradient of a logit, from 1e-7 on, is beyond float16's 65504."""

CLASSES, STEPS, BATCH = 5, 12, 20
NEAR = 0.05
"""Of 100 images that were not trained on, so many may be told apart by one precision and not by the other: a run of
some steps magnifies roundings, and the two disagree about images that lie between classes."""


@cache
def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture for each class, under so much noise that some are taken for another's."""
    patterns = np.random.default_rng(0).normal(0, 30, (CLASSES, 32, 32, 3))
    targets = np.arange(count, dtype=np.int32) % CLASSES
    noisy = 128 + patterns[targets] + np.random.default_rng(seed).normal(0, 30, (count, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8), targets


def scale_of(trainer) -> float:
    """What the loss is multiplied by; 1 but in float16."""
    return float(next((value for key, value in trainer.state().items() if key.endswith("scale")), 1.0))


def accuracy(trainer, lr: float) -> float:
    """Of the trainer on other images, once it was trained; the batch of a step that overflowed comes again."""
    for step in range(STEPS):
        before = 0.0
        while scale_of(trainer) != before:
            before = scale_of(trainer)
            assert np.isfinite(float(trainer.train_step(*pictures(BATCH, 2 + step), lr)))
    images, targets = pictures(100, 1)
    return float((trainer.model.logits(images).argmax(1) == targets).mean())


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("adamw", "whole"),
        ("nesterov", "accumulated and clipped"),
        *(
            pytest.param(name, "accumulated and clipped", marks=pytest.mark.slow)
            for name in OPTIMIZERS
            if name != "nesterov"
        ),
    ],
)
def test_half_precision_ends_near_float32(build, monkeypatch, name, way):
    """Under float16 the first steps overflow, as they do in most runs."""
    for backend in (mlx_peft.backend.training, torch_ref.training):
        monkeypatch.setattr(backend, "INITIAL_SCALE", FIRST_SCALE)
    optimizer = OPTIMIZERS[name]
    trainers = {
        precision: build(LORA, ONE_BLOCK, {"optimizer": optimizer, "precision": precision} | WAYS[way])
        for precision in ("float32", "bfloat16", "float16")
    }
    ends = {precision: accuracy(trainer, optimizer["lr"]) for precision, trainer in trainers.items()}
    assert 1 < scale_of(trainers["float16"]) < FIRST_SCALE
    assert ends["float32"] >= 0.6  # chance is 0.2
    assert ends["bfloat16"] == pytest.approx(ends["float32"], abs=NEAR)
    assert ends["float16"] == pytest.approx(ends["float32"], abs=NEAR)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_overflows_leaves_everything_as_it_was(build, batch, name, way):
    """Parameters, moments, the optimiser's count of steps, AdaLoRA's averages: bit for bit."""
    trainer = build(ADALORA, ONE_BLOCK, {"precision": "float16", "optimizer": OPTIMIZERS[name]} | WAYS[way])
    trainer.train_step(*batch, 1e-3, observe=True)
    before = trainer.state()
    scale = next(key for key in before if key.endswith("scale"))
    before[scale] = np.full_like(before[scale], TOO_LARGE)
    trainer.load_state(before)
    float(trainer.train_step(*batch, 1e-3, observe=True))
    after = trainer.state()
    assert after.keys() == before.keys()
    assert after[scale] == TOO_LARGE / 2
    own = {scale, "step", next(key for key in before if key.endswith("good_steps"))}
    for key in before.keys() - own:
        np.testing.assert_array_equal(after[key], before[key], key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_step_that_overflowed_training_goes_on_as_if_it_had_not_been(build, batch, name):
    """With a scale that is a power of two, which changes no digit."""
    options = {"precision": "float16", "optimizer": OPTIMIZERS[name]}
    plain, interrupted = build(LORA, ONE_BLOCK, options), build(LORA, ONE_BLOCK, options)
    state = interrupted.state()
    scale = next(key for key in state if key.endswith("scale"))
    first = float(state[scale])
    for trainer in (plain, interrupted):
        trainer.train_step(*batch, 1e-3)
    state = interrupted.state()
    state[scale] = np.full_like(state[scale], TOO_LARGE)
    interrupted.load_state(state)
    interrupted.train_step(*batch, 1e-3)
    state = interrupted.state()
    state[scale] = np.full_like(state[scale], first)
    interrupted.load_state(state)
    for trainer in (plain, interrupted):
        trainer.train_step(*batch, 1e-3)
    a, b = plain.model.adapter(), interrupted.model.adapter()
    for key in a:
        np.testing.assert_array_equal(b[key], a[key], key)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_frequencies_of_positions_are_not_rounded(build, precision):
    """Rounded to bfloat16, one of 1 is off by 1/256, and what it turns 13 patches further on by 0.05 radians."""
    positions = {"family": "eva", "positions": "mixed", "rope_temperature": 10.0}
    trainer = build(LORA, {"args": ONE_BLOCK["args"] | positions}, {"precision": precision})
    whole = build({"name": "full"}, {"args": ONE_BLOCK["args"] | positions}).model.adapter()["rope.freqs"]
    found = trainer.model.network.rope.freqs
    assert str(found.dtype).endswith("float32")
    np.testing.assert_array_equal(np.asarray(found.tolist(), np.float32), whole)
    assert not str(trainer.model.network.patch_embed.proj.weight.dtype).endswith("float32")
