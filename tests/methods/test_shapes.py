"""What is said of a method's tensors without a model is what both backends make; and it is no more than they hold."""

from __future__ import annotations

import pytest

from mlx_peft.adaptation import footprint
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.config.quantization import QAT, Quantization
from torch_ref.measured import saved_bytes

METHODS = {
    "linear": {},
    "full": {},
    "full of some blocks": {"blocks": [1]},
    "bitfit": {},
    "layernorm": {},
    "lora": {"targets": ["qkv", "fc2"], "rank": 3},
    "lora of parts": {"targets": ["q", "v", "proj"], "rank": 3, "rank_pattern": {"proj": 5}, "blocks": "last 2"},
    "lora with dora and pissa": {"targets": ["k", "fc1"], "rank": 3, "dora": True, "init": "pissa"},
    "adalora": {"targets": ["q", "v", "fc1"]},
    "vera": {"targets": ["q", "v", "fc1"], "rank": 7},
    "fact": {"rank": 4},
    "ia3": {"targets": ["k", "v", "proj", "fc2"]},
    "ssf": {},
    "ssf of some blocks": {"blocks": [0, 2]},
    "adaptformer": {"bottleneck": 6, "blocks": [0, -1]},
    "oft": {"block_size": 8, "targets": ["qkv", "fc2"]},
    "oft of one rotation": {"block_count": 3, "block_share": True},
    "adapter_plus": {"bottleneck": 6, "blocks": [1]},
    "houlsby": {"bottleneck": 6, "blocks": [0, -1]},
    "boft": {"block_size": 4, "factors": 2, "targets": ["qkv", "fc2"]},
    "road": {"group_size": 8, "targets": ["q", "v", "fc2"]},
    "road of four": {"group_size": 16, "variant": 4},
    "loha": {"rank": 3, "targets": ["q", "v", "fc1"]},
    "lokr": {"rank": 3},
    "lokr of both": {"rank": 2, "decompose_both": True, "factor": 8, "targets": ["fc2"]},
    "miss": {"rank": 7, "targets": ["q", "v", "fc1"]},
    "miss mini": {"rank": 16, "mini": 12, "targets": ["qkv", "fc2"]},
    "randlora": {"rank": 11, "targets": ["qkv", "fc2"]},
    "randlora of one product": {"rank": 48, "targets": ["proj"]},
    "pvera": {"rank": 7, "targets": ["q", "v", "fc1"]},
    "repadapter": {"bottleneck": 6, "groups": 3},
    "convpass": {"bottleneck": 6},
    "lst": {"reduction": 4},
    "lst of some blocks": {"reduction": 8, "blocks": "last 2"},
    "vpt": {"tokens": 4},
    "vpt deep": {"tokens": 4, "deep": True, "blocks": "first 2"},
}
WIDE = {"embed_dim": 64, "num_heads": 2, "depth": 2, "patch_size": 8}


def named(case: str) -> dict:
    return {"name": case.split()[0], **METHODS[case]}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", METHODS)
@pytest.mark.parametrize(
    "args", [{}, {"mlp_layer": "swiglu", "init_values": 0.1, "qk_norm": True}], ids=["plain", "gated"]
)
def test_an_adapter_s_tensors_are_known_without_a_model(build, case, args) -> None:
    trainer = build(named(case), model={"args": {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, **args}})
    found = {name: tensor.shape for name, tensor in trainer.model.adapter().items()}
    assert adapter_shapes(trainer.experiment.method, trainer.model.base.architecture, 5) == found


def test_over_codes_and_through_them_likewise(build) -> None:
    quantization = Quantization(bits=4, group_size=32)
    trainer = build(
        {"name": "qalora", "targets": ["q", "v", "fc2"], "rank": 3}, model={"args": WIDE}, quantize=dict(quantization)
    )
    found = {name: tensor.shape for name, tensor in trainer.model.adapter().items()}
    assert adapter_shapes(trainer.experiment.method, trainer.model.base.architecture, 5, quantization) == found


def test_trained_scales_are_among_them(build) -> None:
    qat = QAT(bits=4, group_size=32, scales="learned")
    trainer = build({"name": "lora", "rank": 3}, model={"args": WIDE}, qat=dict(qat))
    found = {name: tensor.shape for name, tensor in trainer.model.adapter().items()}
    assert adapter_shapes(trainer.experiment.method, trainer.model.base.architecture, 5, qat=qat) == found


OPTIMIZERS = [({"name": "adamw"}, 2), ({"name": "sgd"}, 1), ({"name": "sgd", "momentum": 0}, 0)]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("case", "optimizer", "moments"), [
    *((case, *OPTIMIZERS[0]) for case in METHODS), *(("lora", *optimizer) for optimizer in OPTIMIZERS[1:])
])  # fmt: skip
def test_parameters_and_moments_are_counted_to_the_byte(build, batch, case, optimizer, moments) -> None:
    """A backend may hold counters of steps besides, and the averages of AdaLoRA."""
    trainer = build(named(case), train={"optimizer": optimizer})
    parts = footprint.training(trainer.experiment, trainer.model.base.architecture, 5, batch=4)
    assert parts["weights"] + parts["adapter"] == 4 * trainer.model.parameters.total
    assert parts["optimizer"] == 4 * moments * trainer.model.parameters.trainable
    float(trainer.train_step(*batch, 1e-3))  # torch makes its moments in the first step
    slots = {name: tensor for name, tensor in trainer.state().items() if not name.startswith("parameters.")}
    assert parts["optimizer"] <= sum(tensor.nbytes for tensor in slots.values())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("build", ["torch"], indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", METHODS)
def test_activations_are_no_more_than_autograd_keeps(build, batch, case, checkpointing) -> None:
    """Where all blocks are trained a sixth of it is counted, or more: a bound that bounds nothing is none.

    Where nothing is kept, any forward pass holds one block's input beside q, k and v.
    """
    trainer = build(named(case), train={"gradient_checkpointing": checkpointing})
    counted = footprint.training(trainer.experiment, trainer.model.base.architecture, 5, batch=4)["activations"]
    forward = footprint.answering(trainer.model.base.architecture, 5, footprint.Answering(4))["activations"]
    kept = saved_bytes(trainer, *batch)
    assert counted <= max(kept, forward)
    if case in ("full", "lora") and not checkpointing:
        assert counted > kept / 6
