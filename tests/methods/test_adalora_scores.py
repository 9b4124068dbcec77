"""AdaLoRA's scores are the paper's, and a mask clears what is not kept."""

import numpy as np
import pytest
from comparing import relative
from methods.adalora import ADAPTERS, AVERAGED, METHOD, SGD, triplets


def observed(trainer, batch, steps, lr, clip):
    """The scores by the paper (equations 9 to 11, section 3.2), from parameters and gradients that cross the border."""
    mean, spread = {}, {}
    for _ in range(steps):
        _, gradients = trainer.loss_and_gradients(*batch)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        float(trainer.train_step(*batch, lr, observe=True))
        after = trainer.model.adapter()
        for name, gradient in gradients.items():
            now = np.abs(after[name] * (gradient.astype(np.float64) * min(1, clip / norm)))
            mean[name] = 0.8 * mean.get(name, 0) + (1 - 0.8) * now
            spread[name] = 0.7 * spread.get(name, 0) + (1 - 0.7) * np.abs(now - mean[name])
    elements = {name: mean[name] * spread[name] for name in mean}
    scores = {}
    for adapter in ADAPTERS:
        A, B, E = triplets(elements, adapter)
        scores[adapter] = E[:, 0] + A.mean(1) + B.mean(0)
    return scores


@pytest.mark.one_in(2)
@pytest.mark.parametrize("optimizer", [SGD, {"name": "adamw"}], ids=["sgd", "adamw"])
def test_scores_are_the_papers(build, batch, away, optimizer):
    clip = 0.1
    method = METHOD | {"beta1": 0.8, "beta2": 0.7}
    trainer = build(method, train={"optimizer": optimizer, "clip_norm": clip})
    assert {name: values.tolist() for name, values in trainer.scores().items()} == {
        name: [0.0] * 4 for name in ADAPTERS
    }
    trainer.model.load_adapter(away(trainer.model.adapter()))
    expected = observed(trainer, batch, 4, 1e-2, clip)
    found = trainer.scores()
    assert list(found) == list(expected)
    for adapter, scores in expected.items():
        assert found[adapter].dtype == np.float32 and found[adapter].shape == (4,)
        assert relative(found[adapter], scores) <= AVERAGED


def test_a_step_that_is_not_observed_leaves_the_scores(build, batch, away):
    trainer = build(METHOD)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    float(trainer.train_step(*batch, 1e-2, observe=True))
    before = trainer.scores()
    float(trainer.train_step(*batch, 1e-2))
    for adapter, scores in trainer.scores().items():
        np.testing.assert_array_equal(scores, before[adapter])
        assert scores.all()


def test_a_step_that_overflows_is_not_observed(build, batch, away):
    trainer = build(METHOD, train={"precision": "float16"})
    start = away(trainer.model.adapter())
    start["head.weight"] = np.full_like(start["head.weight"], 3e4)
    start["head.weight"][0] *= -1
    trainer.model.load_adapter(start)
    float(trainer.train_step(*batch, 1e-2, observe=True))
    np.testing.assert_array_equal(trainer.model.adapter()["head.weight"], start["head.weight"])
    assert not any(scores.any() for scores in trainer.scores().values())


def test_a_mask_clears_what_is_not_kept_and_it_may_come_back(build, batch, away):
    trainer = build(METHOD)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    before, random = trainer.model.adapter(), np.random.default_rng(3)
    keep = {adapter: (random.random(4) < 0.5).tolist() for adapter in ADAPTERS}
    for _ in range(2):
        trainer.mask(keep)
        after = trainer.model.adapter()
        for adapter in ADAPTERS:
            (A, B, E), (A_before, B_before, E_before) = triplets(after, adapter), triplets(before, adapter)
            np.testing.assert_array_equal(A, A_before)
            np.testing.assert_array_equal(B, B_before)
            np.testing.assert_array_equal(E[:, 0], np.where(keep[adapter], E_before[:, 0], 0))
        float(trainer.train_step(*batch, 1e-2))
        before = trainer.model.adapter()
        assert all(triplets(before, adapter)[2].all() for adapter in ADAPTERS)
    everything = {adapter: [True] * 4 for adapter in ADAPTERS}
    trainer.mask(everything)
    np.testing.assert_array_equal(
        trainer.model.adapter()["blocks.0.attn.proj.lora_E"], before["blocks.0.attn.proj.lora_E"]
    )


def test_a_saved_state_goes_on_bit_for_bit(build, batch, away):
    method, train = METHOD | {"dropout": 0.1}, {"clip_norm": 1.0}
    trainer, other = build(method, train=train), build(method, train=train)
    keep = {adapter: [True, False, True, False] for adapter in ADAPTERS}

    def go_on(one):
        losses = []
        for observe in (True, False, True):
            losses.append(float(one.train_step(*batch, 1e-2, observe=observe)))
            one.mask(keep)
        return losses, one.model.adapter() | one.scores()

    go_on(trainer)
    other.load_state(trainer.state())
    (losses, a), (losses_b, b) = go_on(trainer), go_on(other)
    assert losses == losses_b
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_other_methods_average_nothing(build):
    trainer = build({"name": "lora", "rank": 4})
    assert trainer.scores() == {}
    assert not any("importance" in name or "uncertainty" in name for name in trainer.state())
