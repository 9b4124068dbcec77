"""What a training step promises whatever the method: recomputation, accumulation, precision, resuming, padding."""

import numpy as np
import pytest
from comparing import relative

LORA = {"name": "lora", "rank": 4, "targets": ["qkv", "proj", "fc1", "fc2"]}
DORA, PISSA = LORA | {"dora": True}, LORA | {"init": "pissa", "targets": ["q", "v"]}
SGD = {"name": "sgd", "momentum": 0.0}
ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass and three steps of Adam."""


def worst(a, b):
    return max(relative(a[n], b[n]) for n in b)


def trained(trainer, batch, steps=3):
    losses = [float(trainer.train_step(*batch, 1e-2)) for _ in range(steps)]
    return losses, trainer.model.adapter()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", [LORA, DORA, PISSA, {"name": "full"}], ids=["lora", "dora", "pissa", "full"])
def test_checkpointing_gives_the_same_gradients(build, batch, away, method):
    plain, recomputed = build(method), build(method, train={"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    results = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        results.append(trainer.loss_and_gradients(*batch)[1])
    assert all(np.linalg.norm(g) > 0 for n, g in results[1].items() if "lora" in n)
    # In full fine-tuning the key's bias has no gradient but rounding: compare the fused bias as a whole.
    assert worst(results[1], results[0]) <= ROUNDING


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", [LORA, DORA | PISSA], ids=["lora", "dora with pissa"])
def test_checkpointing_drops_what_training_without_it_drops(build, batch, method):
    rates = {"drop_path": 0.3, "head_dropout": 0.3}
    method = method | {"dropout": 0.3}
    plain, recomputed = build(method, rates), build(method, rates, {"gradient_checkpointing": True})
    (losses, a), (losses_b, b) = trained(plain, batch), trained(recomputed, batch)
    assert losses == pytest.approx(losses_b, rel=ROUNDING)
    assert worst(a, b) <= 1e-3  # Adam divides by sqrt(v), and magnifies rounding in small gradients


@pytest.mark.parametrize("rates", [{"drop_path": 0.4}, {"head_dropout": 0.4}], ids=str)
def test_checkpointing_drops_the_same_activations_in_both_passes(build, batch, rates):
    """Were the second pass to draw anew, the gradient of the loss that was reported would be another one."""
    recomputed = build(LORA | {"dropout": 0.4}, rates, {"gradient_checkpointing": True, "optimizer": SGD})
    start, step = recomputed.model.adapter(), 1e-3
    state = recomputed.state()
    loss = float(recomputed.train_step(*batch, step))
    gradients = {n: (start[n] - t) / step for n, t in recomputed.model.adapter().items()}
    slope = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values())
    recomputed.load_state(state)
    recomputed.model.load_adapter({n: t - 0.1 * step * gradients[n] for n, t in start.items()})
    moved = float(recomputed.train_step(*batch, step))  # same step number, so the same masks
    # First order: loss falls by 0.1 step |g|^2; curvature over so short a way is a few per cent.
    assert (loss - moved) == pytest.approx(0.1 * step * slope, rel=0.1)


def test_accumulated_parts_give_the_whole_batchs_step(build, batch):
    whole, parts = build(LORA), build(LORA, train={"accumulate": 2})
    (losses, a), (losses_b, b) = trained(whole, batch), trained(parts, batch)
    assert losses == pytest.approx(losses_b, rel=ROUNDING)
    assert worst(a, b) <= 1e-3  # Adam divides by sqrt(v), and magnifies rounding in small gradients


def test_rows_that_fill_a_batch_up_change_nothing(build, batch):
    images, targets = batch
    padded = np.concatenate([images[:3], 255 - images[:1]]), np.array([*targets[:3], -1], np.int32)
    filled = np.concatenate([images[:3], images[:1]]), np.array([*targets[:3], -1], np.int32)
    a, b = (build(LORA).loss_and_gradients(*x) for x in (padded, filled))
    assert a[0] == pytest.approx(b[0], rel=1e-6)
    assert worst(a[1], b[1]) <= ROUNDING


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 5e-2), ("float16", 1e-2)])
def test_half_precision_follows_float32(build, batch, away, precision, tolerance):
    """Relative errors of whole-ViT logits as expected of 8 and 11 bits of mantissa."""
    exact, half = build(LORA), build(LORA, train={"precision": precision})
    start = away(exact.model.adapter(), 0.01)
    exact.model.load_adapter(start)
    half.model.load_adapter(start)
    a, b = half.model.logits(batch[0]), exact.model.logits(batch[0])
    assert 0 < relative(a, b) <= tolerance
    (losses, adapter), (losses_b, _) = trained(half, batch), trained(exact, batch)
    assert losses == pytest.approx(losses_b, rel=tolerance)
    assert all(t.dtype == np.float32 for t in adapter.values())


def test_float16_leaves_out_a_step_that_overflows_and_halves_its_scale(build, batch, away):
    trainer = build(LORA, train={"precision": "float16"})
    start = trainer.model.adapter()
    huge = start | {"head.weight": np.full_like(start["head.weight"], 3e4)}
    huge["head.weight"][0] *= -1
    trainer.model.load_adapter(huge)
    state = trainer.state()
    scale = next(name for name in state if name.endswith("scale"))
    float(trainer.train_step(*batch, 1e-2))
    after = trainer.state()
    assert after[scale] == state[scale] / 2
    np.testing.assert_array_equal(trainer.model.adapter()["head.weight"], huge["head.weight"])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}])
def test_a_saved_state_goes_on_bit_for_bit(build, batch, optimizer):
    options = {"optimizer": optimizer, "clip_norm": 1.0}
    method = LORA | {"dropout": 0.1}
    trainer, other = build(method, train=options), build(method, train=options)
    trained(trainer, batch)
    other.load_state(trainer.state())
    (losses, a), (losses_b, b) = trained(trainer, batch), trained(other, batch)
    assert losses == losses_b
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_step_that_is_broken_off_is_as_if_it_had_not_begun(build, batch, monkeypatch):
    """In its second part: the gradients of the first are gone with it."""
    trainer, other = (build(LORA | {"dropout": 0.1}, train={"accumulate": 2}) for _ in range(2))
    forward, calls = trainer.model.forward, []

    def failing(inputs):
        calls.append(inputs)
        if len(calls) == 2:
            raise MemoryError
        return forward(inputs)

    monkeypatch.setattr(trainer.model, "forward", failing)
    with pytest.raises(MemoryError):
        trainer.train_step(*batch, 1e-2)
    assert trainer.step == 0
    (losses, a), (losses_b, b) = trained(trainer, batch), trained(other, batch)
    assert losses == losses_b
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_evaluation_drops_nothing(build, batch):
    trainer = build(LORA | {"dropout": 0.5}, {"head_dropout": 0.5})
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), trainer.model.logits(batch[0]))
    trained(trainer, batch, 1)
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), trainer.model.logits(batch[0]))


def test_small_images_are_resized_inside_the_step(build):
    """Against Pillow: it rounds after each of its two passes, so up to one level of 255 apart."""
    from PIL import Image

    trainer = build({"name": "linear"})
    small = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    bicubic = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in small]
    assert trainer.model.base.preprocessing.interpolation == "bicubic"
    a, b = trainer.model.logits(small), trainer.model.logits(np.stack([np.asarray(image) for image in bicubic]))
    assert relative(a, b) <= 1e-2


def test_foreign_tensors_are_refused(build):
    trainer = build(LORA)
    with pytest.raises(ValueError, match=r"head\.bias"):
        trainer.model.load_adapter({n: t for n, t in trainer.model.adapter().items() if n != "head.bias"})
    with pytest.raises(ValueError, match=r"head\.bias has the shape \(6,\)"):
        trainer.model.load_adapter(trainer.model.adapter() | {"head.bias": np.zeros(6, np.float32)})
