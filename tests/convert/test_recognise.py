"""Which tensors of a file are the model: prefixes, several models, and what training code keeps beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.base import Base
from convert.files import read_tensors
from convert.layouts.layout import Asked
from convert.layouts.recognise import TIMM, recognise
from convert.open import open_path
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError


def model(prefix: str, value: float) -> Tensors:
    return {f"{prefix}{name}": np.full(2, value, np.float32) for name in (TIMM, "norm.weight")}


SEVERAL = [
    (("model.", "model_ema."), ("model", "model_ema")),
    (("teacher.backbone.", "student.module.backbone."), ("teacher", "student")),
    (("module.base_encoder.", "module.momentum_encoder."), ("base_encoder", "momentum_encoder")),
    (("backbone.", "ema."), ("backbone", "ema")),
    (("a.x.", "a.y.", "b.x.", "b.y."), ("a.x", "a.y", "b.x", "b.y")),
]


@pytest.mark.parametrize(("prefixes", "parts"), SEVERAL)
def test_each_of_several_models_is_offered_and_chosen(prefixes: Sequence[str], parts: Sequence[str]) -> None:
    tensors: Tensors = {}
    for value, prefix in enumerate(prefixes):
        tensors |= model(prefix, value)
    choice = " or ".join(parts)
    with pytest.raises(UserError, match=f"w holds {len(prefixes)} models: choose the part {choice}$"):
        recognise(tensors, Path("w"))
    for value, part in enumerate(parts):
        _, found, notes = recognise(tensors, Path("w"), part)
        assert found.keys() == {TIMM, "norm.weight"} and notes == ()
        assert all((tensor == value).all() for tensor in found.values())


def test_both_models_of_deits_training_checkpoint_are_offered(tmp_path: Path) -> None:
    def state(value: int) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(tensor) for name, tensor in model("", value).items()}

    content = {"model": state(0), "optimizer": {"state": {}}, "epoch": 299, "model_ema": state(1)}
    torch.save(content, tmp_path / "a.pth")
    tensors = read_tensors(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds 2 models: choose the part model or model_ema$"):
        recognise(tensors, tmp_path)
    assert recognise(tensors, tmp_path, "model_ema")[1]["norm.weight"][0] == 1


def test_what_stands_beside_the_model_is_left_out_and_said(tiny: Callable[..., Base], tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224")
    lightning = {f"model.{name}": torch.from_numpy(tensor) for name, tensor in base.tensors.items()}
    content = {"state_dict": lightning | {"criterion.weight": torch.ones(5)}, "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    args = base.architecture.model_dump()
    checkpoint = open_path(tmp_path / "a.pth", Asked("deit_tiny_patch16_224", args))
    assert checkpoint.tensors is not None and checkpoint.tensors.keys() == base.tensors.keys()
    assert checkpoint.notes[0] == "outside of model, left out: criterion.weight"


@pytest.mark.parametrize("prefix", ["module.base_encoder.", "my_backbone."])
def test_a_name_that_ends_like_a_backbone_s_is_another(prefix: str) -> None:
    _, found, notes = recognise(model(prefix, 0) | {"module.predictor.weight": np.ones(2, np.float32)}, Path("w"))
    assert found.keys() == {TIMM, "norm.weight"}
    assert notes == (f"outside of {prefix[:-1]}, left out: module.predictor.weight",)


@pytest.mark.parametrize("prefix", ["backbone.", "model.", "model.backbone."])
def test_a_head_beside_the_model_is_its_own(prefix: str) -> None:
    _, found, notes = recognise(model(prefix, 0) | {"head.weight": np.ones(2, np.float32)}, Path("w"))
    assert found.keys() == {TIMM, "norm.weight", "head.weight"} and notes == ()


def test_one_model_needs_no_part() -> None:
    with pytest.raises(UserError, match="holds 1 model: leave the part out"):
        recognise(model("model.", 0), Path("w"), "teacher")
