"""Images answered on a cluster: the answers of one process, in its order."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from hanging import HUNG
from PIL import Image
from pyarrow import parquet

from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.cli import shards
from mlx_peft.config.schema import Model

ARGS: dict[str, Any] = {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}


class Cluster:
    """Stands for Ray: a task is done when it is asked for, the last one first where several are under way."""

    class exceptions:
        class RayTaskError(Exception):
            cause: Exception = Exception()

    def __init__(self) -> None:
        self.shards: list[int] = []

    def remote(self, function: Any) -> Any:
        class Task:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                self.shards.append(len(arguments[2]))
                return lambda: function(*arguments)

        return Task

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def get(self, task: Any) -> Any:
        return task()


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(shards, "cluster", lambda address: nullcontext())
    monkeypatch.setattr(shards, "installed", lambda: made)
    monkeypatch.setattr(shards, "SHARD", 2)
    shards._kept.cache_clear()
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS), 3, seed=0)
    write_model(tmp_path / "model", base=base, tensors=base.tensors, classes=("x", "y", "z"))
    return tmp_path / "model"


def answers(done: Any) -> list[dict[str, Any]]:
    """Of each image, its likeliest class, or that it cannot be read. Probabilities are not compared: they depend, in
    their last bits, on how many images are computed together."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [{**one, "predictions": [p["class"] for p in one.get("predictions", [])]} for one in found]


def test_the_answers_are_those_of_one_process_in_its_order(command: Any, standing_in: Cluster, model: Path) -> None:
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    Path("photos/broken.png").write_bytes(b"no image")
    words = ("predict", model, "photos", "--format", "jsonl", "--backend", "torch")
    alone, shared = command(*words), command(*words, "--ray", "local")
    assert alone.exit_code == shared.exit_code == 1, shared.stderr
    assert answers(shared) == answers(alone) and len(answers(alone)) == 5
    assert standing_in.shards == [2, 2, 1]


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two Parquet files in a folder, one as the hub has them, and one that is none; four images can be read."""
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    folder.mkdir()
    wide = io.BytesIO()
    Image.new("RGB", (2000, 10)).save(wide, "PNG")
    structs = [{"bytes": data, "path": "../../secret.png"} for data in (png(0), b"no image", png(1))]
    parquet.write_table(
        pa.table({"image": [*structs, None], "label": [1, 2, 3, 4]}), folder / "a.parquet", row_group_size=3
    )
    (folder / "b.parquet").write_bytes(b"PAR1")
    contents = pa.array([png(2), wide.getvalue(), png(3)], pa.binary())
    parquet.write_table(pa.table({"data": contents}), folder / "c.parquet")
    return folder


def test_rows_of_parquet_are_answered_a_row_group_a_task(
    command: Any, standing_in: Cluster, model: Path, photos: Path
) -> None:
    words = ("predict", model, photos, "--format", "jsonl", "--backend", "torch")
    alone, shared = command(*words), command(*words, "--ray", "local")
    assert alone.exit_code == shared.exit_code == 1, shared.stderr
    assert answers(shared) == answers(alone)
    told = {one["image"]: one.get("error") for one in answers(alone)}
    assert [*told] == [f"photos/a.parquet:{row}" for row in range(4)] + ["photos/b.parquet"] + [
        f"photos/c.parquet:{row}" for row in range(3)
    ], "the order of the files and of their rows"
    assert [name for name, error in told.items() if error is None] == [
        *("photos/a.parquet:0", "photos/a.parquet:2", "photos/c.parquet:0", "photos/c.parquet:2")
    ]
    assert told["photos/a.parquet:1"] == "photos/a.parquet:1: not a readable image (not an image in a known format)"
    assert told["photos/a.parquet:3"] == "photos/a.parquet:3: its image is missing"
    assert "photos/b.parquet is not a readable Parquet file" in str(told["photos/b.parquet"])
    assert "photos/c.parquet:1: not a readable image (2000 x 10: one side" in str(told["photos/c.parquet:1"])
    assert standing_in.shards == [3, 2, 3], "no row group is parted, though a task has two images"


def test_the_same_pixels_in_a_file_and_in_a_row_have_the_same_answer_and_features(
    command: Any, model: Path, photos: Path
) -> None:
    Path("0.png").write_bytes(png(0))
    Path("2.png").write_bytes(png(2))
    words = ("--backend", "torch", "--features")
    assert command("predict", model, photos, *words, "rows.npz").exit_code == 1
    assert command("predict", model, photos, *words, "rows.parquet").exit_code == 1
    assert command("predict", model, "0.png", "2.png", *words, "files.npz").exit_code == 0
    with np.load("rows.npz") as rows, np.load("files.npz") as files:
        assert rows["images"].tolist()[::2] == ["photos/a.parquet:0", "photos/c.parquet:0"]
        # the two are computed beside others, and float32 sums depend on that in their last bits
        np.testing.assert_allclose(rows["features"][::2], files["features"], rtol=1e-4, atol=1e-5)
        assert parquet.read_table("rows.parquet")["image"].to_pylist() == rows["images"].tolist()
    for name in ("told.csv", "told.txt"):
        assert command("predict", model, photos, "--backend", "torch", "--out", name).exit_code == 1
        assert "photos/c.parquet:2" in Path(name).read_text()


def test_what_is_written_takes_no_place_of_what_is_read(command: Any, model: Path, photos: Path) -> None:
    before = (photos / "c.parquet").read_bytes()
    done = command("predict", model, photos, "--backend", "torch", "--features", photos / "c.parquet")
    assert done.exit_code == 2 and "is one of the images" in done.stderr
    assert (photos / "c.parquet").read_bytes() == before


def test_where_none_can_be_read_that_is_said(command: Any, standing_in: Cluster, model: Path) -> None:
    for number in range(3):
        Path(f"{number}.png").write_bytes(b"no image")
    done = command("predict", model, "0.png", "1.png", "2.png", "--backend", "torch", "--ray", "local")
    assert done.exit_code == 2 and "none of the 3 images can be read; the first: " in done.stderr


def test_features_are_not_for_a_cluster(command: Any, model: Path) -> None:
    done = command("predict", model, "a.png", "--features", "f.npz", "--ray", "local")
    assert done.exit_code == 2 and "leave --ray out" in done.stderr


@pytest.mark.slow  # a cluster takes ten seconds to begin, and its processes to import what they need
def test_on_a_local_cluster_the_command_ends_and_leaves_no_process(model: Path, photos: Path) -> None:
    """A real one: the command ends by itself, with the answers of one process, and the cluster ends with it."""
    words = [sys.executable, "-m", "mlx_peft", "predict", model, photos, "--format", "jsonl", "--backend", "torch"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    alone, shared = (
        subprocess.run([*map(str, words), *more], capture_output=True, text=True, timeout=HUNG, env=env)
        for more in ((), ("--ray", "local"))
    )
    assert alone.returncode == shared.returncode == 1, shared.stderr
    assert answers(shared) == answers(alone) and len(answers(alone)) == 8
    here = str(photos.resolve().parent)
    assert not [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == here and one.pid != os.getpid()]
