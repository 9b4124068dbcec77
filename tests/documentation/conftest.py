"""A place where the commands of the documentation can be run: images, an experiment, a run, and a hub with weights."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch  # before MLX, or it gets the wrong BLAS
import yaml
from click.testing import Result
from documentation.snippets import SNIPPETS
from hub_stand_in import Hub, standing_in
from PIL import Image
from safetensors.numpy import save
from typer.testing import CliRunner

from convert.adapters.peft import read_adapter, write_adapter
from convert.base import load_base
from mlx_peft.checks import matrix
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Model

SIZE = 16
ARGS = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
"""Of models that take no time. Their widths are those of the largest group of codes that the documentation has."""

TIMM = (
    *("deit_tiny_patch16_224.fb_in1k", "vit_small_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
    "vit_small_patch14_dinov2.lvd142m",
)
DINO = "vit_small_patch16_224.dino"


def tensors(name: str) -> dict[str, np.ndarray]:
    """A small model of that name, with random weights."""
    return load_base(Model(name=name, weights="none", image_size=SIZE, args=ARGS), 1000, 0).tensors


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def experiment(place: Path) -> None:
    """``my.yaml``: the README's own experiment, on a smaller model and fewer images."""
    (readme,) = (one for one in SNIPPETS if (one.page, one.heading, one.language) == ("README.md", "Train", "yaml"))
    (place / "readme.yaml").write_text(readme.text)
    smaller = {
        "base": "readme.yaml",
        "model": {"image_size": SIZE, "args": ARGS},
        "data": {"batch_size": 4},
        "train": {"epochs": 2},
    }
    (place / "my.yaml").write_text(yaml.safe_dump(smaller))


def run(line: str) -> Result:
    """A command line, in this process."""
    program, *arguments = shlex.split(line)
    return CliRunner().invoke(app, arguments, obj={"mlx-peft": "mlx", "torch-ref": "torch"}[program])


def filled(hub: Hub, place: Path) -> None:
    """The repositories that the documentation names."""
    for name in TIMM:
        hub.put(f"timm/{name}", {"model.safetensors": (place / "timm" / name).read_bytes()})
    if (place / "google").exists():
        files = {file.name: file.read_bytes() for file in (place / "google").iterdir()}
        hub.put("google/vit-base-patch16-224", files)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documentation supposes that a person has. Nothing may be written here: ``world`` is a copy."""
    place = tmp_path_factory.mktemp("prepared")
    for number, name in enumerate(("bird", "cat", "dog") * 8):
        picture(place / "photos" / name / f"{number}.png", number)
    shutil.copytree(place / "photos", place / "other")
    rows = [f"{path.relative_to(place)},{path.parent.name}" for path in sorted((place / "photos").glob("*/*"))]
    (place / "list.csv").write_text("\n".join(["image,label", *rows]))
    for name in ("cat.jpg", "image.jpg"):
        picture(place / name, 100)
    experiment(place)
    dino = {name: torch.from_numpy(tensor) for name, tensor in tensors(DINO).items() if "head" not in name}
    torch.save(dino, place / "dino_deitsmall16_pretrain.pth")
    (place / "timm").mkdir()
    for name in TIMM:
        (place / "timm" / name).write_bytes(save(tensors(name)))
    with pytest.MonkeyPatch.context() as patch, standing_in(patch, place / "hub") as hub:
        patch.chdir(place)
        filled(hub, place)
        for line in (
            "mlx-peft train my.yaml --out runs/mine --backend torch",
            "mlx-peft merge runs/mine merged --backend torch",
            "mlx-peft convert runs/mine google --to transformers --backend torch --no-verify",
        ):
            done = run(line)
            assert done.exit_code == 0, done.output
    for name in ("north", "south"):
        shutil.copytree(place / "runs" / "mine" / "adapter", place / "clinics" / name)
    (place / "asked.csv").write_text("image,adapter\ncat.jpg,north\nimage.jpg,south\n")
    own = read_adapter(place / "runs" / "mine" / "adapter")
    for team, classes in (("garden", own.classes), ("kitchen", own.classes), ("street", ("bus", "car", "tram"))):
        write_adapter(place / "teams" / team, replace(own, classes=classes))
    return place


@pytest.fixture
def world(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of what is prepared, which is the working directory, and the hub; the parity matrix has a small model."""
    monkeypatch.setitem(matrix.MODELS, matrix.SMALL, matrix.CUT)
    place = shutil.copytree(prepared, tmp_path / "world", ignore=shutil.ignore_patterns("hub"))
    monkeypatch.chdir(place)
    with standing_in(monkeypatch, tmp_path) as hub:
        filled(hub, place)
        yield place
