"""Where ``predict --out`` and ``--features`` may write: what is there may be something that nobody wants replaced."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banks import ARGS, SIZE, adapter, base_of
from PIL import Image

from convert.adapters.peft import write_adapter
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    """A folder with the adapter x."""
    place: Path = tmp_path_factory.mktemp("adapters")
    model = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    write_adapter(place / "x", replace(adapter(base_of(), LoRA(rank=1), 0, 3), model=model))
    return place


@pytest.fixture
def images(command: Any) -> list[str]:
    """Three images in the working directory."""
    names = ["a.png", "b.png", "c.png"]
    for name, pixels in zip(names, np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8), strict=True):
        Image.fromarray(pixels).save(name)
    return names


@pytest.mark.parametrize(
    "words", [("--out", "p", "--format", "csv"), ("--features", "p.npz"), ("--features", "p.parquet")]
)
def test_a_pipe_stays_one(command, bank, images, words) -> None:
    os.mkfifo(words[1])
    Path("link").symlink_to(words[1])
    done = command("predict", bank / "x", *images, *words, obj="torch")
    assert done.exit_code == 2 and f"{words[0]}: {words[1]} is a pipe" in done.stderr
    assert Path(words[1]).is_fifo()


@pytest.mark.parametrize(
    ("asked", "out"),
    [
        (["a.png"], "a.png"),
        (["photos"], "photos/b.png"),
        (["l.txt"], "c.csv"),
        (["l.txt"], "l.txt"),
        (["l.txt"], "link.txt"),
        (["--adapters", "t.csv"], "t.csv"),
        (["--adapters", "t.csv"], "c.csv"),
    ],
)
def test_what_is_read_is_not_replaced(command, bank, images, asked, out) -> None:
    Path("photos").mkdir()
    Path("b.png").rename("photos/b.png")
    Path("c.png").rename("c.csv")  # an image by what is in it
    Path("l.txt").write_text("a.png\nc.csv\n")
    Path("link.txt").symlink_to("l.txt")
    Path("t.csv").write_text("image,adapter\nc.csv,x\n")
    before = Path(out).read_bytes()
    run = bank if "--adapters" in asked else bank / "x"
    done = command("predict", run, *asked, "--out", out, *(["--format", "csv"] if ".png" in out else []), obj="torch")
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert out in done.stderr and Path(out).read_bytes() == before


def test_a_file_of_a_run_is_not_replaced(command, bank, images) -> None:
    Path("runs/a").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "mine.jsonl"):
        Path("runs/a", name).write_text("{}")
    Path("link.jsonl").symlink_to("runs/a/metrics.jsonl")
    for out in ("runs/a/metrics.jsonl", "link.jsonl"):
        done = command("predict", bank / "x", *images, "--out", out, obj="torch")
        assert done.exit_code == 2 and f"--out: {out} is a file of a run: name another file" in done.stderr
    assert Path("runs/a/metrics.jsonl").read_text() == "{}"
    assert command("predict", bank / "x", *images, "--out", "runs/a/mine.jsonl", obj="torch").exit_code == 0


def test_what_another_program_made_is_not_replaced(command, bank, images) -> None:
    Path("config.json").write_text("{}")
    done = command("predict", bank / "x", *images, "--out", "config.json", "--format", "jsonl", obj="torch")
    assert done.exit_code == 2 and "by its name it is no jsonl" in done.stderr
    assert Path("config.json").read_text() == "{}"
