"""Whatever ``convert`` reads can be named as an experiment's weights: files and folders of others, and the hub's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from googles import googles
from hub_stand_in import Hub, standing_in

from convert import kinds
from convert.base import Base, architecture_of, load_base
from convert.files import write_json, write_safetensors
from convert.layouts import mlx_vision, processor, torchvision, transformers
from convert.layouts.renaming import from_timm
from convert.timm.write import write_model
from mlx_peft.artifacts.source import open_source
from mlx_peft.config import weights
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

NAME = "vit_small_patch16_224"
SMALL: dict[str, Any] = {"depth": 2}
MAKE: dict[str, Callable[[Base, Path], None]] = {}
"""What writes a model as others have it; each at a path of its name."""


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(Model(name=NAME, weights="none", image_size=32, args=SMALL), 3, seed=1)


def made(function: Callable[[Base, Path], None]) -> Callable[[Base, Path], None]:
    MAKE[function.__name__] = function
    return function


@made
def timm_folder(base: Base, out: Path) -> None:
    write_model(out, base=base, tensors=base.tensors, classes=("a", "b", "c"), exactly=True)


@made
def timm_pth(base: Base, out: Path) -> None:
    torch.save({name: torch.from_numpy(tensor) for name, tensor in base.tensors.items()}, out.with_suffix(".pth"))


@made
def transformers_folder(base: Base, out: Path) -> None:
    config, prepared, tensors = transformers.pack(base.architecture, base.preprocessing, base.tensors, ("a", "b", "c"))
    out.mkdir()
    write_json(out / transformers.CONFIG, config)
    write_json(out / processor.CONFIG, prepared)
    write_safetensors(out / transformers.WEIGHTS, tensors)


@made
def google_npz(base: Base, out: Path) -> None:
    np.savez(out.with_suffix(".npz"), **googles(base.tensors, base.architecture.num_heads))


@made
def mlx_image_folder(base: Base, out: Path) -> None:
    out.mkdir()
    tensors = from_timm(base.tensors, mlx_vision.PAIRS)
    kernels = np.ascontiguousarray(tensors["conv_proj.weight"].transpose(0, 2, 3, 1))
    write_safetensors(out / "model.safetensors", tensors | {"conv_proj.weight": kernels})


def fitted(named: str, **fields: Any) -> Base:
    tagged = f"{NAME}.augreg_in21k"  # several of these shapes are prepared differently
    return load_base(Model(name=tagged, weights=named, image_size=32, args=SMALL, head="keep", **fields), 3, seed=0)


def must_be(found: Base, base: Base) -> None:
    assert found.tensors.keys() == base.tensors.keys()
    for name, tensor in base.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize("kind", MAKE)
def test_a_file_or_folder_of_others_is_weights(kind: str, base: Base, tmp_path: Path) -> None:
    MAKE[kind](base, tmp_path / "named")
    (path,) = tmp_path.iterdir()
    must_be(fitted(str(path)), base)
    must_be(open_source(str(path), model=f"{NAME}.augreg_in21k", args=SMALL | {"img_size": 32}).asked, base)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with standing_in(monkeypatch, tmp_path) as server:
        yield server


@pytest.mark.parametrize("kind", ["timm_folder", "transformers_folder", "mlx_image_folder"])
def test_so_is_a_repository_of_the_hub(kind: str, base: Base, hub: Hub, tmp_path: Path) -> None:
    MAKE[kind](base, tmp_path / "files")
    hub.put("jane/vit", {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()})
    found = fitted("jane/vit")
    must_be(found, base)
    assert found.source == "jane/vit"
    assert not Model(name=NAME, weights="jane/vit").is_local


def test_and_weights_of_timm_s_under_their_whole_name(base: Base, hub: Hub, tmp_path: Path) -> None:
    timm_folder(base, tmp_path / "files")
    hub.put(f"timm/{NAME}.dino", {"model.safetensors": (tmp_path / "files" / "model.safetensors").read_bytes()})
    for named in (f"timm/{NAME}.dino", f"{NAME}.dino"):
        asked = Model(name=NAME, weights=named, image_size=32, args=SMALL)
        assert not asked.is_local
        assert load_base(asked, 3, seed=0).source == f"timm/{NAME}.dino"
    with pytest.raises(UserError, match=r"is no vit_tiny_patch16_224: it has embed_dim"):
        load_base(Model(name="vit_tiny_patch16_224", weights=f"{NAME}.dino"), 3, seed=0)


def test_what_a_model_will_be_is_known_without_a_download(hub: Hub) -> None:
    assert architecture_of(Model(name=NAME, weights="jane/vit")).embed_dim == 384
    assert not hub.requests


def test_a_folder_that_is_there_comes_before_the_hub(base: Base, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "jane").mkdir()
    timm_folder(base, tmp_path / "jane" / "vit")
    assert Model(name=NAME, weights="jane/vit").is_local
    must_be(fitted("jane/vit"), base)
    assert not hub.requests


def test_a_repository_that_there_is_not_is_told_as_both(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"jane/none: no such file or folder here, and of the hub: .* such repo"):
        fitted("jane/none")


def test_torchvision_s_names_tell_weights_of_the_same_shapes_apart(tmp_path: Path) -> None:
    shape = {"depth": 12, "embed_dim": 768, "num_heads": 12}
    small = load_base(Model(name="vit_base_patch16_224", weights="none", args=shape | {"depth": 1}), 3, seed=1)
    path = tmp_path / "vit.pth"
    tensors = torchvision.pack(small.architecture, small.tensors)
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
    with pytest.raises(UserError, match=r"name the model vit_b_16\.IMAGENET1K_V1 or vit_b_16\.IMAGENET1K_SWAG_LINEAR"):
        load_base(Model(name="vit_base_patch16_224", weights=str(path), args={"depth": 1}), 3, seed=0)
    found = load_base(Model(name="vit_b_16.IMAGENET1K_V1", weights=str(path)), 3, seed=0)
    assert (found.name, found.preprocessing.interpolation) == ("vit_base_patch16_224", "bilinear")


def test_the_suffixes_of_files_are_those_that_are_read() -> None:
    assert {*weights.SUFFIXES} == kinds.SUFFIXES.keys()
