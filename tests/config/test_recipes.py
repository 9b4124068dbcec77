"""The shipped recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_peft.config import files, recipes, registry
from mlx_peft.config.errors import UserError
from mlx_peft.config.methods import LoRA
from mlx_peft.data import REGISTRY

OTHERS = {"dinov2-small-lora-folder", "quickstart", "quickstart-pretrain"}
MODELS = ("deit-tiny", "deit-small", "vit-small", "vit-base")
DATA = ("cifar10", "cifar100", "folder")


def test_every_promised_recipe_is_there() -> None:
    assert set(recipes.names()) == {f"{model}-lora-{data}" for model in MODELS for data in DATA} | OTHERS


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_valid_and_names_what_exists(name: str) -> None:
    experiment = files.load(recipes.find(name))
    registry.find(experiment.model.name)
    assert experiment.data.name in REGISTRY
    assert recipes.description(name)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name not in OTHERS])
def test_a_recipe_is_what_its_name_says(name: str) -> None:
    model, data = name.split("-lora-")
    experiment = files.load(recipes.find(name))
    assert experiment.model.name.startswith(f"{model.replace('-', '_')}_patch16_224.")
    assert isinstance(experiment.method, LoRA)
    assert experiment.data.name == data


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


def test_parts_are_no_recipes() -> None:
    with pytest.raises(UserError, match="no recipe"):
        recipes.find("parts/lora")
