"""Methods of both backends, opened by Hugging Face PEFT on timm's models: logits, gradients, merged weights, counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import peft.tuners.boft.layer
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative
from foreign_models import prepared
from peft_reference import gradients, logits, opened

# isort: split

from interop.tuners import added, ours, own
from interop.vera_ia3 import DEIT, GRADIENTS, IMAGES, LABELS, LOGITS, build, moved, reread, written

from convert.adapters.peft import read_adapter, write_adapter

CASES = {
    "oft": (DEIT, {"name": "oft", "block_size": 8, "targets": "all-linear"}),
    "oft exact": (DEIT, {"name": "oft", "block_size": 6, "cayley": "exact", "targets": ["qkv", "fc2"]}),
    "oft one rotation": (DEIT, {"name": "oft", "block_size": 4, "block_share": True, "terms": 7, "blocks": [-1]}),
    "oft so many blocks": (DEIT, {"name": "oft", "block_count": 4, "targets": ["proj", "fc2"]}),
    "boft": (DEIT, {"name": "boft", "block_size": 4, "targets": "all-linear"}),
    "boft so many blocks": (DEIT, {"name": "boft", "block_count": 3, "targets": ["proj"], "blocks": [0]}),
    "road": (DEIT, {"name": "road", "group_size": 8, "targets": "all-linear"}),
    "road of two": (DEIT, {"name": "road", "group_size": 12, "variant": 2}),
    "road of four, of parts": (DEIT, {"name": "road", "group_size": 6, "variant": 4, "targets": ["q", "v", "fc2"]}),
    "loha": (DEIT, {"name": "loha", "rank": 2, "targets": "all-linear"}),
    "loha of parts": (DEIT, {"name": "loha", "rank": 3, "alpha": 5, "targets": ["q", "v", "fc2"]}),
    "loha of a rank whose square is above the widths": (
        DEIT,
        {"name": "loha", "rank": 6, "targets": ["k", "fc1", "fc2"]},
    ),
    "lokr": (DEIT, {"name": "lokr", "rank": 2, "targets": "all-linear"}),
    "lokr of both": (DEIT, {"name": "lokr", "rank": 1, "alpha": 3, "decompose_both": True, "factor": 8}),
    "lokr of a large rank": (DEIT, {"name": "lokr", "rank": 20, "factor": 5, "blocks": [1]}),
    "miss": (DEIT, {"name": "miss", "rank": 8, "targets": "all-linear"}),
    "miss that divides nothing, of parts": (DEIT, {"name": "miss", "rank": 7, "targets": ["k", "v", "fc1"]}),
    "miss mini": (DEIT, {"name": "miss", "rank": 6, "mini": 12}),
    "randlora": (DEIT, {"name": "randlora", "rank": 5, "alpha": 2, "targets": "all-linear"}),
    "randlora of one product": (DEIT, {"name": "randlora", "rank": 24, "alpha": 2, "targets": ["qkv"], "blocks": [1]}),
    "randlora sparse": (
        DEIT,
        {"name": "randlora", "rank": 7, "alpha": 2, "bases": "sparse", "targets": "mlp"},
    ),
    "pvera": (DEIT, {"name": "pvera", "rank": 6, "targets": "all-linear"}),
    "pvera of parts": (DEIT, {"name": "pvera", "rank": 5, "targets": ["q", "v"], "dropout": 0.1}),
    "pvera of parts and wholes": (DEIT, {"name": "pvera", "rank": 4, "targets": ["k", "fc2", "proj"]}),
    "oft swiglu": ("aimv2_large_patch14_224", {"name": "oft", "block_size": 2, "targets": "mlp"}),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", CASES)
def test_peft_opens_ours_with_the_same_logits_gradients_counts_and_merged_weights(case, backend, tmp_path):
    name, method = CASES[case]
    trainer, base = ours(backend, method, tmp_path, name)
    model = opened(base, tmp_path, trainable=True)
    expected = logits(model, prepared(IMAGES, base))
    assert relative(trainer.model.logits(IMAGES), expected) < LOGITS
    plain, _ = build(backend, {"name": "linear"}, name)
    plain.model.load_adapter({n: t for n, t in trainer.model.adapter().items() if n.startswith("head")})
    assert relative(plain.model.logits(IMAGES), expected) > 0.01  # so the adapter does something

    theirs = gradients(model, prepared(IMAGES, base), LABELS)
    _, found = trainer.loss_and_gradients(IMAGES, LABELS)
    for key, gradient in found.items():
        assert relative(gradient, own(theirs, key, trainer.experiment.method)) < GRADIENTS, key

    if not {"q", "k", "v"} & set(trainer.experiment.method.targets):
        assert trainer.model.parameters.adapter == sum(tensor.size for tensor in added(model).values())
    merged = {n.replace(".modules_to_save.default", ""): t for n, t in model.merge_and_unload().state_dict().items()}
    for key, tensor in trainer.model.merged().items():
        assert relative(tensor, merged[key].numpy()) < 2e-6, key


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_bit_for_bit(case, tmp_path):
    trainer, _ = build("torch", CASES[case][1], CASES[case][0])
    adapter = dataclasses.replace(written(trainer), tensors=moved(trainer.model.adapter()))
    write_adapter(tmp_path, adapter)
    again = read_adapter(tmp_path)
    assert dataclasses.replace(again, tensors={}) == dataclasses.replace(adapter, tensors={})
    assert again.tensors.keys() == adapter.tensors.keys()
    for key, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_peft_saved_again_is_the_same_model(case, tmp_path):
    name, method = CASES[case]
    trainer, base = ours("torch", method, tmp_path / "ours", name)
    opened(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # else: the hub
    again, adapter = reread("torch", base, tmp_path / "theirs", name)
    assert relative(again.model.logits(IMAGES), trainer.model.logits(IMAGES)) < LOGITS
    if not {"q", "k", "v"} & set(trainer.experiment.method.targets):
        both = (trainer.experiment.method, adapter.method)
        before, after = (kind.model_dump(exclude={"blocks"}) for kind in both)
        assert before == after
        assert again.model.parameters == trainer.model.parameters


class PureBlockDiagonals:
    """What PEFT's CUDA extension computes."""

    @staticmethod
    def apply(rotations: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.block_diag(*factor) for factor in rotations])


@pytest.mark.parametrize("factors", [2, 3])
def test_several_butterflies_are_those_that_peft_has_with_its_extension(factors, backend, monkeypatch, tmp_path):
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(peft.tuners.boft.layer, "FastBlockDiag", PureBlockDiagonals)
    trainer, base = ours(backend, {"name": "boft", "factors": factors, "targets": ["fc2"]}, tmp_path)
    model = opened(base, tmp_path)
    assert relative(trainer.model.logits(IMAGES), logits(model, prepared(IMAGES, base))) < LOGITS
    merged = {n.replace(".modules_to_save.default", ""): t for n, t in model.merge_and_unload().state_dict().items()}
    for key, tensor in trainer.model.merged().items():
        assert relative(tensor, merged[key].numpy()) < 2e-6, key
