"""Quantisation-aware training: what is computed, what its gradient is, and that training sees what is deployed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comparing import relative
from halves import half_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

# isort: split
import mlx.core as mx

import mlx_peft
import mlx_peft.backend.quant.aware
import torch_ref.quant.aware
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from mlx_peft.checks import parity
from mlx_peft.codes.affine import dequantized, packed
from mlx_peft.config.methods import Full, LoRA
from mlx_peft.config.quantization import QAT, SCALE, Quantization
from mlx_peft.core.errors import UserError

ROUNDING = 1e-5
"""Relative, float32: the same products in another order, through two blocks."""

FOUR = {"bits": 4, "group_size": 32}
METHODS = [
    {"name": "full"},
    {"name": "full", "blocks": [1]},
    {"name": "lora", "targets": "all-linear"},
    {"name": "lora", "init": "pissa", "targets": ["q", "v"]},
    {"name": "lora", "dora": True, "targets": ["q", "v", "fc1"]},
    {"name": "adalora"},
    {"name": "vera", "rank": 16},
]


def plain(config):
    return config.model_copy(update={"method": mlx_peft.Linear(), "qat": None})


@pytest.mark.parametrize(("method", "scales"), half_of(METHODS, ["minmax", "learned"]), ids=str)
def test_the_quantised_model_gives_the_logits_that_training_saw(build, batch, method, scales):
    qat = FOUR | {"scales": scales}
    trainer = build(method, qat=qat)
    for _ in range(3):
        trainer.train_step(*batch, 1e-3)
    seen = trainer.model.logits(batch[0])
    deployed, exact = trainer.model.merged(), trainer.model.merged(dequantize=True)
    assert np.array_equal(trainer.model.logits(batch[0]), seen)  # as if nothing had been merged
    assert sum(tensor.dtype == np.uint32 for tensor in deployed.values()) == 2 * 4  # every linear layer of two blocks
    config, quantization = plain(trainer.experiment), Quantization(**FOUR)
    base = load_base(config.model, 5, 0)
    codes = type(trainer)(config, 5, replace(base, tensors=deployed, quantization=quantization))
    assert relative(codes.model.logits(batch[0]), seen) <= ROUNDING
    assert relative(type(trainer)(config, 5, replace(base, tensors=exact)).model.logits(batch[0]), seen) <= ROUNDING


@pytest.mark.one_in(2)
@pytest.mark.parametrize("bits", [8, 3, 2])
@pytest.mark.parametrize("scales", ["minmax", "learned"])
def test_so_it_does_at_other_bits(build, batch, bits, scales):
    trainer = build({"name": "full"}, qat={"bits": bits, "group_size": 64, "scales": scales})
    trainer.train_step(*batch, 1e-3)
    config, quantization = plain(trainer.experiment), Quantization(bits=bits, group_size=64)
    base = replace(load_base(config.model, 5, 0), tensors=trainer.model.merged(), quantization=quantization)
    assert relative(type(trainer)(config, 5, base).model.logits(batch[0]), trainer.model.logits(batch[0])) <= ROUNDING


EXACTLY_FORMED = METHODS[:3]
"""Their weight has one rounding where the factors are multiples of 2^-10. Others' sums depend on the order, and a
weight that differs by a rounding may fall on the other side of a step."""

FEW = 1e-3
"""Share of words, of eight codes each, that may differ for want of that."""


@pytest.mark.parametrize("scales", ["minmax", "learned"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_backends_agree(described, batch, method, scales):
    config = described(method, qat=FOUR | {"scales": scales})
    base = load_base(config.model, 5, 0)
    a, b = (parity.load_backend(name).build_trainer(config, 5, base) for name in ("mlx", "torch"))
    start = parity.perturbed(b.model.adapter(), seed=2, through_codes=True)
    for trainer in (a, b):
        trainer.model.load_adapter(start)
    ours, theirs = a.model.merged(), b.model.merged()
    words = [name for name, tensor in theirs.items() if tensor.dtype == np.uint32]
    differing = np.concatenate([(ours[name] != theirs[name]).ravel() for name in words]).mean()
    assert differing <= (0 if method in EXACTLY_FORMED else FEW)
    if differing:
        return  # a step of one code in a hundred thousand is more than the tolerances of rounding
    assert relative(a.model.logits(batch[0]), b.model.logits(batch[0])) <= parity.LOGITS
    (_, ours), (_, theirs) = (trainer.loss_and_gradients(*batch) for trainer in (a, b))
    assert ours.keys() == theirs.keys()
    assert max(relative(ours[name], theirs[name]) for name in theirs) <= parity.GRADIENTS


def lsq_of_the_paper(v, s, bits):
    """Esser et al. 2020, equations 1 and 2 and section 2.2, by PyTorch's own differentiation: ``round`` passes the
    gradient, and the step's is scaled; one step size for all of v."""
    n, p = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    g = 1 / (v.numel() * p) ** 0.5
    s = s * g + (s - s * g).detach()
    x = torch.clamp(v / s, -n, p)
    return (x + (torch.round(x) - x).detach()) * s


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_learned_scales_have_the_gradient_of_the_paper(bits):
    random = np.random.default_rng(bits)
    weight, cotangent = (random.standard_normal((3, 64)).astype(np.float32) for _ in range(2))
    scale = (
        np.abs(random.standard_normal((3, 2)).astype(np.float32)) * 2.0 ** (1 - bits) + 0.01
    )  # some values are cut off
    expected = [[], [], []]
    for row, column in np.ndindex(3, 2):
        part = slice(32 * column, 32 * column + 32)
        v, s = torch.tensor(weight[row, part], requires_grad=True), torch.tensor(scale[row, column], requires_grad=True)
        out = lsq_of_the_paper(v, s, bits)
        out.backward(torch.tensor(cotangent[row, part]))
        for place, value in zip(expected, (out.detach(), v.grad, s.grad), strict=True):
            place.append(value.numpy())
    wanted = [np.stack(x).reshape(shape) for x, shape in zip(expected, ((3, 64), (3, 64), (3, 2)), strict=True)]

    w, s = (torch.tensor(array, requires_grad=True) for array in (weight, scale))
    out = torch_ref.quant.aware.learned_step(w, s, bits)
    out.backward(torch.tensor(cotangent))
    ours = [out.detach().numpy(), w.grad.numpy(), s.grad.numpy()]
    out, grads = mx.vjp(
        lambda w, s: mlx_peft.backend.quant.aware.learned_step(w, s, bits),
        [mx.array(weight), mx.array(scale)],
        [mx.array(cotangent)],
    )
    for got in (ours, [np.array(x) for x in (out[0], *grads)]):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # sums of 32 in another order


def test_the_gradient_passes_the_rounding_untouched(build, batch):
    """At weights that are their own codes, training through codes and without has the same gradients."""
    trainer = build({"name": "full"}, qat={"bits": 8, "group_size": 32})
    free = build({"name": "full"})
    tensors = {n: t for n, t in trainer.model.merged(dequantize=True).items() if n in free.model.adapter()}
    free.model.load_adapter(tensors)
    (_, rounded), (_, plain) = trainer.loss_and_gradients(*batch), free.loss_and_gradients(*batch)
    assert rounded.keys() == plain.keys()
    assert max(relative(rounded[name], plain[name]) for name in plain) <= parity.GRADIENTS


@settings(max_examples=50)
@given(st.sampled_from([2, 3, 4, 5, 6, 8]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_packed_codes_are_mlx_own(bits, rows, groups, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 32 * groups), dtype=np.uint32)
    scales, biases = np.ones((rows, groups), np.float32), np.zeros((rows, groups), np.float32)
    words = packed(codes, bits)
    theirs = mx.dequantize(mx.array(words), mx.array(scales), mx.array(biases), group_size=32, bits=bits)
    assert np.array_equal(np.array(theirs), codes)
    assert np.array_equal(dequantized(words, scales, biases, bits), codes)


def test_half_precision_does_not_touch_the_codes(build, batch):
    method = {"name": "lora", "targets": "all-linear"}
    half, single = (build(method, qat=FOUR, precision=precision) for precision in ("bfloat16", "float32"))
    ours, theirs = half.model.merged(), single.model.merged()
    codes = [name for name, tensor in theirs.items() if tensor.dtype == np.uint32]
    assert codes and all(np.array_equal(ours[name], theirs[name]) for name in codes)


def test_scales_learn_slowly_and_do_not_decay(described):
    config = described({"name": "lora", "lora_plus": 4}, qat=FOUR | {"scales": "learned", "lr_ratio": 0.02})
    ratios = [config.rates.lr_ratio(f"blocks.0.attn.qkv.{name}") for name in ("lora_A", "lora_B", SCALE)]
    assert ratios == [1.0, 4.0, 0.02]
    assert not config.rates.decays(f"blocks.0.attn.qkv.{SCALE}", 2)


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "targets": ["q", "v"]}], ids=str)
def test_an_adapter_carries_its_codes(build, batch, tmp_path, method):
    trainer = build(method, qat=FOUR | {"scales": "learned"})
    trainer.train_step(*batch, 1e-3)
    config = trainer.experiment
    adapter = Adapter(
        config.method, trainer.model.adapter(), (), config.model, None, None, None, "none", qat=config.qat
    )
    notes = write_adapter(tmp_path / "adapter", adapter)
    assert notes
    again = read_adapter(tmp_path / "adapter")
    assert again.qat == config.qat
    assert again.tensors.keys() == trainer.model.adapter().keys()
    fresh = build(method, qat=FOUR | {"scales": "learned"})
    fresh.model.load_adapter(again.tensors)
    assert np.array_equal(fresh.model.logits(batch[0]), trainer.model.logits(batch[0]))


def test_peft_is_said_not_to_know_the_codes(build, tmp_path):
    trainer = build({"name": "lora"}, qat=FOUR)
    config = trainer.experiment
    adapter = Adapter(
        config.method, trainer.model.adapter(), (), config.model, None, None, None, "none", qat=config.qat
    )
    assert "other logits" in " ".join(write_adapter(tmp_path / "adapter", adapter))


@pytest.mark.parametrize("library", ["mlx_peft", "torch_ref"])
@pytest.mark.parametrize("method", [Full(), LoRA(targets=("qkv",))], ids=lambda m: m.name)
def test_the_library_rounds_and_takes_it_back(library, method):
    mp = {"mlx_peft": mlx_peft, "torch_ref": torch_ref}[library]
    args = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    model = mp.create_model("vit_tiny_patch16_224", weights="none", num_classes=3, image_size=32, args=args)
    images = mp.prepare(model, np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    before, names = np.array(model(images).tolist()), mp.state_dict(model).keys()
    mp.add_adapter(model, method, qat=QAT(bits=2, group_size=64, scales="learned"))
    assert relative(np.array(model(images).tolist()), before) > 0.01  # two bits are few
    mp.remove_adapter(model)
    assert mp.state_dict(model).keys() == names
    assert np.array_equal(np.array(model(images).tolist()), before)


@pytest.mark.parametrize(
    ("method", "qat", "message"),
    [
        ({"name": "linear"}, FOUR, "trains no weight"),
        ({"name": "ia3"}, FOUR, "full, lora, adalora and vera do"),
        ({"name": "lora", "dropout": 0.1}, FOUR, "method.dropout"),
        ({"name": "lora"}, {"bits": 4, "group_size": 128}, "does not divide"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_through_codes_is_refused(build, method, qat, message):
    with pytest.raises(UserError, match=message):
        build(method, qat=qat)


def test_a_base_is_in_codes_or_trained_towards_them(described, build):
    with pytest.raises(ValidationError, match="choose one"):
        described({"name": "lora"}, FOUR, qat=FOUR)
    trainer = build({"name": "linear"}, FOUR)
    config = described({"name": "lora"}, qat=FOUR)
    base = replace(load_base(config.model, 5, 0), tensors=trainer.model.merged(), quantization=Quantization(**FOUR))
    with pytest.raises(UserError, match="in codes already"):
        type(trainer)(config, 5, base)
