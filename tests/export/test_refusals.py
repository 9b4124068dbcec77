"""An export is whole and proved, or it is not there."""

from __future__ import annotations

import errno
import shutil
import sys

import numpy as np
import pytest

from mlx_peft.artifacts.export import RUNTIMES, export_model
from mlx_peft.core.errors import UserError
from mlx_peft.protocols import loading
from torch_ref.tools.export import coreml, onnx

EXPORTERS = {"onnx": onnx, "coreml": coreml}


@pytest.fixture
def export(merged, classes, tmp_path):
    base, tensors = merged("registers")

    def run(kind: str, name: str | None = None, **options):
        arguments = {"base": base, "tensors": tensors, "classes": classes} | options
        return export_model(kind, tmp_path / (name or f"model{RUNTIMES[kind].suffix}"), **arguments)

    run.base, run.tensors = base, tensors
    return run


def test_an_unknown_kind_is_answered_with_the_nearest(export, tmp_path):
    with pytest.raises(UserError, match=r"unknown kind 'onx'; did you mean 'onnx'\?"):
        export_model("onx", tmp_path / "x.onnx", base=export.base, tensors=export.tensors, classes=())


@pytest.mark.parametrize("kind", RUNTIMES)
class TestNothingIsLeftOf:
    def test_a_name_of_another_kind(self, export, nothing_left, kind):
        with pytest.raises(UserError, match=f"should have a name .*, such as 'model{RUNTIMES[kind].suffix}'"):
            export(kind, "model.pt")
        assert nothing_left()

    def test_classes_that_are_not_the_heads(self, export, nothing_left, kind):
        with pytest.raises(UserError, match="has 5 classes, and was given 2 names"):
            export(kind, classes=("a", "b"))
        with pytest.raises(UserError, match="the same name: 'a'"):
            export(kind, classes=("a", "b", "a", "c", "d"))
        assert nothing_left()

    def test_codes_of_which_nobody_says_what_they_stand_for(self, export, nothing_left, kind):
        codes = export.tensors | {"blocks.0.attn.qkv.weight": np.zeros((144, 6), np.uint32)}
        with pytest.raises(UserError, match="its base does not say in which: merge it into a plain model first"):
            export(kind, tensors=codes)
        assert nothing_left()

    def test_tensors_that_are_not_the_architectures(self, export, nothing_left, kind):
        tensors = dict(export.tensors)
        del tensors["norm.bias"]
        with pytest.raises(UserError, match=r"nothing was written: these tensors are missing: norm\.bias"):
            export(kind, tensors=tensors)
        with pytest.raises(UserError, match="nothing was written: extra is no parameter"):
            export(kind, tensors=export.tensors | {"extra": np.zeros(3, np.float32)})
        assert nothing_left()

    def test_an_exporter_that_fails_half_way(self, export, nothing_left, monkeypatch, kind):
        def fail(path, *_):
            path.parent.joinpath("half.data").write_bytes(b"x")
            raise RuntimeError("the converter does not know aten::new\nTraceback ...")

        monkeypatch.setattr(EXPORTERS[kind], "write", fail)
        with pytest.raises(UserError, match=r"nothing was written: the converter does not know aten::new$"):
            export(kind)
        assert nothing_left()

    def test_one_that_the_disk_has_no_room_for(self, export, nothing_left, monkeypatch, kind):
        def fill(path, *_):
            path.write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(EXPORTERS[kind], "write", fill)
        with pytest.raises(UserError, match=r"cannot be written: no space left on the device$"):
            export(kind)
        assert nothing_left()

    def test_an_interrupted_one(self, export, nothing_left, monkeypatch, kind):
        def interrupt(path, *_):
            path.write_bytes(b"x")
            raise KeyboardInterrupt

        monkeypatch.setattr(EXPORTERS[kind], "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(kind)
        assert nothing_left()

    def test_one_that_packages_are_missing_for(self, export, nothing_left, monkeypatch, kind):
        monkeypatch.setitem(sys.modules, loading.EXPORTERS[kind], None)
        with pytest.raises(UserError, match=r"packages that are missing .*: pip install 'mlx-peft\[export\]'"):
            export(kind)
        assert nothing_left()

    def test_a_file_that_is_there(self, export, tmp_path, kind):
        path = tmp_path / f"model{RUNTIMES[kind].suffix}"
        path.write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            export(kind)
        assert path.read_text() == "mine"


def test_a_failed_proof_of_the_logits_leaves_nothing(export, exported, nothing_left, monkeypatch):
    (file,) = exported("onnx", "registers").files
    monkeypatch.setattr(onnx, "write", lambda path, *_: shutil.copy(file, path))
    other = export.tensors | {"head.weight": export.tensors["head.weight"] * np.float32(1.001)}
    with pytest.raises(UserError, match=r"nothing was written: ONNX Runtime's logits differ by \d"):
        export("onnx", tensors=other)
    assert nothing_left()


def test_a_failed_proof_of_the_constants_leaves_nothing(export, exported, nothing_left, monkeypatch):
    (package,) = exported("coreml", "registers").files
    monkeypatch.setattr(coreml, "write", lambda path, *_: shutil.copytree(package, path))
    other = export.tensors | {"head.weight": export.tensors["head.weight"] * np.float32(1.01)}
    with pytest.raises(UserError, match=r"nothing was written: the package does not hold head\.weight"):
        export("coreml", tensors=other)
    with pytest.raises(UserError, match=r"nothing was written: the package has the classes \['cat', 'dog'"):
        export("coreml", classes=("a", "b", "c", "d", "e"))
    assert nothing_left()


def test_weights_beyond_float16_are_refused_for_core_ml(export, nothing_left):
    large = export.tensors | {"head.weight": export.tensors["head.weight"] + np.float32(1e5)}
    with pytest.raises(UserError, match=r"float16 ends at 65504"):
        export("coreml", tensors=large)
    assert nothing_left()
