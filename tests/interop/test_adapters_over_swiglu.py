"""Adapters over transformers' DINOv2 with SwiGLU: its first layer is in halves under version 5, and whole under 4."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from comparing import LOGITS, relative
from foreign_models import pixels
from interop.over_transformers import GATED, logits, reopened, saved, trained

from convert.adapters.abroad import of_transformers, of_transformers_4, write_for
from convert.adapters.peft import read_adapter
from convert.files import read_safetensors
from mlx_peft.core.errors import UserError

HEAD = {"modules_to_save": ["classifier"]}
HALVES = ["gate_proj", "up_proj"]
METHODS = {
    "both": peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", *HALVES, "down_proj"], **HEAD),
    "gate alone": peft.LoraConfig(r=3, target_modules=["gate_proj"], **HEAD),
    "value alone": peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], **HEAD),
    "two ranks and scalings": peft.LoraConfig(
        r=4, use_rslora=True, target_modules=[*HALVES, "down_proj"], rank_pattern={"gate_proj": 2},
        alpha_pattern={"up_proj": 5, "down_proj": 3}, **HEAD,
    ),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=[*HALVES, "o_proj"], **HEAD),
    "an expression, one block": peft.LoraConfig(r=2, target_modules=r".*layer\.1\.mlp\.(gate|up)_proj", **HEAD),
}  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return saved(GATED, tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("case", METHODS)
def test_both_namings_give_pefts_logits_and_go_back_to_peft(family, case, tmp_path):
    torch.manual_seed(0)
    model = trained(family.model(), METHODS[case])
    model.save_pretrained(tmp_path / "peft")
    expected = logits(model)
    loaded = family.load(tmp_path / "peft", "torch")
    assert relative(loaded.model.logits(pixels()), expected) <= LOGITS
    assert relative(family.load(tmp_path / "peft", "mlx").model.logits(pixels()), expected) <= LOGITS
    write_for(of_transformers, tmp_path / "ours", loaded.adapter, loaded.base.architecture)
    assert relative(logits(reopened(family.model(), tmp_path / "ours")), expected) <= LOGITS
    write_for(of_transformers_4, tmp_path / "older", loaded.adapter, loaded.base.architecture)
    names = read_safetensors(tmp_path / "older" / "adapter_model.safetensors")[0]
    assert any("mlp.weights_in" in name for name in names) and not any("gate_proj" in name for name in names)
    again = family.load(tmp_path / "older", "torch")
    assert relative(again.model.logits(pixels()), expected) <= LOGITS


def test_a_lora_of_the_whole_layer_comes_back_from_its_halves_as_it_was(family, tmp_path):
    """Both halves get its A: read again, they are one of the same rank, bit for bit."""
    torch.manual_seed(0)
    trained(family.model(), METHODS["gate alone"]).save_pretrained(tmp_path / "peft")
    first = family.load(tmp_path / "peft", "torch")
    write_for(of_transformers, tmp_path / "ours", first.adapter, first.base.architecture)
    again = read_adapter(tmp_path / "ours")
    assert again.method == first.adapter.method
    for name, tensor in first.adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.IA3Config(target_modules=HALVES, feedforward_modules=[], **HEAD), "only of LoRA .*IA3"),
        (peft.LoraConfig(r=2, use_dora=True, target_modules=["up_proj"], **HEAD), "DoRA of gate_proj without up_proj"),
    ],
)
def test_what_is_no_adapter_of_the_whole_layer_is_refused(family, config, reason, tmp_path):
    trained(family.model(), config).save_pretrained(tmp_path / "peft")
    with pytest.raises(UserError, match=reason):
        read_adapter(tmp_path / "peft")
