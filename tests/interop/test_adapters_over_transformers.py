"""Adapters of peft's over transformers' models: read under both namings, and written so that peft opens them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from comparing import LOGITS, relative
from foreign_models import pixels
from interop.over_transformers import FAMILIES, Family, as_version_4, logits, reopened, saved, trained

from convert.adapters.abroad import of_transformers, of_transformers_4, write_for

QV, OUT = ["q_proj", "v_proj"], {"clip": "out_proj", "siglip": "out_proj"}
MLP = ["fc1", "fc2"]


def methods(family: str) -> dict[str, peft.PeftConfig]:
    """A configuration of each method, as it is written for the family under version 5."""
    out = OUT.get(family, "o_proj")
    every = [*QV, "k_proj", out, *MLP]
    head = {"modules_to_save": ["classifier"]}
    return {
        "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV, **head),
        "lora of all": peft.LoraConfig(r=4, use_rslora=True, target_modules=every, **head),
        "patterns": peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=[*QV, "fc2"], rank_pattern={"q_proj": 2, "fc2": 3},
            alpha_pattern={"v_proj": 5}, **head,
        ),
        "one block": peft.LoraConfig(r=2, target_modules=QV, layers_to_transform=[1], **head),
        "dora": peft.LoraConfig(r=3, use_dora=True, target_modules=[*QV, "fc1"], **head),
        "adalora": peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=[*QV, out], **head
        ),
        "vera": peft.VeraConfig(r=8, target_modules=[*QV, "fc1"], **head),
        "pvera": peft.PveraConfig(r=8, target_modules=[*QV, "fc1"], **head),
        "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"], **head),
        "layernorm": peft.LNTuningConfig(target_modules=NORMS[family], **head),
    }  # fmt: skip


NORMS = {
    "vit": ["layernorm_before", "layernorm_after", "layernorm"],
    "deit": ["layernorm_before", "layernorm_after", "layernorm"],
    "dinov2": ["norm1", "norm2", "layernorm"],
    "dinov2 with registers": ["norm1", "norm2", "layernorm"],
    "clip": r"vision_model\.(pre_layrnorm|post_layernorm|encoder\..*layer_norm[12])",
    "siglip": r"vision_model\.(post_layernorm|encoder\..*layer_norm[12])",
}
CASES = [
    *(("vit", method) for method in methods("vit")),
    *((family, method) for family in FAMILIES if family != "vit" for method in ("lora of all", "layernorm")),
    ("dinov2", "dora"),
]
EVERY_DAY = {
    *(("vit", method) for method in methods("vit") if method not in ("lora", "layernorm")),
    *((family, "lora of all") for family in ("deit", "dinov2 with registers", "siglip")),
    *((family, "layernorm") for family in ("dinov2", "clip")),
}
"""Each method, and each family under one."""


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Each family's model, saved when it is first asked for."""
    found: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in found:
            found[name] = saved(name, tmp_path_factory.mktemp("base"))
        return found[name]

    return get


def saved_adapter(family: Family, method: str, folder: Path) -> np.ndarray:
    """peft's adapter in a folder, and the logits that peft has with it."""
    torch.manual_seed(0)
    model = trained(family.model(), methods(family.name)[method])
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize(
    ("family", "method"), [pytest.param(*one, marks=[pytest.mark.slow] * (one not in EVERY_DAY)) for one in CASES]
)
def test_both_namings_give_pefts_logits_and_go_back_to_peft(families, family, method, tmp_path):
    here = families(family)
    expected = saved_adapter(here, method, tmp_path / "peft")
    assert relative(logits(reopened(here.model(), tmp_path / "peft")), expected) <= LOGITS
    loaded = here.load(tmp_path / "peft", "torch")
    assert relative(loaded.model.logits(pixels()), expected) <= LOGITS
    assert relative(here.load(tmp_path / "peft", "mlx").model.logits(pixels()), expected) <= LOGITS

    write_for(of_transformers, tmp_path / "ours", loaded.adapter, loaded.base.architecture)
    assert relative(logits(reopened(here.model(), tmp_path / "ours")), expected) <= LOGITS
    write_for(of_transformers_4, tmp_path / "older", loaded.adapter, loaded.base.architecture)
    as_version_4(tmp_path / "peft", family)
    for older in ("peft", "older"):
        assert relative(here.load(tmp_path / older, "torch").model.logits(pixels()), expected) <= LOGITS
