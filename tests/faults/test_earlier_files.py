"""A run and an adapter of the first version, which wrote no digests: they are read, and it is said."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.inspect import inspect
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.files import load
from mlx_peft.core.errors import UserError
from mlx_peft.training.progress import Silent
from mlx_peft.training.train import train

EARLIER = Path(__file__).with_name("earlier")
ROUNDING = 1e-4
"""Of parameters near 0.1 after eleven steps of 1e-3: what another processor or library may change, far below a step."""


class Watcher(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(EARLIER / "run", tmp_path / "run")


def test_a_run_that_was_stopped_goes_on_to_the_end_it_would_have_had(run):
    watcher = Watcher()
    train(load(run / "config.yaml"), run, resume=True, progress=watcher)
    assert "going on after step 10" in watcher.notes
    assert any("last.safetensors has no digest" in note for note in watcher.notes)
    found, expected = (read_adapter(folder).tensors for folder in (run / "adapter", EARLIER / "adapter"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=ROUNDING, err_msg=name)


def test_an_adapter_is_opened_and_told_to_have_no_digest():
    loaded = load_run(EARLIER / "adapter", "torch")
    assert any("adapter_model.safetensors has no digest" in note for note in loaded.notes)
    assert inspect(EARLIER / "adapter")["digest"] == "none"


def test_a_checkpoint_with_another_field_is_refused_in_words(run):
    path = run / "checkpoint" / "last.safetensors"
    path.write_bytes(path.read_bytes().replace(b"peak_bytes", b"peak_bytez"))
    with pytest.raises(UserError, match=r"last\.safetensors is not a checkpoint of this version: position\.peak_bytez"):
        train(load(run / "config.yaml"), run, resume=True)


def test_a_checkpoint_without_a_tensor_is_refused_in_words(run):
    path = run / "checkpoint" / "last.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"parameters.head.bias"', b'"parameters.head.bios"'))
    with pytest.raises(UserError, match=r"last\.safetensors does not fit the run: .*parameters\.head\.bias"):
        train(load(run / "config.yaml"), run, resume=True)
