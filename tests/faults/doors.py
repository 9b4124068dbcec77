"""The commands that read a document, and a folder with one of each document to read."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from changing import header, in_header, in_json, in_lines, in_metadata, in_table, in_yaml, write_header
from hostile import pick, text
from PIL import Image
from typer.testing import CliRunner

from convert.adapters.description import METADATA
from mlx_peft.cli.app import app
from mlx_peft.config import suite
from mlx_peft.config.schema import Data
from mlx_peft.core.errors import UserError
from mlx_peft.data import find
from mlx_peft.data.opening import open_entry
from mlx_peft.vit import registry

EXPERIMENT = {
    "seed": 1,
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 8,
        "args": {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3},
    },
    "method": {"name": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.1, "targets": ["q", "v", "fc1"]},
    "data": {
        "name": "folder",
        "root": "images",
        "batch_size": 8,
        "split": {"val": 0.25, "test": 0.25},
        "augment": {"crop": "random_resized", "scale": [0.5, 1.0], "flip": True, "color_jitter": {"hue": 0.1}},
    },
    "train": {"epochs": 2, "optimizer": {"name": "adamw", "lr": 0.01, "betas": [0.9, 0.999]}, "clip_norm": 1.0},
}
SUITE = {
    "base": "experiment.yaml",
    "set": {"train.epochs": 1},
    "seeds": [0, 1],
    "axes": {"method.rank": [1, 2], "method": [{"name": "linear"}, {"name": "lora"}]},
    "runs": [{"name": "a", "then": [{"name": "m", "merge": "exact"}]}, {"name": "b", "axes": {}, "set": {"seed": 3}}],
}


@dataclass(frozen=True)
class Outcome:
    """What a door answered."""

    status: int | None
    output: str
    error: str | None = None


Door = Callable[[Path], Outcome]


def command(*words: str, backend: str = "torch") -> Outcome:
    done = CliRunner().invoke(app, words, obj=backend)
    error = None
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        error = "".join(traceback.format_exception(done.exception)[-4:])
    return Outcome(done.exit_code, done.output, error)


def called(function: Callable[[], object]) -> Outcome:
    try:
        function()
    except UserError as error:
        return Outcome(2, str(error))
    except Exception as error:
        return Outcome(1, "", "".join(traceback.format_exception(error)[-4:]))
    return Outcome(0, "")


def restore(whole: Path, folder: Path) -> None:
    """Makes ``folder`` what ``whole`` is, and touches nothing that is already."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {entry.name: entry for entry in os.scandir(whole)}
    for entry in os.scandir(folder):
        kept = there.get(entry.name)
        if kept is None or kept.is_dir() != entry.is_dir(follow_symlinks=False):
            (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
    for name, entry in there.items():
        if entry.is_dir():
            restore(whole / name, folder / name)
        elif not (folder / name).exists() or marks(whole / name) != marks(folder / name):
            shutil.copy2(entry.path, folder / name)


def marks(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_mode, found.st_size, found.st_mtime_ns


class Place:
    """What is opened: made once, and copied for each case."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.whole, self.copy, self.backend = folder / "whole", folder / "copy", backend
        if not self.whole.is_dir():
            self.make()
        self.fresh()
        for words in ("predict", self.copy / "run", self.copy / "images/red/0.png"), ("report", self.copy):
            self.run(*map(str, words))  # loads what is loaded once, so that no case is blamed for it

    def run(self, *words: str) -> Outcome:
        return command(*words, backend=self.backend)

    def make(self) -> None:
        rng = np.random.default_rng(0)
        for number in range(24):
            path = self.whole / "images" / ("red", "green")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(path)
        paths = sorted((self.whole / "images").rglob("*.png"))
        names = [(f"images/{path.parent.name}/{path.name}", path.parent.name) for path in paths]
        rows = [f"{image},{label},{index % 5}" for index, (image, label) in enumerate(names)]
        (self.whole / "labels.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
        lists = self.whole / "kitti"
        for name, count in (("train800", 8), ("val200", 4)):
            for number in range(count):
                place = lists / "images" / "train800val200" / f"{name}{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(paths[number], place)
            entries = [f"images/train800val200/{name}{number}.png {number % 4}" for number in range(count)]
            (lists / f"{name}.txt").write_text("\n".join(entries) + "\n")
        data = {**EXPERIMENT["data"], "root": str(self.copy / "images")}
        (self.whole / "experiment.yaml").write_text(json.dumps({**EXPERIMENT, "data": data}))
        (self.whole / "suite.yaml").write_text(json.dumps(SUITE))
        self.fresh()
        for words in (
            ("train", "@experiment.yaml", "--out", "@run"),
            ("eval", "@run"),
            ("merge", "@run", "@model"),
            ("convert", "@model", "@hf", "--to", "transformers", "--no-verify"),
        ):
            done = self.run(*(str(self.copy / word[1:]) if word.startswith("@") else word for word in words))
            assert done.status == 0, done
        adapter = self.copy / "peft"
        shutil.copytree(self.copy / "run" / "adapter", adapter)
        entries, data_bytes = header(adapter / "adapter_model.safetensors")
        entries["__metadata__"].pop(METADATA)
        write_header(adapter / "adapter_model.safetensors", json.dumps(entries), data_bytes)
        shutil.copytree(self.copy / "run", self.copy / "begun")
        (self.copy / "begun" / "result.json").unlink()
        for digests in self.copy.rglob("SHA256SUMS.txt"):  # by which any change is refused: see test_flipped_bits.py
            digests.unlink()
        shutil.rmtree(self.whole)
        shutil.copytree(self.copy, self.whole)

    def fresh(self) -> Path:
        """Puts back what a case changed: what has another size or another time, which copying keeps."""
        restore(self.whole, self.copy)
        return self.copy


Change = Callable[[Path, np.random.Generator], None]


def kinds(place: Place, rng: np.random.Generator) -> dict[str, tuple[Path, Change, Callable[[], Outcome]]]:
    """By name: the file that is changed, how, and the door that reads it; of several doors one by chance.

    Long because it is the one table of them.
    """
    at, run = place.copy, place.run
    picture, out = str(at / "images/red/0.png"), str(at / "out")
    adapter, model, hf = at / "run" / "adapter", at / "model", at / "hf"
    checks = {"model.name": registry.find, "data.name": find}
    asked = ("--model", "vit_tiny_patch16_224", "--weights", str(model))

    def overrides() -> Outcome:
        document = read_again(experiment)
        sections = document.items() if isinstance(document, dict) else [("seed", document)]
        return run("config", "show", "quickstart", *(f"{key}={text(value)}" for key, value in sections))

    def reading(path: Path) -> Outcome:
        return pick(rng, (
            lambda: run("predict", str(path), picture), lambda: run("info", str(path), "--json"),
            lambda: run("merge", str(path), out), lambda: run("predict", str(path), picture, "--json", "--top", "9"),
        ))()  # fmt: skip

    def opening(path: Path) -> Outcome:
        return pick(rng, (
            lambda: run("predict", str(path), picture), lambda: run("info", str(path)),
            lambda: run("convert", str(path), out, "--to", "timm", "--no-verify"),
            lambda: run("quantize", str(path), out, "--group-size", "32"),
        ))()  # fmt: skip

    experiment, table, lists = at / "experiment.yaml", at / "labels.csv", at / "kitti/train800.txt"

    def resumed(folder: str) -> Outcome:
        return run("train", str(experiment), "--out", str(at / folder), "--resume", "--json")

    def finished() -> Outcome:
        return pick(rng, (
            lambda: run("report", str(at), "--out", out), lambda: run("report", str(at / "run"), "--json"),
            lambda: run("eval", str(at / "run")), lambda: resumed("run"),
        ))()  # fmt: skip

    def checked(name: str) -> Outcome:
        return run("data", "check", name, f"root={at}", "--sheet", f"{out}.png")

    def by_run() -> Outcome:
        return reading(at / "run") if rng.random() < 0.5 else finished()

    stored, weights, last = adapter / "adapter_model.safetensors", model / "model.safetensors", "last.safetensors"
    checkpoint = at / "begun" / "checkpoint" / last
    return {
        "experiment": (experiment, in_yaml, lambda: run("config", "validate", str(experiment))),
        "experiment, trained": (experiment, in_yaml, lambda: run("train", str(experiment), "--out", out)),
        "overrides": (experiment, in_yaml, overrides),
        "suite": (at / "suite.yaml", in_yaml, lambda: called(lambda: suite.load(at / "suite.yaml", checks=checks))),
        "adapter_config.json": (adapter / "adapter_config.json", in_json, lambda: reading(at / "run")),
        "adapter, metadata": (stored, in_metadata, lambda: reading(adapter)),
        "adapter, header": (stored, in_header, lambda: reading(adapter)),
        "peft": (at / "peft/adapter_config.json", in_json, lambda: run("predict", str(at / "peft"), picture, *asked)),
        "timm": (model / "config.json", in_json, lambda: opening(model)),
        "model, header": (weights, in_header, lambda: opening(model)),
        "transformers": (hf / "config.json", in_json, lambda: opening(hf)),
        "processor": (hf / "preprocessor_config.json", in_json, lambda: opening(hf)),
        "run, config": (at / "run/config.yaml", in_yaml, by_run),
        "run, result": (at / "run/result.json", in_json, finished),
        "run, metrics": (at / "run/metrics.jsonl", in_lines, finished),
        "checkpoint, facts": (checkpoint, in_metadata, lambda: resumed("begun")),
        "checkpoint, header": (checkpoint, in_header, lambda: resumed("begun")),
        "begun, config": (at / "begun/config.yaml", in_yaml, lambda: resumed("begun")),
        "begun, metrics": (at / "begun/metrics.jsonl", in_lines, lambda: resumed("begun")),
        "table": (table, in_table, lambda: checked("csv")),
        "list": (lists, in_table, lambda: called(lambda: listed(at))),
    }


def listed(root: Path) -> None:
    """Opens a set that is given by lists of files, whatever its size, and reads all of it."""
    entry = find("vtab-1k:kitti")
    entry = replace(entry, variants=(replace(entry.variants[0], sizes={}),))
    for split in open_entry(entry, Data(name="vtab-1k:kitti", root=root, threads=1)).splits.values():
        for row in range(split.size):
            split.images.read(row)


def read_again(path: Path) -> Any:
    """A changed document as Python reads it; nothing where it does not."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return {}
