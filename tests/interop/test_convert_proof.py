"""The proof of a conversion, what is left where it fails, and what a person is told."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign_models import on_disk
from interop.converting import CLASSES, command, converted

from convert.base import Base, whole
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.artifacts import targets
from mlx_peft.artifacts.export import Exported
from mlx_peft.artifacts.targets import TARGETS, Job
from mlx_peft.core.errors import UserError


def test_advice_on_fields_is_given_only_for_fields(source: Path, tmp_path: Path) -> None:
    base = whole(open_path(source, Asked()))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError) as refused:
        TARGETS["timm"].write(tmp_path, Job(base, base.tensors, CLASSES, "float32", None, None))
    assert "--set" not in str(refused.value)


def test_a_failed_proof_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_ref.tools import foreign

    def wrong(path: Path, base: Base) -> Any:
        model = timm.create_model(f"local-dir:{source}", pretrained=True)
        with torch.no_grad():
            model.head.bias += 0.1
        return model

    monkeypatch.setitem(foreign.OPENERS, "transformers", wrong)
    failed = command(source, tmp_path / "out", "--to", "transformers")
    assert failed.exit_code == 2
    assert "the proof failed, nothing was written" in failed.stderr and "the result in transformers" in failed.stderr
    assert list(tmp_path.iterdir()) == []
    assert command(source, tmp_path / "out", "--to", "transformers", "--no-verify").exit_code == 0


def test_what_its_library_cannot_open_is_not_proved(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_ref.tools import foreign

    def broken(path: Path, base: Base) -> Any:
        raise RuntimeError("size mismatch for head\nand more")

    monkeypatch.setitem(foreign.OPENERS, "timm folder", broken)
    failed = command(source, tmp_path / "out", "--to", "mlx")
    assert failed.exit_code == 2 and "cannot be opened there (size mismatch for head)" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_there_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = converted(source, tmp_path / "out", "--to", "transformers")
    assert any(row.startswith("the result in transformers: ") for row in report["proof"]["unproved"])
    assert "the source in timm folder against torch" in report["proof"]["rows"]


@pytest.mark.parametrize("to", ["onnx", "coreml"])
def test_other_runtimes_get_the_model_and_prove_it_themselves(
    to: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def export_model(kind: str, out: Path, **given: Any) -> Exported:
        asked.append(given)
        return Exported(kind, {out: 7}, 3e-6 if kind == "onnx" else None, "held against it", ("a note",))

    monkeypatch.setattr(targets, "export_model", export_model)
    out = tmp_path / ("m.onnx" if to == "onnx" else "m.mlpackage")
    report = converted(source, out, "--to", to)
    [given] = asked
    assert given["classes"] == CLASSES and given["verify"] is True
    assert given["tensors"].keys() == on_disk(source).keys()
    assert given["base"].name == "vit_tiny_patch16_224.augreg_in21k"
    assert report["files"] == {str(out): 7} and "a note" in report["notes"]
    expected = {f"{to}: held against it": 3e-6} if to == "onnx" else {}
    assert report["proof"]["exported"] == expected
    assert ("held against it" in report["proof"]["unproved"]) is (to == "coreml")


def test_what_is_said_to_a_person(source: Path, tmp_path: Path) -> None:
    done = command(source, tmp_path / "out", "--to", "mlx")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{source}: timm, as vit_tiny_patch16_224.augreg_in21k, 32 px"
    assert any("model.safetensors  " in line for line in lines)
    assert lines[-1].startswith("proved on noise images: largest relative difference ")
    again = command(source, tmp_path / "out", "--to", "mlx")
    assert again.exit_code == 2 and "is already there" in again.stderr
    unknown = command(source, tmp_path / "new", "--to", "transformer")
    assert unknown.exit_code == 2 and "did you mean 'transformers'" in unknown.stderr


def test_a_name_without_its_suffix_is_refused_before_the_source_is_opened(tmp_path: Path) -> None:
    assert "such as 'out.onnx'" in command("missing.pth", tmp_path / "out", "--to", "onnx").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "timm", "--bits", "4"], "only the format mlx holds quantised weights, not timm"),
        (["--to", "mlx", "--bits", "7"], "bits should be one of 8, 6, 5, 4, 3, 2, not 7"),
        (["--to", "onnx"], "such as 'out.onnx'"),
        (["--to", "coreml"], "such as 'out.mlpackage'"),
        (["--to", "onnx", "--dtype", "float16"], "the format onnx has float32, not float16"),
        (["--to", "mlx", "--weights", "here"], "an adapter's name or its weights were given, and .* is no adapter"),
        (["--to", "mlx", "--set", "dept=2"], "args.dept: no such field of a ViT; did you mean 'depth'"),
        (["--to", "mlx", "--model", "vit_base_patch16_224"], "but .* is of a 'vit_tiny_patch16_224'"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_tried(
    arguments: list[str], message: str, source: Path, tmp_path: Path
) -> None:
    refused = command(source, tmp_path / "out", *arguments)
    assert refused.exit_code == 2 and re.search(message, refused.stderr), refused.stderr
    assert list(tmp_path.iterdir()) == []
