"""The library: the same notebook on either backend, by changing one import."""

import shutil

import numpy as np
import pytest
import timm
import torch
from comparing import relative
from safetensors import safe_open
from safetensors.numpy import save_file

import torch_ref

# isort: split
import mlx_peft
from mlx_peft.core.errors import UserError

MODULES = {"mlx": mlx_peft, "torch": torch_ref}
LOGITS = 1e-5  # relative, float32
ARGS = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(params=MODULES)
def mp(request):
    return MODULES[request.param]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)


def create(mp, seed=0):
    return mp.create_model("vit_tiny_patch16_224", weights="none", num_classes=4, image_size=48, args=ARGS, seed=seed)


def logits(mp, model, images):
    with torch.no_grad():
        return np.asarray(model(mp.prepare(model, images)))


def test_the_names_are_the_same():
    assert mlx_peft.__all__ == torch_ref.__all__
    for name in mlx_peft.__all__:
        assert getattr(mlx_peft, name).__name__ == getattr(torch_ref, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error(mp):
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mp.nonsense


def test_the_same_model_gives_the_same_logits(images):
    a, b = (logits(mp, create(mp), images) for mp in MODULES.values())
    assert relative(a, b) <= LOGITS


def test_pixels_past_the_last_patch_change_nothing_and_are_warned_of(mp):
    images = np.random.default_rng(0).integers(0, 256, (1, 60, 60, 3), dtype=np.uint8)
    cut = images.copy()
    cut[:, 48:] = cut[:, :, 48:] = 0
    with pytest.warns(UserWarning, match=r"image size 60 is no multiple of the patch size 16: the last 12 rows"):
        model = mp.create_model("vit_tiny_patch16_224", weights="none", num_classes=4, image_size=60, args=ARGS)
    assert np.array_equal(logits(mp, model, images), logits(mp, model, cut))
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=60, **ARGS).eval()
    pixels = [torch.from_numpy(array).permute(0, 3, 1, 2).float() for array in (images, cut)]
    assert torch.equal(theirs(pixels[0]), theirs(pixels[1])), "timm's convolution leaves them out too"


def test_an_adapter_goes_from_either_to_the_other(mp, images, tmp_path):
    other = MODULES["torch" if mp is mlx_peft else "mlx"]
    model = create(mp)
    mp.add_adapter(model, mp.LoRA(rank=4, targets=("q", "v", "fc2")))
    mp.save_adapter(model, tmp_path / "adapter", classes=("a", "b", "c", "d"))
    loaded = create(other)
    adapter = other.load_adapter(loaded, tmp_path / "adapter")
    assert adapter.classes == ("a", "b", "c", "d")
    assert relative(logits(other, loaded, images), logits(mp, model, images)) <= LOGITS


def test_merging_and_unmerging(mp, images):
    model = create(mp)
    mp.add_adapter(model, mp.LoRA(rank=4, targets=("qkv", "fc1")))
    before, names = logits(mp, model, images), set(mp.state_dict(model))
    replaced = mp.merge(model)
    assert not any("lora" in name or "base_layer" in name for name in mp.state_dict(model))
    assert relative(logits(mp, model, images), before) <= LOGITS
    mp.unmerge(model, replaced)
    assert set(mp.state_dict(model)) == names
    np.testing.assert_array_equal(logits(mp, model, images), before)


def test_a_second_method_and_a_foreign_adapter_are_refused(mp, tmp_path):
    model = create(mp)
    mp.add_adapter(model, mp.LoRA(rank=4))
    mp.save_adapter(model, tmp_path / "adapter")
    with pytest.raises(UserError, match="has the method 'lora' already"):
        mp.add_adapter(model, mp.Linear())
    with pytest.raises(UserError, match="other weights"):
        mp.load_adapter(create(mp, seed=1), tmp_path / "adapter")


def test_an_adapter_that_lacks_tensors_is_refused_and_leaves_no_method(mp, tmp_path):
    model, whole, part = create(mp), tmp_path / "whole", tmp_path / "part"
    mp.add_adapter(model, mp.LoRA(rank=2))
    mp.save_adapter(model, whole)
    shutil.copytree(whole, part)
    with safe_open(whole / "adapter_model.safetensors", "np") as file:
        facts = {key: text for key, text in file.metadata().items() if key != "digest"}
        some = {name: file.get_tensor(name) for name in file.keys() if "blocks.0." not in name}  # noqa: SIM118
    save_file(some, part / "adapter_model.safetensors", facts)
    fresh = create(mp)
    before = mp.state_dict(fresh)
    with pytest.raises(UserError, match="does not fit the model: it is of 1 block, and there its method is on 2"):
        mp.load_adapter(fresh, part)
    assert mp.state_dict(fresh).keys() == before.keys()
    mp.load_adapter(fresh, whole)


def test_a_merged_method_is_not_saved(mp, tmp_path):
    model = create(mp)
    with pytest.raises(UserError, match="no method"):
        mp.save_adapter(model, tmp_path / "none")
    mp.add_adapter(model, mp.FacT(rank=2))
    replaced = mp.merge(model)
    with pytest.raises(UserError, match="unmerge it first"):
        mp.save_adapter(model, tmp_path / "merged")
    mp.unmerge(model, replaced)
    mp.save_adapter(model, tmp_path / "again")


@pytest.mark.parametrize("name", ["FacT", "VPT", "AdaptFormer", "SSF", "VeRA", "LoRA"])
def test_a_method_is_taken_out_again(mp, name):
    model = create(mp)
    before = mp.state_dict(model)
    mp.add_adapter(model, getattr(mp, name)())
    mp.remove_adapter(model)
    after = mp.state_dict(model)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[key], before[key]) for key in before)
    mp.add_adapter(model, mp.IA3(targets=("k", "v")))


def test_a_rank_above_the_width_is_refused_when_added(mp):
    with pytest.raises(UserError, match="rank 1000 is above the width"):
        mp.add_adapter(create(mp), mp.LoRA(rank=1000))
