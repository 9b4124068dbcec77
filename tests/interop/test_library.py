"""The library: the same notebook on either backend, by changing one import."""

import numpy as np
import pytest
import torch

import torch_ref

# isort: split
import mlx_peft
from mlx_peft.config.errors import UserError

MODULES = {"mlx": mlx_peft, "torch": torch_ref}
LOGITS = 1e-5  # relative, float32


@pytest.fixture(params=MODULES)
def mp(request):
    return MODULES[request.param]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)


def create(mp, seed=0):
    return mp.create_model("vit_tiny_patch16_224", weights="none", num_classes=4, image_size=48, seed=seed)


def logits(mp, model, images):
    with torch.no_grad():
        return np.array(model(mp.prepare(model, images)))


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


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
