"""Initial tensors against timm's own initialisation."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from mlx_peft.vit.initial import initial_head, initial_state, kaiming_uniform
from mlx_peft.vit.registry import altered, find

NAMES = [
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "aimv2_large_patch14_224",
    "vit_base_patch16_clip_224",
    "vit_small_patch16_dinov3_qkvb",
    "eva02_base_patch14_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_small_patch16_rope_mixed_224",
]


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_has_the_distribution_that_timm_gives_it(name: str) -> None:
    sizes = {"depth": 1, "embed_dim": 192, "num_heads": 3}
    state = initial_state(altered(find(name).architecture, sizes, "args"), 7, seed=0)
    torch.manual_seed(0)
    theirs = {key: value.numpy() for key, value in timm.create_model(name, num_classes=7, **sizes).state_dict().items()}
    assert state.keys() == theirs.keys()
    for key, ours in state.items():
        assert ours.shape == theirs[key].shape and ours.dtype == np.float32
        if key == "rope.freqs":  # a turn for each head, of vectors whose lengths are known
            np.testing.assert_allclose(np.hypot(*ours), np.hypot(*theirs[key]), rtol=1e-5)
            assert np.ptp(ours[0, 0, :, 0]) > 0
            continue
        std = theirs[key].std()
        if std == 0:
            np.testing.assert_array_equal(ours, theirs[key], err_msg=key)
        else:  # two samples of one distribution: five standard errors, of the mean and of the deviation
            error = 5 / np.sqrt(ours.size)
            assert abs(ours.mean() - theirs[key].mean()) <= 1.5 * error * std, key
            assert abs(ours.std() / std - 1) <= 1.5 * error, key
            assert np.abs(ours).max() < 2 * np.abs(theirs[key]).max(), key


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    architecture = altered(find("deit_tiny_distilled_patch16_224").architecture, {"depth": 2}, "args")
    state = initial_state(architecture, 5, seed=3)
    shallow = initial_state(altered(architecture, {"depth": 1}, "args"), 5, seed=3)
    for key, tensor in shallow.items():
        np.testing.assert_array_equal(tensor, state[key])
    head = initial_head(architecture, 5, seed=3)
    assert head.keys() == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    for key, tensor in head.items():
        np.testing.assert_array_equal(tensor, state[key])
    assert (state["head.weight"] != state["head_dist.weight"]).any()
    assert (state["head.weight"] != initial_head(architecture, 5, seed=4)["head.weight"]).any()


def test_kaiming_uniform_fills_its_interval() -> None:
    values = kaiming_uniform((64, 100), 100, seed=0, name="a")
    assert values.dtype == np.float32
    assert 0.099 < np.abs(values).max() <= 0.1
    assert abs(values.std() - 0.1 / 3**0.5) < 1e-3
