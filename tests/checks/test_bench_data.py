"""The benchmark of the input pipeline: what it compares, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from machines import Machine
from PIL import Image

from mlx_peft.checks import bench_data
from mlx_peft.checks.bench_data import Settings, Share, Throughput
from mlx_peft.core.errors import UserError
from mlx_peft.report import checks
from torch_ref.tools.loader import loader


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return tmp_path


def test_every_contender_reads_every_image_and_is_held_against_the_loader_of_its_interpolation(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(root: str, size: int, batch: int, workers: int, interpolation: str) -> torch.utils.data.DataLoader:
        asked.append((size, batch, workers, interpolation))
        return loader(root, size, batch, 0, interpolation)

    monkeypatch.setattr(bench_data.importlib, "import_module", lambda name: SimpleNamespace(loader=fake))
    settings = Settings(str(images), image_size=16, batch_size=4, threads=1, rounds=2)
    found = bench_data.throughput(settings)
    assert asked == [(16, 4, 1, "bilinear"), (16, 4, 1, "bicubic")]
    names = ["torch DataLoader", "mlx-peft", "mlx-peft, decoded cache"]
    assert [(f.name, f.interpolation) for f in found] == [(n, i) for i in ("bilinear", "bicubic") for n in names]
    for speed in found:
        assert len(speed.images_per_second) == 2
        assert min(speed.images_per_second) > 0
        assert speed.ratio is not None
    assert found[0].ratio == 1


def test_the_loader_gives_what_the_pipeline_gives(images: Path) -> None:
    batches = list(loader(str(images), 16, 4, 0, "bicubic"))
    assert [tuple(pixels.shape) for pixels, _ in batches] == [(4, 3, 16, 16), (2, 3, 16, 16)]
    assert all(pixels.dtype == torch.uint8 for pixels, _ in batches)


def test_a_root_of_which_the_loader_would_read_other_images_is_refused(images: Path) -> None:
    Image.new("RGB", (40, 50)).save(images / "a" / "9.gif")
    with pytest.raises(UserError, match=r"torchvision finds 6 images there and this project 7"):
        bench_data.throughput(Settings(str(images), image_size=16, batch_size=4, threads=1, rounds=1))
    root = images / "splits"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 50)).save(root / split / name / "0.png")
    with pytest.raises(UserError, match=r"has splits \(train, test\).*name the folder of one: .*train"):
        bench_data.throughput(Settings(str(root), image_size=16, batch_size=4, threads=1, rounds=1))


def test_small_images_cost_their_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data, "available", lambda names: ["torch"])
    (share,) = bench_data.small_images(batch_size=1, rounds=1, threads=1)
    assert (share.backend, share.batch_size) == ("torch", 1)
    assert min(share.pipeline_seconds, share.resize_seconds, share.step_seconds) > 0
    assert Share("a", "b", 1, 0.01, 0.02, 0.5).share == pytest.approx(0.06)


def test_tables_and_json() -> None:
    settings, others = Settings("images"), Machine(0.0).others()
    speeds = [Throughput("ours", "bicubic", [100.0, 300.0, 200.0], 1.5), Throughput("alone", "bicubic", [5.0], None)]
    shares = [Share("mlx", "vit", 32, 0.001, 0.002, 0.1)]
    text = checks.images(settings, speeds, shares, others)
    assert "| ours | bicubic | 200 | 100 to 300 | 1.50 |" in text
    assert "| alone | bicubic | 5 | 5 to 5 | - |" in text
    assert "| mlx | 1.0 | 2.0 | 100 | 3.0% |" in text
    assert checks.images(settings, speeds, [], others).endswith("| - |")
    document = json.loads(json.dumps(bench_data.summary(settings, speeds, shares, others)))
    assert document["small_images"][0]["share"] == pytest.approx(0.03)
