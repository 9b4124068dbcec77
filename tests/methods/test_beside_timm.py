"""Models whose attention knows positions give timm's logits, and in training its gradients."""

import pytest
import seams
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative
from methods import small_beit, small_eva
from seams import pixels

PLANS = {"rotary": small_eva, "relative": small_beit}
KINDS = [(plan, kind) for plan, module in PLANS.items() for kind in module.KINDS]

AMPLIFIED = 2e-4
"""Relative, where norms stand behind attention and MLP: what these give is small, and a norm makes its rounding larger
by as much as it makes them: timm's own gradients in float32 are 4e-5 away from those in float64."""


def described(plan, kind):
    """Our fields of the model, and timm's arguments in which it differs from its plan."""
    fields, arguments = PLANS[plan].KINDS[kind]
    return PLANS[plan].ARGS | fields, arguments


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("plan", "kind"), KINDS)
def test_logits_are_timms(build, batch, away, plan, kind):
    args, arguments = described(plan, kind)
    weights = away(build({"name": "full"}, {"args": args}).model.adapter(), 0.3)
    found = build({"name": "linear"}, {"args": args}, weights=weights)
    with torch.no_grad():
        expected = PLANS[plan].of_timm(weights, **arguments)(pixels(found, batch[0])).numpy()
    assert relative(found.model.logits(batch[0]), expected) <= LOGITS
    plain = {name: tensor for name, tensor in weights.items() if "relative" not in name and name != "rope.freqs"}
    without = build({"name": "linear"}, {"args": args | {"positions": "learnt"}}, weights=plain)
    assert relative(without.model.logits(batch[0]), expected) > 1e-3, "the positions must matter to say anything"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("plan", "kind"), KINDS)
def test_gradients_are_timms(build, batch, away, plan, kind, checkpointing):
    args, arguments = described(plan, kind)
    weights = away(build({"name": "full"}, {"args": args}).model.adapter(), 0.3)
    trainer = build({"name": "full"}, {"args": args}, {"gradient_checkpointing": checkpointing}, weights=weights)
    trainer.model.load_adapter(weights)
    rounding = AMPLIFIED if "post_norm" in args else seams.ROUNDING
    seams.same_gradients(trainer, PLANS[plan].of_timm(weights, **arguments), *batch, rounding)
