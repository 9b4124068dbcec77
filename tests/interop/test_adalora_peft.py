"""AdaLoRA between ours and the installed PEFT: adapters read both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from comparing import relative
from foreign_models import prepared
from interop.adalora_of_peft import (
    CLASSES,
    LOGITS,
    NAMES,
    SCHEDULE,
    base,
    experiment,
    images,
    peft_config,
)
from peft_reference import adapter_of, logits, opened, timm_of

import torch_ref.entry
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from mlx_peft.config.methods import AdaLoRA
from mlx_peft.core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")
"""PEFT saves a rank of 0 with a word on distributed training, which this is not."""

CASES: dict[str, AdaLoRA] = {
    "whole": SCHEDULE,
    "q and v": AdaLoRA(init_rank=3, target_rank=2, alpha=5, targets=("q", "v")),
    "parts and wholes": AdaLoRA(init_rank=3, target_rank=2, targets=("k", "q", "proj", "fc2")),
    "one block": AdaLoRA(init_rank=4, target_rank=4, targets=("v", "fc1"), blocks=(1,)),
}


@pytest.mark.parametrize("state", ["untrained", "pruned", "a layer gone"])
@pytest.mark.parametrize("case", CASES)
def test_peft_opens_every_target_pruned_or_not(case: str, state: str, tmp_path: Path) -> None:
    method = CASES[case]
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    random = np.random.default_rng(4)
    tensors = {n: t + random.normal(0, 0.3, t.shape).astype(np.float32) for n, t in trainer.model.adapter().items()}
    for name, tensor in tensors.items():
        if name.endswith("lora_E"):
            gone = state == "untrained" or (state == "a layer gone" and "blocks.1" in name)
            tensor *= 0 if gone and (state == "untrained" or len(CASES[case].targets) > 1) else 1
            if state != "untrained":
                tensor[random.random(len(tensor)) < 0.4] = 0
    if state == "a layer gone" and not any(t.any() for n, t in tensors.items() if n.endswith("lora_E")):
        name = next(n for n in tensors if n.endswith("lora_E"))
        tensors[name][0] = 1  # else the adapter is one that was never trained
    trainer.model.load_adapter(tensors)
    write_adapter(tmp_path, adapter_of(experiment(method), base(), tensors, NAMES))
    theirs = opened(base(), tmp_path)
    pixels, _ = images(0)
    assert relative(logits(theirs, prepared(pixels, base())), trainer.model.logits(pixels)) < LOGITS
    again = read_adapter(tmp_path)
    assert again.method == method
    expected = trainer.model.logits(pixels)
    trainer.model.load_adapter(again.tensors)
    assert relative(trainer.model.logits(pixels), expected) < LOGITS
    if state == "untrained":
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(again.tensors[name], tensor)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in trainer.model.merged().items():
        assert relative(tensor, merged[name].numpy()) < 1e-6, name


def test_what_peft_saved_of_ours_again_is_the_same_model(tmp_path: Path) -> None:
    method = CASES["parts and wholes"]
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    random = np.random.default_rng(5)
    tensors = {n: t + random.normal(0, 0.3, t.shape).astype(np.float32) for n, t in trainer.model.adapter().items()}
    tensors["blocks.0.attn.qkv.lora_E"][[0, 4]] = 0
    trainer.model.load_adapter(tensors)
    write_adapter(tmp_path / "ours", adapter_of(experiment(method), base(), tensors, NAMES))
    opened(base(), tmp_path / "ours").save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    again = read_adapter(tmp_path / "theirs")
    assert (again.method.init_rank, again.method.targets) == (6, ("qkv", "proj", "fc2"))
    other = torch_ref.entry.build_trainer(experiment(again.method), CLASSES, base())
    other.model.load_adapter(again.tensors)
    pixels, _ = images(0)
    assert relative(other.model.logits(pixels), trainer.model.logits(pixels)) < LOGITS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["proj"]}, r"no AdaLoRA of a linear layer in a block: patch_embed\.proj\.lora_A"),
        ({"use_rslora": True}, "not supported: use_rslora: True"),
        ({"lora_alpha": 0}, "configuration is not understood"),
    ],
)
def test_more_than_adalora_on_the_blocks_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(timm_of(base()), peft_config(SCHEDULE, **changes))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    method = CASES["q and v"]
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    tensors = trainer.model.adapter()
    adapter = adapter_of(experiment(method), base(), tensors, NAMES)
    smaller = AdaLoRA(init_rank=2, target_rank=2, alpha=5, targets=("q", "v"))
    write_adapter(tmp_path / "a", Adapter(**{**vars(adapter), "method": smaller}))
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv has a lora_A \(6, 48\).*of rank 4"):
        read_adapter(tmp_path / "a")
