"""A batch whose images have adapters of their own gives each image what its own adapter alone gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from banks import ARGS, CODES, METHODS, OVER_CODES, SAME, SIDES, adapter, alone, base_of, folder_of, network, pixels
from method_models import KINDS

from convert.adapters.peft import write_adapter
from mlx_peft.adaptation.terms import TERMS
from mlx_peft.backend.bank import _rows_at_once
from mlx_peft.config.methods import SSF, VPT, BitFit, LayerNorm, LoRA
from mlx_peft.vit.registry import find
from torch_ref.methods import mixed

COUNT = 64
BASES = {"float": (None, METHODS), "4-bit": (CODES, OVER_CODES)}


@pytest.fixture(scope="module", params=BASES)
def written(request, tmp_path_factory):
    """64 adapters over one base: its quantisation, the base, their folder, and what is in it."""
    quantize, methods = BASES[request.param]
    cases = [method for several in methods.values() for method in several]
    base, folder = base_of(quantize), tmp_path_factory.mktemp("adapters")
    return quantize, base, folder, folder_of([cases[i % len(cases)] for i in range(COUNT)], folder, base)


@pytest.fixture(params=SIDES)
def side(request):
    return request.param


def test_every_method_that_is_said_to_mix_is_mixed_here():
    said = {name for name, kind in KINDS.items() if kind.unmixed is None}
    assert said == set(OVER_CODES) == {kind.model_fields["name"].default for kind in TERMS}


def test_a_shuffled_batch_of_64_adapters_answers_each_image_as_its_own_adapter_does(side, written):
    quantize, base, folder, adapters = written
    bank = SIDES[side].load_adapters(network(side, quantize), folder)
    names = [*adapters, None, *list(adapters)[:3], None]
    np.random.default_rng(3).shuffle(names)
    images = pixels(len(names))
    found = bank.logits(images, names)
    for row, name in enumerate(names):
        if name is not None:
            expected = alone(side, base, adapters[name], images[[row]])[0]
            assert found[row].dtype == np.float32 and found[row].shape == expected.shape
            np.testing.assert_allclose(found[row], expected, rtol=0, atol=SAME, err_msg=name)
    bare = bank.logits(images, None)
    np.testing.assert_allclose(
        np.stack([found[row] for row, name in enumerate(names) if name is None]),
        np.stack([bare[row] for row, name in enumerate(names) if name is None]),
        rtol=0, atol=SAME,
    )  # fmt: skip


def test_another_adapter_s_answer_is_far_off(side, written):
    """So that an answer that is near is the adapter's own."""
    quantize, _, folder, adapters = written
    bank = SIDES[side].load_adapters(network(side, quantize), folder)
    names = [name for name in adapters if len(bank[name].classes) == 3]
    images = pixels(1).repeat(len(names), axis=0)
    found = np.stack(bank.logits(images, names))
    off = [np.abs(a - b).max() for at, a in enumerate(found) for b in found[:at]]
    assert min(off) > 100 * SAME


def test_torch_answers_alike_where_it_gathers_terms_as_on_a_gpu_and_where_images_are_large(written, monkeypatch):
    quantize, _, folder, adapters = written
    banks = [SIDES["torch"].load_adapters(network("torch", quantize), folder) for _ in range(3)]
    banks[1]._passes._mixer.gathers, banks[1]._passes._mixer.rows = True, None
    banks[2]._passes._mixer.rows = (5, 1)  # at once, as of large images
    names = [*adapters, None, *list(adapters)[:3], None]
    np.random.default_rng(3).shuffle(names)
    together, *others = (bank.logits(pixels(len(names)), names) for bank in banks)
    monkeypatch.setattr(mixed, "MANY", 1)  # tokens, as large images have
    others += [bank.logits(pixels(len(names)), names) for bank in (banks[0], banks[2])]
    for answers in others:
        for found, expected, name in zip(answers, together, names, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=SAME, err_msg=str(name))


def test_mlx_answers_alike_where_a_few_rows_at_a_time_go_through_the_network(written):
    quantize, _, folder, adapters = written
    banks = [SIDES["mlx"].load_adapters(network("mlx", quantize), folder) for _ in range(2)]
    mixers = [bank._passes._mixer for bank in banks]
    mixers[0].rows, mixers[1].rows = None, 4
    names = [*adapters, None, *list(adapters)[:3], None, *[next(iter(adapters))] * 6]
    np.random.default_rng(3).shuffle(names)
    together, parted = (bank.logits(pixels(len(names)), names) for bank in banks)
    for found, expected, name in zip(parted, together, names, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAME, err_msg=str(name))
    assert len(mixers[1]._last[0]) <= 4 < len(mixers[0]._last[0])


@pytest.mark.parametrize(
    ("name", "image_size", "rows"),
    [
        ("vit_small_patch16_224", 224, 4),
        ("vit_small_patch16_224", 64, 32),
        ("vit_base_patch16_224", 224, 2),
        ("vit_large_patch14_dinov2", 518, 1),
    ],
)
def test_on_a_cpu_mlx_takes_as_many_rows_at_once_as_have_few_outputs(name, image_size, rows):
    architecture = find(name).architecture.model_copy(update={"img_size": image_size})
    assert _rows_at_once(architecture) == rows


def test_both_backends_answer_alike(written):
    quantize, _, folder, adapters = written
    images = pixels(len(adapters))
    ours, theirs = (
        SIDES[side].load_adapters(network(side, quantize), folder).logits(images, list(adapters)) for side in SIDES
    )
    for name, one, other in zip(adapters, ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=SAME, err_msg=name)


SHAPES = {
    "attention pooling, whose query all images share": {"class_token": False, "global_pool": "map"},
    "two heads": {"distilled": True},
    "norms everywhere": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "pre_norm": True},
    "root mean square": {"norm_layer": "rmsnorm", "mlp_layer": "swiglu", "init_values": 0.1},
    "rotary positions, biases of q and v beside qkv": {
        "family": "eva",
        "positions": "rotary",
        "qkv": "biases_apart",
        "init_values": 0.5,
        "reg_tokens": 2,
        "rope_grid": "centered",
        "rope_rotate_half": True,
    },
    "rotary positions, q, k and v apart": {
        "family": "eva",
        "positions": "mixed",
        "qkv": "split",
        "mlp_layer": "swiglu",
        "scale_mlp_norm": True,
    },
    "a norm behind the pooling, no biases": {"global_pool": "avg", "qkv_bias": False, "proj_bias": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_of_models_of_other_shapes_likewise(side, shape, tmp_path: Path):
    base = base_of(**SHAPES[shape])
    methods = [LoRA(rank=2, targets=("q", "fc1")), LoRA(rank=2, targets=("qkv",), dora=True), SSF(), LayerNorm()]
    methods += [VPT(tokens=2), *([] if "no biases" in shape else [BitFit()])]
    adapters = folder_of(methods, tmp_path, base)
    bank = SIDES[side].load_adapters(network(side, **SHAPES[shape]), tmp_path)
    names = [*reversed(adapters), None, *adapters]
    images = pixels(len(names))
    for row, (name, found) in enumerate(zip(names, bank.logits(images, names), strict=True)):
        if name is not None:
            expected = alone(side, base, adapters[name], images[[row]])[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=SAME, err_msg=name)


def test_the_bare_base_answers_with_the_vector_before_any_head(side, tmp_path: Path):
    base = base_of()
    own = adapter(base, LoRA(rank=2), 0)
    write_adapter(tmp_path / "one", own)
    model, images = network(side), pixels(2)
    bank = SIDES[side].load_adapters(model, tmp_path)
    found = np.stack(bank.logits(images, [None, None]))
    assert found.shape == (2, ARGS["embed_dim"]) and found.dtype == np.float32
    weight = np.array(model.head.weight.tolist(), np.float32)
    np.testing.assert_allclose(found @ weight.T, model.logits(images), rtol=0, atol=SAME)  # its own bias is 0
    mixed = bank.logits(images, ["one", None])
    np.testing.assert_allclose(mixed[1], found[1], rtol=0, atol=SAME)
