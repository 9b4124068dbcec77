"""DINOv3's checkpoints by Meta's names: what timm makes of them, bit for bit, and what is said of the rest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.eva import Eva, checkpoint_filter_fn

from convert.base import load_base
from convert.canonical import canonical
from convert.layouts.dinov3 import without_zero_biases
from mlx_peft.config.schema import Model
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

DIM, DEPTH = 16, 2
PERIODS = np.float32(100) ** (np.arange(4, dtype=np.float32) / 4)


def eva(gated: bool) -> Eva:
    """timm's class on DINOv3's plan, small, with biases of q and v."""
    return Eva(
        img_size=32, patch_size=8, embed_dim=DIM, depth=DEPTH, num_heads=1, num_classes=0, qkv_bias=True,
        init_values=0.1, rope_type="dinov3", rope_temperature=100, use_rot_pos_emb=True, use_abs_pos_emb=False,
        rope_rotate_half=True, num_reg_tokens=4, use_fc_norm=False, norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
        swiglu_mlp=gated, swiglu_align_to=8,
    ).eval()  # fmt: skip


def metas(gated: bool) -> Tensors:
    """A file's tensors, by the names of ``dinov3/models/vision_transformer.py`` and ``dinov3/layers``."""
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    state: Tensors = {
        "cls_token": drawn(1, 1, DIM), "storage_tokens": drawn(1, 4, DIM), "mask_token": drawn(1, DIM),
        "rope_embed.periods": rounded(PERIODS),
        "patch_embed.proj.weight": drawn(DIM, 3, 8, 8), "patch_embed.proj.bias": drawn(DIM),
        "norm.weight": drawn(DIM), "norm.bias": drawn(DIM), "local_cls_norm.weight": drawn(DIM),
        "local_cls_norm.bias": drawn(DIM),
    }  # fmt: skip
    wide = (int(4 * DIM), DIM)
    mlp = {"w1": wide, "w2": wide, "w3": wide[::-1]} if gated else {"fc1": wide, "fc2": wide[::-1]}
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        for name in ("norm1", "norm2"):
            state |= {f"{block}.{name}.weight": drawn(DIM), f"{block}.{name}.bias": drawn(DIM)}
        for name, shape in {
            "attn.qkv": (3 * DIM, DIM),
            "attn.proj": (DIM, DIM),
            **{f"mlp.{n}": mlp[n] for n in mlp},
        }.items():
            state |= {f"{block}.{name}.weight": drawn(*shape), f"{block}.{name}.bias": drawn(shape[0])}
        state[f"{block}.attn.qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), DIM)
        state |= {f"{block}.ls1.gamma": drawn(DIM), f"{block}.ls2.gamma": drawn(DIM)}
    return state


def rounded(values: np.ndarray) -> np.ndarray:
    """To bfloat16, and back."""
    return torch.from_numpy(values).bfloat16().float().numpy()


@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_metas_names_become_what_timm_makes_of_them(gated: bool) -> None:
    state = metas(gated)
    theirs = checkpoint_filter_fn({name: torch.from_numpy(tensor) for name, tensor in state.items()}, eva(gated))
    found, notes = canonical(state, "eva")
    assert found.keys() == theirs.keys() == eva(gated).state_dict().keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    said = "\n".join(notes)
    assert "mask_token: what masked patches are replaced with in training, left out" in said
    assert "local_cls_norm: a norm of its training, for small crops alone, left out" in said


def test_a_mask_token_under_timms_names_is_left_out_and_the_last_norm_stays() -> None:
    state = canonical(metas(gated=False), "eva")[0]
    found, notes = canonical(state | {"mask_token": np.zeros((1, 1, DIM), np.float32)}, "eva")
    assert found.keys() == state.keys()
    assert notes == ("mask_token: what masked patches are replaced with in training, left out",)


def test_a_file_says_whether_its_periods_were_rounded() -> None:
    """Of Meta's files they are; timm and transformers compute them in float32."""
    state = metas(gated=False)
    [note] = [note for note in canonical(state, "eva")[1] if "periods" in note]
    assert "the file has them rounded to bfloat16" in note and "here they are computed in float32" in note
    state["rope_embed.periods"] = PERIODS
    assert not [note for note in canonical(state, "eva")[1] if "periods" in note]
    state["rope_embed.periods"] = PERIODS**2
    with pytest.raises(UserError, match="are not those of a temperature of 100"):
        canonical(state, "eva")


@pytest.mark.parametrize("channels_last", [False, True])
def test_mlx_images_dinov3_is_the_same_names(channels_last: bool) -> None:
    """Its published files have torch's layout of the kernels; what it saves has MLX's."""
    state = metas(gated=True)
    expected = canonical(state, "eva")[0]
    if channels_last:
        state["patch_embed.proj.weight"] = np.ascontiguousarray(state["patch_embed.proj.weight"].transpose(0, 2, 3, 1))
    found = canonical(state, "eva")[0]
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_a_bias_of_k_counts_only_where_nothing_masks_it() -> None:
    state = {name: tensor for name, tensor in metas(gated=False).items() if not name.endswith("bias_mask")}
    with pytest.raises(UserError, match=r"blocks.0.attn.qkv.bias: k has a bias that is not masked"):
        canonical(state, "eva")
    for name in [name for name in state if name.endswith("qkv.bias")]:
        state[name][DIM : 2 * DIM] = 0
    assert canonical(state, "eva")[0].keys() == eva(gated=False).state_dict().keys()


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"])
def test_a_file_of_metas_opens_under_either_of_timms_names(name: str, tmp_path: Path) -> None:
    """Its blocks and widths are cut; the biases of the second, which has none in timm, are all zero."""
    state = metas(gated=False)
    if not name.endswith("qkvb"):
        state = {key: tensor * (not key.endswith("qkv.bias")) for key, tensor in state.items()}
    torch.save({key: torch.from_numpy(tensor) for key, tensor in state.items()}, tmp_path / "dinov3_vits16.pth")
    args = {"embed_dim": DIM, "depth": DEPTH, "num_heads": 1, "patch_size": 8}
    model = Model(name=f"{name}.lvd1689m", weights=str(tmp_path / "dinov3_vits16.pth"), image_size=32, args=args)
    base = load_base(model, 5, seed=0)
    np.testing.assert_array_equal(base.tensors["reg_token"], state["storage_tokens"])
    assert ("blocks.1.attn.q_bias" in base.tensors) is name.endswith("qkvb")
    said = "\n".join(base.notes)
    assert "rounded to bfloat16" in said
    assert ("q_bias, v_bias: all are zero, and left out" in said) is not name.endswith("qkvb")


@pytest.mark.parametrize(("bias", "model", "left_out"), [(0, False, True), (0, True, False), (1, False, False)])
def test_biases_are_left_out_where_all_are_zero_and_the_model_has_none(bias: int, model: bool, left_out: bool) -> None:
    tensors: dict[str, Any] = {f"blocks.0.attn.{name}": np.full(3, bias, np.float32) for name in ("q_bias", "v_bias")}
    found, notes = without_zero_biases(tensors, Architecture(qkv="biases_apart", qkv_bias=model))
    assert (not found, bool(notes)) == (left_out, left_out)
