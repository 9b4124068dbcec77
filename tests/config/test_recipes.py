"""The shipped recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from mlx_peft.config import files, recipes
from mlx_peft.config.methods import LoRA, Method
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY
from mlx_peft.vit import registry

OTHERS = {
    "dinov3-small-lora-folder",
    "quickstart",
    "quickstart-pretrain",
    "vit-base-lora-vtab-1k-cifar",
    "vit-small-lora-busi",
    "vit-small-lora-medmnist-breastmnist",
    "vit-small-lora-medmnist-chestmnist",
    "vit-small-lora-tiny-imagenet",
}
METHODS = {
    "linear": "linear",
    "full": "full",
    "bitfit": "bitfit",
    "layernorm": "layernorm",
    "lora": "lora",
    "dora": "lora",
    "pissa": "lora",
    "olora": "lora",
    "eva": "lora",
    "rslora": "lora",
    "loraplus": "lora",
    "qalora": "qalora",
    "adalora": "adalora",
    "vera": "vera",
    "fact": "fact",
    "ia3": "ia3",
    "ssf": "ssf",
    "adaptformer": "adaptformer",
    "adapter-plus": "adapter_plus",
    "houlsby": "houlsby",
    "repadapter": "repadapter",
    "vpt-shallow": "vpt",
    "vpt-deep": "vpt",
    "oft": "oft",
    "boft": "boft",
    "road": "road",
    "loha": "loha",
    "lokr": "lokr",
    "miss": "miss",
    "randlora": "randlora",
    "pvera": "pvera",
    "convpass": "convpass",
    "lst": "lst",
}
"""A recipe's name for a method, and the configuration's."""
IN_FEW_BITS = {"qlora": "lora", "qat": "lora", "qat-lsq": "full"}
"""A recipe that is another one over codes, or through them, and which."""
MODELS = ("deit-tiny", "deit-small", "vit-small", "vit-base")
DATA = ("cifar10", "cifar100", "folder")
VARIED: Any = {"method": True, "train": {"optimizer": {"lr"}}}


def test_every_promised_recipe_is_there() -> None:
    models = {f"{model}-lora-{data}" for model in MODELS for data in DATA}
    methods = {f"dinov2-small-{method}-folder" for method in METHODS}
    bits = {f"dinov2-small-{name}-folder" for name in IN_FEW_BITS}
    assert set(recipes.names()) == models | methods | bits | OTHERS


@pytest.mark.parametrize(("recipe", "plain"), IN_FEW_BITS.items())
def test_a_recipe_in_few_bits_differs_from_the_plain_one_in_nothing_else(recipe: str, plain: str) -> None:
    few, full = (files.load(recipes.find(f"dinov2-small-{name}-folder")) for name in (recipe, plain))
    assert (few.quantize is None) != (few.qat is None)
    assert few.model_dump(exclude={"quantize", "qat"}) == full.model_dump(exclude={"quantize", "qat"})
    architecture = registry.find(few.model.name).architecture
    (few.quantize or few.qat).sites(architecture)
    if few.qat:
        few.method.check_rounding(architecture, few.qat, None)


def test_every_method_has_a_recipe() -> None:
    assert set(METHODS.values()) == {method.model_fields["name"].default for method in get_args(get_args(Method)[0])}


@pytest.mark.parametrize(("recipe", "method"), METHODS.items())
def test_a_method_s_recipe_differs_from_lora_s_in_the_method_and_its_learning_rate_alone(
    recipe: str, method: str
) -> None:
    experiment, lora = (files.load(recipes.find(f"dinov2-small-{name}-folder")) for name in (recipe, "lora"))
    assert experiment.method.name == method
    assert experiment.method != lora.method or recipe == "lora"
    assert (experiment.quantize is not None) == experiment.method.over_codes
    varied = VARIED | {"quantize": True}
    assert experiment.model_dump(exclude=varied) == lora.model_dump(exclude=varied)
    experiment.method.check(registry.find(experiment.model.name).architecture)


def test_the_variants_of_lora_are_what_their_names_say() -> None:
    def method(name: str) -> Any:
        return files.load(recipes.find(f"dinov2-small-{name}-folder")).method

    assert method("dora").dora
    assert method("rslora").rslora
    assert method("loraplus").lora_plus == 16
    assert (method("pissa").init, method("pissa").scaling) == ("pissa", 1.0)
    assert [method(name).deep for name in ("vpt-shallow", "vpt-deep")] == [False, True]


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_valid_and_names_what_exists(name: str) -> None:
    experiment = files.load(recipes.find(name))
    registry.find(experiment.model.name)
    entry = REGISTRY[experiment.data.name]
    assert entry.variant(experiment.data.name, experiment.data.variant)
    assert recipes.description(name)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_has_images_to_choose_the_epoch_by(name: str) -> None:
    data = files.load(recipes.find(name)).data
    variant = REGISTRY[data.name].variant(data.name, data.variant)
    shares = {"val": data.split.val} if variant.shares is None else variant.shares
    assert variant.sizes.get("val") or shares.get("val")


@pytest.mark.parametrize("name", [name for name in recipes.names() if "-lora-" in name and "dinov" not in name])
def test_a_recipe_is_what_its_name_says(name: str) -> None:
    model, data = name.split("-lora-")
    experiment = files.load(recipes.find(name))
    assert experiment.model.name.startswith(f"{model.replace('-', '_')}_patch16_224.")
    assert isinstance(experiment.method, LoRA)
    assert experiment.data.name.replace(":", "-") == data


def test_dinov3_is_trained_as_dinov2_is() -> None:
    found, other = (files.load(recipes.find(f"{name}-small-lora-folder")) for name in ("dinov3", "dinov2"))
    assert found.model.name == "vit_small_patch16_dinov3"
    assert found.model_copy(update={"model": other.model}) == other


@pytest.mark.parametrize("name", recipes.names())
def test_the_text_of_a_recipe_stands_alone(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipes.text(name))
    assert files.load(copy) == files.load(recipes.find(name))


def test_an_unknown_recipe_is_met_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no recipe 'quikstart'; did you mean 'quickstart'"):
        recipes.locate("quikstart")


def test_a_file_goes_before_a_recipe_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert recipes.locate("quickstart") == recipes.find("quickstart")
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("")
    assert recipes.locate("quickstart") == Path("quickstart")


@pytest.mark.parametrize("config", ["none.yaml", "folder/none"])
def test_a_path_to_nothing_is_no_recipe(config: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        recipes.locate(config)


def test_a_suite_s_text_is_its_file_and_no_recipe_has_its_name() -> None:
    assert not set(recipes.names()) & set(recipes.names("suite"))
    for name in recipes.names("suite"):
        assert recipes.text(name) == recipes.find(name, "suite").read_text()


def test_parts_are_no_recipes() -> None:
    with pytest.raises(UserError, match="no recipe"):
        recipes.find("parts/lora")
