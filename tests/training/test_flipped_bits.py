"""Any bit of any file that is written: once flipped, the file is refused by name, or the run ends as if it were not.

None is silent. A run may end the same because the checkpoint before is taken, or because the file is written anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training.lives import few_metrics

from convert.adapters.peft import read_adapter, write_adapter
from convert.base import load_base
from convert.layouts.layout import Asked
from convert.open import open_path
from convert.timm.write import write_model
from mlx_peft.artifacts.targets import TARGETS, Job, Target
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS, check_sum
from mlx_peft.data.cache import Cache
from mlx_peft.report.gather import read_run
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder, read_metrics, write_json
from mlx_peft.training.train import train

TIMINGS = ("images_per_second", "seconds")
QUICK, ALL = 4, 80
"""Flips of each file: 25 kinds make 100 and 2,000."""


@dataclass(frozen=True)
class Kind:
    """A file that is written, in a folder of its own.

    Attributes:
        read: opens the folder as its readers do; raises UserError where it is refused, and returns what it found.
    """

    folder: Path
    file: str
    read: Callable[[Path], Any]


def flipped(content: bytes, rng: np.random.Generator, number: int) -> bytes:
    """One bit: every other time of the first kilobyte, where headers are."""
    reach = min(len(content), 1024) if number % 2 else len(content)
    place = int(rng.integers(0, 8 * reach))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def check(kind: Kind, place: Path, count: int) -> None:
    expected = kind.read(shutil.copytree(kind.folder, place / "whole"))
    whole, rng = (kind.folder / kind.file).read_bytes(), np.random.default_rng(0)
    for number in range(count):
        folder = shutil.copytree(kind.folder, place / "flipped")
        content = flipped(whole, rng, number)
        (folder / kind.file).write_bytes(content)
        try:
            found = kind.read(folder)
        except UserError as error:
            assert Path(kind.file).name in str(error) or SUMS in str(error), error
        else:
            assert found == expected, f"flip {number} of {kind.file} is silent"
        shutil.rmtree(folder)


def resumed(experiment: Any) -> Callable[[Path], Any]:
    """The end of a run that is continued: all but what the clock says."""

    def end(out: Path) -> Any:
        train(experiment, out, resume=True)
        result = json.loads((out / "result.json").read_text())
        lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(out / "metrics.jsonl")]
        adapter = [
            (out / "adapter" / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
        ]
        return lines, adapter, {key: result[key] for key in ("run_id", "metrics", "selected", "parameters")}

    return end


class Impatient(Silent):
    def step(self, event: StepEvent) -> None:
        if event.step == 15:
            raise RuntimeError


def contents(folder: Path) -> Any:
    found = open_path(folder, Asked())
    tensors = {name: tensor.tobytes() for name, tensor in (found.tensors or {}).items()}
    return replace(found, tensors=None, source="", notes=()), tensors


def adapter_of(folder: Path) -> Any:
    found = read_adapter(folder)
    return replace(found, tensors={}), {name: tensor.tobytes() for name, tensor in found.tensors.items()}


def reported(folder: Path) -> Any:
    return read_run(folder, "run")


def cached(folder: Path) -> bytes:
    """What a data set is given: where an entry is damaged, the image is decoded again."""
    return Cache(folder, 10**6, None).read(__file__, lambda: np.full((4, 5, 3), 7, np.uint8)).tobytes()


@pytest.fixture
def kinds(engine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Kind]:
    """One of every kind."""
    few_metrics(monkeypatch)
    made: dict[str, Kind] = {}
    experiment = engine.experiment(checkpoint_every=4)
    with pytest.raises(RuntimeError):
        train(experiment, tmp_path / "half", progress=Impatient())
    shutil.copytree(tmp_path / "half", tmp_path / "finished")
    train(experiment, tmp_path / "finished", resume=True)
    checkpoints = [f"checkpoint/{name}.safetensors" for name in ("last", "previous", "best", "previous-best")]
    texts = ["config.yaml", "env.json", "metrics.jsonl", SUMS]
    assert RunFolder(tmp_path / "half").previous_best.exists()
    for file in (*checkpoints, *texts):
        made[f"half/{file}"] = Kind(tmp_path / "half", file, resumed(experiment))
    for file in (*texts, "result.json"):
        made[f"finished/{file}"] = Kind(tmp_path / "finished", file, resumed(experiment))
    for file in ("metrics.jsonl", "result.json"):
        made[f"report/{file}"] = Kind(tmp_path / "finished", file, reported)

    write_adapter(tmp_path / "adapter", read_adapter(tmp_path / "finished" / "adapter"))
    for file in ("adapter_config.json", "adapter_model.safetensors", SUMS):
        made[f"adapter/{file}"] = Kind(tmp_path / "adapter", file, adapter_of)

    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=sizes), 2, 0)
    write_model(tmp_path / "model", base=base, tensors=base.tensors, classes=("cat", "dog"))
    codes = Quantization(bits=4, group_size=32)
    tensors = dict(base.tensors)
    for name, shape in codes.stored(base.architecture, {n: t.shape for n, t in tensors.items()}).items():
        if tensors.get(name, np.empty(0)).shape != shape:
            tensors[name] = np.ones(shape, np.uint32 if name.endswith("weight") else np.float32)
    write_model(tmp_path / "codes", base=base, tensors=tensors, quantization=codes, exactly=True)
    target = TARGETS["transformers"]
    assert isinstance(target, Target)
    target.write(tmp_path / "vit", Job(base, base.tensors, ("cat", "dog"), "float32", None, None))
    for folder in ("model", "codes", "vit"):
        for path in (tmp_path / folder).iterdir():
            made[f"{folder}/{path.name}"] = Kind(tmp_path / folder, path.name, contents)

    (tmp_path / "sweep").mkdir()
    write_json(tmp_path / "sweep" / "sweep.json", {"runs": [{"name": "a", "status": "finished"}]})
    made["sweep/sweep.json"] = Kind(
        tmp_path / "sweep", "sweep.json", lambda folder: check_sum(folder / "sweep.json", ())
    )
    cached(tmp_path / "cache")
    (entry,) = (tmp_path / "cache").glob("*/*.rgb")
    made["cache/entry"] = Kind(tmp_path / "cache", str(entry.relative_to(tmp_path / "cache")), cached)
    return made


def test_a_hundred_flips_are_none_of_them_silent(kinds: dict[str, Kind], tmp_path: Path) -> None:
    assert len(kinds) * QUICK >= 100
    for name, kind in kinds.items():
        check(kind, tmp_path / "flips" / name, QUICK)


@pytest.mark.slow
def test_two_thousand_flips_are_none_of_them_silent(kinds: dict[str, Kind], tmp_path: Path) -> None:
    assert len(kinds) * ALL >= 2000
    for name, kind in kinds.items():
        check(kind, tmp_path / "flips" / name, ALL)
