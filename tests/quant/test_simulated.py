"""Models whose products are rounded as their codes would be: what is recorded, decided and computed."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative

# isort: split
import mlx.core as mx
from quant.rounded import LOG_CODES, ROUNDING, in_backends

import mlx_peft.backend.entry
import mlx_peft.backend.methods.simulated
import torch_ref.entry
import torch_ref.methods.simulated
from convert.base import load_base
from mlx_peft.codes import calibration as calibrate
from mlx_peft.codes.calibration import Errors, Ranges, choices, normed, plan
from mlx_peft.codes.quantizers import Uniform
from mlx_peft.config.schema import Experiment
from mlx_peft.config.simulation import Simulation, layers, points
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

WHOLE = 1e-5
"""Relative, float32: attention as one operation adds up in another order than taken apart."""

LOGITS = 0.02
"""Relative, between backends under W8A8: where an operand lies within rounding of an edge, it gets another code, which
is off by a whole step of its quantiser, 1/255 of the range; few do, and most of it averages out."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}


def plain(backend, tensors=None, args=None):
    """A model without a method, of some tensors; or with all of its own moved, so that nothing is at its start."""
    small = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    model = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": small | (args or {})}
    config = Experiment.model_validate({"model": model, "method": {"name": "linear"}, "data": {"name": "digits"}})
    base = load_base(config.model, 5, 0)
    if tensors is None:
        random = np.random.default_rng(1)
        tensors = {n: t + 0.05 * random.standard_normal(t.shape).astype(np.float32) for n, t in base.tensors.items()}
    return backend.build_trainer(config, 5, replace(base, tensors=tensors))


def calibrated(trainer, tensors, batch, **options):
    """The plan of a simulation calibrated on a batch, and the trainer's operands."""
    simulation, architecture = Simulation(**options), trainer.model.base.architecture
    ranges = Ranges(len(batch), 0)
    trainer.model.record(batch, ranges)
    found = choices(simulation, architecture, ranges.operands)
    trainer.model.record(batch, Errors([found], 0))
    return plan(simulation, architecture, tensors, found), found


@pytest.mark.parametrize("args", [{}, {"mlp_layer": "swiglu"}], ids=["mlp", "swiglu"])
def test_the_float_models_logits_stay_under_the_reparametrisation(backend, batch, args):
    trainer = plain(backend, args=args)
    before, start = trainer.model.logits(batch[0]), trainer.model.merged()
    _, found = calibrated(trainer, start, batch[0], activations=4)
    tensors = start
    for norm, readers in normed(trainer.model.base.architecture).items():
        change = found[readers[0]].best
        assert all(found[reader].best.quantizer == change.quantizer for reader in readers)
        tensors = change.absorbed(tensors, norm, readers)
    moved = [name for name in start if np.abs(tensors[name] - start[name]).max() > 0.1]
    assert {name.split(".")[2] for name in moved} == {"norm1", "norm2", "attn", "mlp"}
    after = plain(backend, tensors, args).model.logits(batch[0])
    assert relative(after, before) <= ROUNDING


def test_what_is_recorded_is_what_enters_timms_layers(backend, batch):
    trainer = plain(backend)
    tensors = trainer.model.merged()
    seen = {}
    trainer.model.record(batch[0], lambda point, x: seen.setdefault(point, x))
    assert list(seen) == points(trainer.model.base.architecture)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=5
    ).eval()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    expected = {}
    for site in layers(trainer.model.base.architecture):
        model.get_submodule(site.path).register_forward_pre_hook(
            lambda _, inputs, path=site.path: expected.update({path: inputs[0].detach().numpy()})
        )
    normal = trainer.model.base.preprocessing
    pixels = (batch[0] / 255 - np.array(normal.mean)) / np.array(normal.std)
    model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)))
    for path, operand in expected.items():
        ours = seen[path]  # the last block computes the class token alone, where timm computes all
        np.testing.assert_allclose(ours, operand[:, : ours.shape[1]], atol=1e-4, rtol=1e-4)
    softmax = seen["blocks.0.attn.softmax"]
    assert softmax.shape == (4, 2, 17, 17)
    np.testing.assert_allclose(softmax.sum(-1), 1, rtol=ROUNDING)
    np.testing.assert_allclose(
        seen["blocks.0.attn.proj"],
        (softmax @ seen["blocks.0.attn.v"]).transpose(0, 2, 1, 3).reshape(4, 17, 64),
        atol=1e-4,
    )


def test_of_some_points_nothing_else_is_shown_and_no_probabilities_are_formed(backend, batch, monkeypatch):
    trainer = plain(backend)
    every, some = {}, {}
    trainer.model.record(batch[0], every.__setitem__)

    def formed(*_):
        raise AssertionError("attention is taken apart")

    with monkeypatch.context() as whole:
        for module in (mlx_peft.backend.methods.simulated, torch_ref.methods.simulated):
            whole.setattr(module, "Attend", formed)
        trainer.model.record(batch[0], some.__setitem__, ["blocks.1.attn.proj", "blocks.0.mlp.fc2"])
    assert some.keys() == {"blocks.1.attn.proj", "blocks.0.mlp.fc2"}
    trainer.model.record(batch[0], some.__setitem__, ["blocks.1.attn.softmax"])
    for point, operand in some.items():
        assert relative(operand, every[point]) <= WHOLE, point


def test_recording_leaves_the_model_as_it_was(backend, batch):
    trainer = plain(backend)
    before = trainer.model.logits(batch[0])
    trainer.model.record(batch[0], lambda point, x: None)
    assert np.array_equal(trainer.model.logits(batch[0]), before)

    def stop(point, x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.model.record(batch[0], stop)
    assert np.array_equal(trainer.model.logits(batch[0]), before)


def test_both_operands_of_every_product_are_rounded(backend, batch):
    """What enters a product of the simulated model is what the quantiser made of it: four values at two bits."""
    trainer = plain(backend)
    made, _ = calibrated(trainer, trainer.model.merged(), batch[0], weights=2, activations=2, calibration="minmax")
    assert list(made.quantizers) == points(trainer.model.base.architecture)
    for site in layers(trainer.model.base.architecture):
        assert all(len(np.unique(row)) <= 3 for row in made.tensors[f"{site.path}.weight"])
    operands = {}
    trainer.model.record(batch[0], operands.__setitem__)
    trainer.model.simulate(made.quantizers)
    block = trainer.model.network.blocks[0]
    array = mx.array if backend is BACKENDS["mlx"] else torch.from_numpy
    for layer, path in ((block.attn.qkv, "attn.qkv"), (block.attn.proj, "attn.proj"), (block.mlp.fc2, "mlp.fc2")):
        x = operands[f"blocks.0.{path}"]
        rounded = np.asarray(layer.before(array(x)))
        assert len(np.unique(rounded)) <= 4 < len(np.unique(x))
        assert np.array_equal(rounded, made.quantizers[f"blocks.0.{path}"](x))
    q, k, v = (operands[f"blocks.0.attn.{operand}"] for operand in "qkv")
    found = np.asarray(block.attn.attend(*map(array, (q, k, v))))
    q, k, v = (made.quantizers[f"blocks.0.attn.{name}"](x) for name, x in (("q", q), ("k", k), ("v", v)))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(32)
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = made.quantizers["blocks.0.attn.softmax"](softmax / softmax.sum(-1, keepdims=True))
    expected = (softmax @ v).transpose(0, 2, 1, 3).reshape(4, 17, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_compiled_logits_follow_the_simulation(backend, batch, compiled):
    """MLX compiles the forward pass at its first call; what is put in later must count."""
    trainer = plain(backend)
    made, _ = calibrated(trainer, trainer.model.merged(), batch[0], weights=32, activations=3)
    before = trainer.model.logits(batch[0])
    trainer.model.simulate(made.quantizers)
    assert not np.allclose(trainer.model.logits(batch[0]), before, rtol=1e-2)


def test_backends_agree_under_one_plan(batch):
    """Operand by operand with fixed quantisers, and the logits of the whole."""
    trainer = plain(BACKENDS["torch"])
    made, _ = calibrated(trainer, trainer.model.merged(), batch[0], weights=8, activations=8)
    operands = {}
    trainer.model.record(batch[0], operands.__setitem__)
    for point, operand in operands.items():
        quantizer = made.quantizers[point]
        expected = quantizer(operand)
        allowed = 0 if isinstance(quantizer, Uniform) else LOG_CODES
        for found in in_backends(quantizer, operand):
            assert (found != expected).mean() <= allowed, point
    logits = []
    for backend in BACKENDS.values():
        rounding = plain(backend, made.tensors)
        rounding.model.simulate(made.quantizers)
        logits.append(rounding.model.logits(batch[0]))
    assert relative(logits[0], logits[1]) <= LOGITS


def test_backends_decide_alike(batch):
    """Calibrated on either, the quantisers are the same to rounding."""
    plans = []
    for backend in BACKENDS.values():
        trainer = plain(backend)
        plans.append(calibrated(trainer, trainer.model.merged(), batch[0], weights=4, activations=4)[0])
    for point, quantizer in plans[0].quantizers.items():
        other = plans[1].quantizers[point]
        assert type(quantizer) is type(other) and quantizer.scale == pytest.approx(other.scale, rel=1e-4), point
    for errors in ("weights", "activations"):
        ours, theirs = (getattr(found, errors) for found in plans)
        assert ours == pytest.approx(theirs, abs=0.1)


def test_more_bits_are_closer_and_repq_chooses_no_worse_than_the_extremes(backend, batch):
    trainer = plain(backend)
    tensors, expected = trainer.model.merged(), trainer.model.logits(batch[0])

    def simulated(**options):
        made, _ = calibrated(trainer, tensors, batch[0], **options)
        rounding = plain(backend, made.tensors)
        rounding.model.simulate(made.quantizers)
        return relative(rounding.model.logits(batch[0]), expected), made

    coarse, extremes = simulated(weights=4, activations=4, calibration="minmax")
    fine, _ = simulated(weights=8, activations=8, calibration="minmax")
    _, best = simulated(weights=4, activations=4, calibration="repq")
    assert fine < 0.2 * coarse
    for point, decibels in best.activations.items():
        assert decibels >= extremes.activations[point] - 1e-6, point
    for path, decibels in best.weights.items():  # but where the weights have taken up the channels' scales
        assert path.endswith(("qkv", "fc1")) or decibels >= extremes.weights[path] - 1e-6


def test_a_percentile_leaves_the_tails_out(batch):
    trainer = plain(BACKENDS["torch"])
    _, wide = calibrated(trainer, trainer.model.merged(), batch[0], calibration="minmax")
    _, narrow = calibrated(trainer, trainer.model.merged(), batch[0], calibration="percentile", percentile=99)
    operands = {}
    trainer.model.record(batch[0], operands.__setitem__)
    for point, choice in narrow.items():
        low, high = np.percentile(operands[point], (1, 99))  # a sample's: here, of all there is
        assert choice.best == Uniform.over(float(low), float(high), 8)
        assert choice.best.scale <= wide[point].best.scale


def test_a_sample_is_bounded_and_its_extremes_are_of_all(monkeypatch, batch):
    monkeypatch.setattr(calibrate, "SAMPLE", 640)
    trainer = plain(BACKENDS["torch"])
    ranges, operands = Ranges(4, 0), {}
    for image in range(4):
        trainer.model.record(batch[0][image : image + 1], ranges)
    trainer.model.record(batch[0], operands.__setitem__)
    for point, seen in ranges.operands.items():
        assert sum(rows.size for rows in seen.rows) <= max(640, 4 * seen.low.size), point
        assert seen.span(100) == pytest.approx((operands[point].min(), operands[point].max()), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm_layer": "rmsnorm"}, "rmsnorm has no bias"),
        ({"qkv_bias": False}, "qkv has no bias"),
        ({"post_norm": True}, "norms stand behind attention and MLP"),
    ],
)
def test_repq_is_refused_where_nothing_takes_up_the_shift(change, named):
    architecture = Architecture(**change)
    with pytest.raises(UserError, match=named) as refused:
        Simulation().check(architecture)
    assert "minmax or percentile" in str(refused.value)
    Simulation(calibration="minmax").check(architecture)
    Simulation(activations=32).check(architecture)
