"""A run may be somebody else's: what its configuration says of writing and fetching is not done on a user's machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from by_hand import by_hand
from PIL import Image

from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.images import run_images
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.data.sets import cifar, fashion_mnist
from mlx_peft.training.train import train


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(12):
        file = folder / ("train", "test")[number // 8] / ("blue", "red")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(file)
    return folder


@pytest.fixture
def theirs(photos: Path, tmp_path: Path) -> Path:
    """A run whose configuration its author has changed since."""
    experiment = Experiment.model_validate({
        "backend": "torch",
        "model": {
            "name": "vit_tiny_patch16_224", "weights": "none", "image_size": 8,
            "args": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
        },
        "method": {"name": "linear"},
        "data": {"name": "folder", "root": str(photos), "batch_size": 8, "threads": 1, "split": {"val": 0.2}},
        "train": {"epochs": 1},
    })  # fmt: skip
    train(experiment, tmp_path / "run")
    return tmp_path / "run"


def changed(run: Path, **data: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    by_hand(run / "config.yaml", yaml.safe_dump(config))


def test_decoded_images_are_kept_where_the_user_keeps_them(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    changed(theirs, cache={"gigabytes": 1, "folder": str(tmp_path / "any" / "folder")})
    assert evaluate_run(theirs)["count"] == 4
    assert not (tmp_path / "any").exists()
    assert list((tmp_path / "caches" / "mlx-peft").rglob("decoded"))
    wanted = tmp_path / "mine"
    images, _ = run_images(theirs, [f"data.cache.folder={wanted}"])
    assert images.own and images.data.cache.folder == wanted


def test_of_an_adapter_it_is_said_what_to_name(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"the adapter of a run, and only the run knows its data: name {theirs}$"):
        evaluate_run(theirs / "adapter")
    bare = Path(shutil.copytree(theirs / "adapter", tmp_path / "bare"))
    with pytest.raises(UserError, match=f"{bare} is an adapter without its run") as told:
        evaluate_run(bare)
    assert told.value.command is not None and told.value.command.words == ("merge", str(bare), "FOLDER")
    merge_run(bare, tmp_path / "model")
    assert evaluate_run(theirs, model=tmp_path / "model") == pytest.approx(evaluate_run(theirs))
    with pytest.raises(UserError, match="is not a run"):
        evaluate_run(tmp_path)


@pytest.mark.parametrize("overrides", [(), ("data.root=elsewhere",), ("data.name=cifar10",)])
def test_nothing_is_fetched_that_the_user_does_not_ask_for(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def fetch(*args: object, **options: object) -> Path:
        asked.append(args)
        raise UserError("no network here")

    for module in (fashion_mnist, cifar):
        monkeypatch.setattr(module, "fetch", fetch)
    changed(theirs, name="fashion_mnist", root=str(tmp_path / "theirs"), split={"val": 0.1}, download=True)
    with pytest.raises(UserError, match=r"data\.download"):
        run_images(theirs, overrides)
    assert not asked
    with pytest.raises(UserError, match="no network here"):
        run_images(theirs, [*overrides, "data.download=true"])
    assert asked
