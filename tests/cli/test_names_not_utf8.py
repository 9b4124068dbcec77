"""Folders and files whose names are no text: commands that meet them do their work, and what they write is text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_backend import MODEL
from PIL import Image

Command = Callable[..., Any]
ODD = os.fsdecode(b"caf\xe9")
TEXTS = (".md", ".csv", ".json", ".jsonl", ".yaml", ".txt", ".html")


def written(folder: Path) -> list[Path]:
    """The texts below a folder, each of which is read as UTF-8."""
    found = [path for path in folder.rglob("*") if path.suffix in TEXTS]
    for path in found:
        path.read_text("utf-8")
    return found


def test_a_run_its_figures_and_reports_of_it_may_be_called_anything(
    command: Command, engine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": MODEL, "method": {"name": "linear"}, "data": {"name": "digits", "batch_size": 8}}
    Path("run.yaml").write_text(yaml.safe_dump(values))
    for number in range(2):
        run = f"runs {ODD}/{number}{ODD}"
        with monkeypatch.context() as patch:
            patch.setattr("mlx_peft.report.evaluation.write_result", lambda *_: None)  # pictures come with eval
            done = command("train", "run.yaml", f"seed={number}", "--out", run)
        assert done.exit_code == 0, done.output
    done = command("eval", run, "--out", f"figures {ODD}")
    assert done.exit_code == 0, done.output
    assert any(path.suffix == ".png" for path in Path(f"figures {ODD}").iterdir())
    done = command("report", f"runs {ODD}", "--out", f"report {ODD}")
    assert done.exit_code == 0, done.output
    assert r"caf\xe9" in done.stdout
    assert {path.name for path in Path(f"report {ODD}").iterdir()} >= {"table.md", "table.csv", "table.tex", "figures"}
    rows = json.loads(command("report", f"runs {ODD}", "--json").stdout)
    assert [row["run"] for row in rows] == [f"0{ODD}", f"1{ODD}"], "the names as they are come back from JSON"
    assert len(written(tmp_path)) > 10


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_images_that_are_broken_or_there_twice_may_be_called_anything(
    command: Command, tmp_path: Path, options: tuple[str, ...]
) -> None:
    for number in range(4):
        for split in ("train", "test"):
            path = tmp_path / "images" / split / "ab"[number % 2] / f"{number}{ODD}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "images" / "train" / "a" / f"broken{ODD}.png").write_bytes(b"")
    done = command("data", "check", "folder", "root=images", "split.val=0", "--sheet", f"sheet{ODD}.png", *options)
    assert done.exit_code == 1
    assert Image.open(f"sheet{ODD}.png").height > 3 * 96
    if options:
        report = json.loads(done.stdout)
        assert report["equal_across_splits"]["count"] == 4
        assert report["broken"]["images"][0]["image"] == f"train/a/broken{ODD}.png"
    else:
        assert done.stdout.count(r"caf\xe9.png") == 9  # four pairs, and the broken one
