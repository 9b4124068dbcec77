"""``explain``: pictures of a model's own images, in both backends, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.config.schema import Model
from mlx_peft.report import explanations

ARGS: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS), 3, seed=0)
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=("a", "b", "c"))
    return tmp_path / "m"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A wide image and a high one, a dark one of one pixel, and a file that is none."""
    (tmp_path / "photos").mkdir()
    for name, shape in (("wide.png", (20, 61, 3)), ("high.jpg", (40, 9, 3)), ("one.png", (1, 1, 3))):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes a second: of one the whole is drawn in the test of pictures."""
    for name in ("draw", "overview"):
        monkeypatch.setattr(explanations, name, lambda *_: b"a picture")


def test_both_backends_draw_the_same(command: Any, model: Path, photos: Path) -> None:
    found = []
    for backend in ("torch", "mlx"):
        done = command("explain", model, photos, "--out", backend, "--arrays", "--json", obj=backend)
        assert done.exit_code == 0, done.stderr
        found.append(json.loads(done.stdout)["images"])
        assert {file.suffix for file in Path(backend).iterdir()} == {".png", ".npz", ".json", ".html"}
    for one, other in zip(*found, strict=True):
        assert (one["image"], one["class"], one["tokens"]) == (other["image"], other["class"], other["tokens"])
        ours, theirs = (np.load(Path(backend, one["arrays"])) for backend in ("mlx", "torch"))
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-7)


def test_the_gradient_speaks_for_the_class_that_is_asked(command: Any, model: Path, photos: Path) -> None:
    maps = []
    for name in "ac":
        done = command("explain", model, photos / "wide.png", "--class", name, "--arrays", "--block", 1, obj="torch")
        assert done.exit_code == 0, done.stderr
        assert json.loads(Path("explained/explanations.json").read_text())[0]["class"] == name
        maps.append(np.load("explained/wide.npz"))
    np.testing.assert_array_equal(maps[0]["rollout"], maps[1]["rollout"])
    assert not np.allclose(maps[0]["weighted"], maps[1]["weighted"])
    assert not Path("explained/index.html").exists()


def test_what_cannot_be_read_is_named_and_the_rest_drawn(command: Any, model: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    done = command("explain", model, photos, "--out", "why", obj="torch")
    assert done.exit_code == 1
    assert f"left out, unreadable: {photos / 'broken.png'}" in done.stderr
    assert "broken.png" in Path("why/index.html").read_text()
    assert len(done.stdout.splitlines()) == 4


def test_a_list_names_images_too(command: Any, model: Path, photos: Path) -> None:
    (photos / "list.txt").write_text("one.png\nwide.png\n")
    done = command("explain", model, photos / "list.txt", "--json", obj="torch")
    assert [Path(entry["image"]).name for entry in json.loads(done.stdout)["images"]] == ["one.png", "wide.png"]
    for arguments, said in ((["-"], "the list is empty"), ([], "no images are named")):
        done = command("explain", model, *arguments, "--out", "none", obj="torch")
        assert done.exit_code == 2 and said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class", "B"], "the model has no class 'B'; did you mean 'b'? (--class NAME)"),
        (["--block", 2], "the model has no block 2: it has 2, counted from 0"),
        (["--weights", "x.safetensors"], "is a whole model, with weights of its own"),
        (["--adapter", "x"], "is a whole model, and has no adapter 'x'"),
        (["--out", "photos"], "photos: exists already"),
    ],
)
def test_what_does_not_go_is_refused_and_nothing_written(
    command: Any, model: Path, photos: Path, arguments: list[Any], said: str
) -> None:
    before = sorted(Path().rglob("*"))
    done = command("explain", model, photos / "one.png", *arguments, obj="torch")
    assert (done.exit_code, done.stdout) == (2, "") and said in done.stderr
    assert sorted(Path().rglob("*")) == before
