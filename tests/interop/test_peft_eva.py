"""EVA beside PEFT's: the same images give the same ranks, and the same directions."""

from __future__ import annotations

import dataclasses

import numpy as np
import peft
import pytest
import torch
from comparing import relative
from foreign_models import prepared
from peft_reference import logits, opened, timm_of
from sklearn.datasets import load_digits

import mlx_peft.backend.entry
import torch_ref.entry
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from mlx_peft.adaptation.eva import Explained
from mlx_peft.config.methods import Linear, LoRA
from mlx_peft.config.schema import Model

SUBSPACE = 1e-3
"""Between what two sets of directions span; PEFT's are of a randomised SVD in float32."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
METHOD = LoRA(
    rank=3,
    alpha=5,
    targets=("qkv", "proj", "fc2"),
    blocks=(0, 1),
    init="eva",
    eva={"tau": 0.95, "batches": 12},  # type: ignore[arg-type]
)
"""Not of the last block, in which there are only the tokens that the head reads: timm computes all of them."""

SIZES = {"patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 3}


@pytest.fixture(scope="module")
def base():
    return load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=SIZES), 3, seed=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images():
    """Twelve batches of sixteen handwritten digits."""
    digits = load_digits().images[:192].repeat(4, axis=1).repeat(4, axis=2) * 15
    return list(digits.astype(np.uint8)[..., None].repeat(3, axis=3).reshape(12, 16, 32, 32, 3))


@pytest.fixture(scope="module")
def theirs(base, images):
    config = peft.LoraConfig(
        r=3, lora_alpha=5, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0, tau=0.95),
        target_modules=r"blocks\.[01]\..*\.(qkv|proj|fc2)",
    )  # fmt: skip
    model = peft.get_peft_model(timm_of(base), config)
    peft.initialize_lora_eva_weights(
        model, [prepared(batch, base) for batch in images], forward_fn=lambda model, x: model(x),
        prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def ours(base, images):
    found = {}
    for name, backend in BACKENDS.items():
        model, explained = backend.build_model(base, 3, Linear()), Explained(METHOD, base.architecture)
        for batch in images:
            if explained.settled:
                break
            model.record(batch, explained)
            explained.deal()
        assert explained.settled
        found[name] = explained.result()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_and_directions_are_pefts(backend, ours, theirs, base):
    method, tensors = ours[backend]
    sites = {site.path for site in METHOD.sites(base.architecture)}
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in theirs.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert {site.path: method.rank_of(site.path) for site in method.sites(base.architecture)} == {
        path: layer.r["default"] for path, layer in layers.items()
    }
    assert layers.keys() <= sites
    for path, layer in layers.items():
        A, expected = tensors[f"{path}.lora_A"], layer.lora_A["default"].weight.detach().numpy()
        # Of what a row of A is, what the other's rows have not.
        assert relative(A @ expected.T @ expected, A) <= SUBSPACE, path
        assert layer.scaling["default"] == pytest.approx(method.scaling_of(path))
    assert len({*map(method.rank_of, layers)}) > 1  # ranks were dealt out


def test_backends_agree(ours):
    (method, tensors), (other, others) = ours.values()
    assert method == other and tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        # Directions whose values are close together turn by what activations differ, 1e-6, over their distance.
        assert np.allclose(tensor, others[name], atol=1e-3), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_with_ranks_of_their_own_for_each_layer_are_opened_by_peft(backend, ours, base, images, tmp_path):
    method, tensors = ours[backend]
    method = method.model_copy(update={"rank_pattern": method.rank_pattern | {r"blocks\.1\.attn\.proj": 0}})
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.1.attn.proj")}
    model = BACKENDS[backend].build_model(base, 3, method)
    random = np.random.default_rng(0)
    moved = model.adapter() | tensors
    moved = {name: t + 0.1 * random.standard_normal(t.shape).astype(np.float32) for name, t in sorted(moved.items())}
    model.load_adapter(moved)
    adapter = Adapter(method, moved, (), None, base.architecture, base.preprocessing, None, base.name)
    write_adapter(tmp_path / "adapter", adapter)
    expected = model.logits(images[0])
    there = opened(base, tmp_path / "adapter")
    assert relative(logits(there, prepared(images[0], base)), expected) <= 1e-5
    again = read_adapter(tmp_path / "adapter")
    assert again.method == method
    for name, tensor in moved.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert dataclasses.replace(adapter, tensors={}, source="") == dataclasses.replace(again, tensors={}, source="")


def test_what_peft_started_is_read(theirs, base, images, tmp_path):
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert {adapter.method.rank_of(site.path) for site in adapter.method.sites(base.architecture)} <= {*range(1, 7)}
    model = torch_ref.entry.build_model(base, 3, adapter.method)
    model.load_adapter(model.adapter() | adapter.tensors)
    assert relative(model.logits(images[0]), logits(theirs, prepared(images[0], base))) <= 1e-5
