"""Where a relative path was looked for is said, once nothing was found there."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.base import load_base
from mlx_peft.config.schema import Data, Model
from mlx_peft.core.errors import Command, UserError
from mlx_peft.core.sought import sought, sought_beside
from mlx_peft.data import open_dataset


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "csv", "parquet", "cifar10", "fashion_mnist", "dtd", "busi", "imagenet-1k"])
def test_images_that_are_not_there(name: str, here: Path) -> None:
    """Whoever reads the set: it is said where all of them are opened."""
    with pytest.raises(UserError) as caught:
        open_dataset(Data(name=name, root=Path("photos/mine")))
    where = here / "photos" / "mine"
    assert f"data.root photos/mine is relative to the working directory: it was looked for at {where}" in str(
        caught.value
    )


def test_a_whole_path_says_it_itself(here: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_dataset(Data(name="folder", root=here / "photos"))
    assert str(here / "photos") in str(caught.value) and "relative" not in str(caught.value)


def test_what_is_there_and_wrong_is_no_matter_of_where(here: Path) -> None:
    (here / "photos").mkdir()
    with pytest.raises(UserError) as caught:
        open_dataset(Data(name="folder", root=Path("photos")))
    assert "relative" not in str(caught.value)


@pytest.mark.parametrize("weights", ["dinov2.safetensors", "models/dino.pth", "some folder"])
def test_weights_that_are_not_there(weights: str, here: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_base(Model(name="vit_tiny_patch16_224", weights=weights), 3, seed=0)
    text = f"model.weights {weights} is relative to the working directory: it was looked for at {here / weights}"
    assert text in str(caught.value)


def test_the_configuration_s_folder_is_named_where_it_was_looked_in_too(here: Path) -> None:
    error = UserError("data.root: there is no photos", arguments=("root",), command=Command("see", ("ls",)))
    with (
        pytest.raises(UserError) as caught,
        sought_beside(Path("photos"), here / "configs"),
        sought(Path("photos"), "data.root"),
    ):
        raise error
    assert str(caught.value).splitlines()[1:] == [
        f"  note: data.root photos is relative to the working directory: it was looked for at {here / 'photos'}",
        f"  note: and beside the configuration, at {here / 'configs' / 'photos'}",
    ]
    assert (caught.value.arguments, caught.value.command) == (error.arguments, error.command)
