"""Checkpoints of self-supervised training, by the names in their authors' code: the model in them, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.base import Base
from convert.canonical import canonical
from convert.layouts.layout import Asked
from convert.layouts.pretraining import without_pretraining
from convert.open import open_path
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError

Tiny = Callable[..., Base]
HEAD = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.4.bias", "last_layer.weight_g", "last_layer.weight_v")
"""Of DINO's projection head."""


def beside(names: list[str]) -> Tensors:
    return {name: np.ones((2, 2), np.float32) for name in names}


def opened(path: Path, content: dict[str, object], base: Base, part: str | None = None) -> tuple[Tensors, str]:
    torch.save(content, path)
    checkpoint = open_path(path, Asked(base.name, base.architecture.model_dump()), part)
    assert checkpoint.tensors is not None
    return checkpoint.tensors, "\n".join(checkpoint.notes)


def as_torch(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def headless(base: Base) -> Tensors:
    return {name: tensor for name, tensor in base.tensors.items() if not name.startswith("head.")}


def must_be(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_maes_decoder_is_left_out_and_said(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("vit_base_patch16_224.mae")
    decoder = [
        *("decoder_embed.weight", "decoder_embed.bias", "decoder_pos_embed", "decoder_blocks.0.norm1.weight"),
        *("decoder_blocks.7.attn.qkv.weight", "decoder_norm.bias", "decoder_pred.weight", "mask_token"),
    ]
    content = {"model": as_torch(headless(base) | beside(decoder)), "epoch": 799}
    found, notes = opened(tmp_path / "mae_pretrain_vit_base_full.pth", content, base)
    must_be(found, headless(base))
    assert "decoder_blocks, decoder_embed, decoder_norm, decoder_pos_embed, decoder_pred: the decoder of MAE" in notes
    assert "mask_token: what masked patches are replaced with in training, left out" in notes


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_giant_patch14_dinov2.lvd142m"])
def test_dinov2s_teacher_comes_out_of_its_chunks_and_without_its_heads(
    name: str, chunks: int, tiny: Tiny, tmp_path: Path
) -> None:
    base = tiny(name, image_size=56)
    state: Tensors = {"backbone.mask_token": np.zeros((1, 24), np.float32)}
    for ours, tensor in headless(base).items():
        theirs = ours.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3") if "giant" in name else ours
        if ours.startswith("blocks."):
            theirs = theirs.replace("blocks.", f"blocks.{int(ours.split('.')[1]) * chunks // 3}.", 1)
        state[f"backbone.{theirs}"] = tensor
    heads = beside([f"{head}.{inner}" for head in ("dino_head", "ibot_head") for inner in HEAD])
    found, notes = opened(tmp_path / "teacher_checkpoint.pth", {"teacher": as_torch(state | heads)}, base)
    must_be(found, headless(base))
    assert "dino_head, ibot_head: the projection heads of DINOv2's training, left out" in notes
    assert "blocks: kept in chunks (blocks.CHUNK.BLOCK), which are one list here" in notes


def test_so_does_either_model_of_a_whole_training_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("vit_small_patch14_dinov2.lvd142m", image_size=56)
    state: Tensors = beside(["dino_loss.center", "ibot_patch_loss.center"])
    for model, value in (("teacher", 0), ("student", 1)):
        state |= {f"{model}.backbone.{name}": tensor + value for name, tensor in headless(base).items()}
        state |= beside([f"{model}.dino_head.{inner}" for inner in HEAD])
    content = {"model": as_torch(state), "iteration": 1249}
    with pytest.raises(UserError, match="holds 2 models: choose the part teacher or student"):
        opened(tmp_path / "model_0001249.pth", content, base)
    found, notes = opened(tmp_path / "model_0001249.pth", content, base, "student")
    must_be(found, {name: tensor + 1 for name, tensor in headless(base).items()})
    assert "dino_head: the projection heads" in notes


def test_either_encoder_of_moco_v3_comes_out_without_the_heads_of_its_training(tiny: Tiny, tmp_path: Path) -> None:
    """The heads as ``moco/builder.py`` of facebookresearch/moco-v3 builds them, with their statistics of batches."""
    nn = torch.nn
    base = tiny("vit_small_patch16_224.augreg_in21k")
    projector = nn.Sequential(
        nn.Linear(24, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 4, bias=False),
        nn.BatchNorm1d(4, affine=False),
    )  # fmt: skip
    state = {f"module.predictor.{name}": tensor for name, tensor in projector.state_dict().items()}
    for encoder, value in (("base_encoder", 0), ("momentum_encoder", 1)):
        heads = {f"head.{name}": tensor for name, tensor in projector.state_dict().items()}
        whole = as_torch({name: tensor + value for name, tensor in headless(base).items()}) | heads
        state |= {f"module.{encoder}.{name}": tensor for name, tensor in whole.items()}
    content = {"epoch": 300, "arch": "vit_small", "state_dict": state, "scaler": {}}
    with pytest.raises(UserError, match="holds 2 models: choose the part base_encoder or momentum_encoder"):
        opened(tmp_path / "vit-s-300ep.pth.tar", content, base)
    for part, value in (("base_encoder", 0), ("momentum_encoder", 1)):
        found, notes = opened(tmp_path / "vit-s-300ep.pth.tar", content, base, part)
        must_be(found, {name: tensor + value for name, tensor in headless(base).items()})
        assert "head: a projection head of MoCo v3's training, left out" in notes
        assert f"outside of module.{part}, left out: module.predictor.0.weight" in notes


@pytest.mark.parametrize("name", ["head.mlp.0.weight", "head.last_layer.weight_v", "head.last_layer2.weight_g"])
def test_the_projection_head_of_dino_and_ibot_is_left_out(name: str) -> None:
    found, notes = without_pretraining(beside([name, "norm.weight", "masked_embed", "head.weight"]))
    assert found.keys() == {"norm.weight", "head.weight"}
    assert "the projection head of DINO's training, left out" in notes[0]


def test_blocks_that_would_get_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"blocks.0.0.norm1.bias and blocks.1.0.norm1.bias are both called"):
        without_pretraining(beside(["blocks.0.0.norm1.bias", "blocks.1.0.norm1.bias"]))


@pytest.mark.parametrize("shape", [(), (3,), (1, 4, 5), (1, 4, 0)])
def test_positions_of_another_shape_than_dinov2s_are_left_for_the_message(shape: tuple[int, ...]) -> None:
    tensors = {"register_tokens": np.ones((1, 4, 24), np.float32), "cls_token": np.ones((1, 1, 24), np.float32)}
    found, _ = canonical({**tensors, "pos_embed": np.ones(shape, np.float32)}, "vit")
    assert found.keys() == {"register_tokens", "cls_token", "pos_embed"}


def test_patches_of_nothing_are_left_for_the_message() -> None:
    found, _ = canonical({"patch_embed.proj.weight": np.ones((24, 0), np.float32)}, "vit")
    assert found["patch_embed.proj.weight"].shape == (24, 0)
