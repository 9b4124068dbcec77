"""What can be known of a conversion before any work is known then: nothing is computed, and nothing is written."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convert.adapters.peft import Adapter, write_adapter
from convert.base import Base, load_base
from convert.timm.write import write_model
from mlx_peft.artifacts import proof, targets
from mlx_peft.artifacts.convert import convert
from mlx_peft.artifacts.merge import merge_run, quantize_model
from mlx_peft.artifacts.simulate import simulate_run
from mlx_peft.config.methods import VPT
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.protocols import loading

ARGS: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """A model's folder; with fields of the architecture, and names of its two classes."""

    def written(classes: tuple[str, ...] = ("a", "b"), **fields: Any) -> Path:
        asked = Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS | fields)
        base: Base = load_base(asked, 2, seed=0)
        write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=classes, exactly=True)
        return tmp_path / "m"

    return written


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend computes, no library is asked, and nothing is written."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(proof, "load_backend", work)
    monkeypatch.setattr(proof, "foreign", work)
    for place in ("write_model", "write_safetensors", "export_model", "write_adapter"):
        monkeypatch.setattr(targets, place, work)
    monkeypatch.setattr(loading, "load_backend", work)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One that merges into no plain model."""
    model = Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS)
    base = load_base(model, 2, seed=0)
    tensors = {name: base.tensors[name] for name in ("head.weight", "head.bias")}
    write_adapter(
        tmp_path / "run" / "adapter",
        Adapter(VPT(), tensors, ("a", "b"), model, base.architecture, base.preprocessing, base.sha256, base.source),
    )
    return tmp_path / "run" / "adapter"


@pytest.mark.usefixtures("idle")
class TestConvert:
    @pytest.mark.parametrize(
        ("to", "fields", "message"),
        [
            ("timm", {"norm_eps": 1e-5}, "timm's config.json cannot express"),
            ("transformers", {"fc_norm": True, "global_pool": "avg"}, "transformers has no class for this model"),
            ("torchvision", {"reg_tokens": 2}, "torchvision's VisionTransformer has no reg_tokens"),
            ("peft", {}, "the format holds an adapter"),
        ],
    )
    def test_a_format_that_cannot_hold_the_model(
        self, model: Callable[..., Path], tmp_path: Path, to: str, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            convert(str(model(**fields)), tmp_path / "new" / "out", to, backend="torch")
        assert not (tmp_path / "new").exists()

    def test_classes_that_another_runtime_could_not_tell_apart(
        self, model: Callable[..., Path], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="two classes have the same name: 'a'"):
            convert(str(model(classes=("a", "a"))), tmp_path / "out.onnx", "onnx", backend="torch")

    @pytest.mark.parametrize(("to", "package"), [("onnx", "onnxruntime"), ("coreml", "coremltools")])
    def test_packages_that_are_missing_before_the_source_is_looked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, package: str
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        suffix = targets.RUNTIMES[to].suffix
        with pytest.raises(UserError, match=rf"packages that are missing \({package}\): pip install"):
            convert("nowhere", tmp_path / f"out{suffix}", to)

    def test_a_place_that_is_taken_or_cannot_be_written_before_the_source_is_looked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="file is already there"):
            convert("nowhere", tmp_path / "file", "timm")
        with pytest.raises(UserError, match=r"out: cannot be written: .*file is a file"):
            convert("nowhere", tmp_path / "file" / "new" / "out", "timm")
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(UserError, match=r"out: cannot be written: the folder .* may not be written to"):
            convert("nowhere", tmp_path / "new" / "out", "timm")

    def test_a_disk_without_room(self, model: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
        source = model()
        size = (source / "model.safetensors").stat().st_size
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size // 2 - 10_000))
        for dtype in (None, "bfloat16"):
            with pytest.raises(UserError, match=r"out: cannot be written: it would have .* MB, and the disk of"):
                convert(str(source), tmp_path / "out", "timm", dtype=dtype, backend="torch")


@pytest.mark.usefixtures("idle")
def test_a_method_that_does_not_merge_before_its_base_is_read(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    for attempt in (
        lambda: merge_run(adapter, out, "torch"),
        lambda: quantize_model(adapter, out, Quantization(bits=4), "torch"),
        lambda: convert(str(adapter), out, "timm", backend="torch"),
        lambda: simulate_run(adapter.parent, [], backend="torch"),
    ):
        with pytest.raises(UserError, match="method vpt cannot be merged: its prompts are tokens"):
            attempt()
    assert not out.parent.exists()


def test_the_packages_of_an_exporter_are_those_that_it_imports() -> None:
    for kind, module in loading.EXPORTERS.items():
        text = (Path(__file__).parents[2] / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert all(f"import {name}" in text for name in loading.EXPORTS_NEED[kind])
