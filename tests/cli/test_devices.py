"""A device, a precision and a compiled step, as the command line asks for them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import torch_ref.device
from mlx_peft.config import files, recipes
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.run import binding, run_id


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch_ref.device, "_named", None)


def quickstart(*overrides: str) -> Experiment:
    return files.load(recipes.find("quickstart"), ["backend=torch", *overrides])


def test_neither_device_nor_program_is_a_part_of_a_run_and_files_of_before_stay_as_they_were() -> None:
    plain, elsewhere = quickstart(), quickstart("device=cuda:1", "train.compile=false")
    assert "device" not in files.dump(plain)
    assert "compile" not in files.dump(plain)
    assert "device: cuda:1" in files.dump(elsewhere)
    assert binding(plain) == binding(elsewhere)
    assert run_id(plain, {}) == run_id(elsewhere, {}) != run_id(quickstart("train.precision=tf32"), {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "quickstart", "--device", "cuda:1"], "device: cuda:1 is not here: this PyTorch"),
        (["train", "quickstart", "device=mps"], "device: mps is not here: this PyTorch"),
        (["train", "quickstart", "--backend", "mlx", "device=cuda"], "device: cuda is for PyTorch"),
        (["train", "quickstart", "device=tpu"], "device: should be auto, cpu, mps, cuda or cuda:N, not 'tpu'"),
        (["eval", "runs/none", "--device", "gpu"], "--device should be auto, cpu, mps, cuda or cuda:N, not 'gpu'"),
        (["train", "quickstart", "train.compile=maybe"], "train.compile"),
        (["bench", "--precision", "float8"], "float8: a precision is one of float32, tf32, bfloat16, float16"),
        (["bench", "--only", "pefft"], "pefft: no contender; did you mean 'peft'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_here_or_not_known_is_refused_by_its_name(command: Any, words: list[str], said: str) -> None:
    done = command(*words, obj="torch")
    assert done.exit_code == 2
    assert said in done.stderr


def test_of_gpus_the_one_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name in ("cuda:1", "cuda", "auto"):
        torch_ref.device.use(name)
        assert torch_ref.device.device() == taken[-1]
    monkeypatch.setenv("LOCAL_RANK", "1")
    torch_ref.device.use("auto")
    assert [device.index for device in taken] == [1, 0, 0, 1]
    with pytest.raises(UserError, match="cuda:2 is not here: 2 CUDA devices, counted from cuda:0"):
        torch_ref.device.use("cuda:2")
    torch_ref.device.use("cpu")
    assert torch_ref.device.device() == torch.device("cpu")


@pytest.mark.slow
def test_peft_is_timed_in_the_same_precision_and_compiled_alike(command: Any) -> None:
    words = "bench --model vit_tiny_patch16_224 --batch-size 8 --rounds 1 --only torch --only peft --busy --json"
    done = command(*words.split(), "--precision", "tf32", "--precision", "bfloat16")
    found = json.loads(done.stdout)["benchmarks"]
    assert [table["settings"]["precision"] for table in found] == ["tf32", "bfloat16"]
    for name in (0, 1):  # what is kept is as wide as what is computed; 16-bit copies of weights are few beside it
        wide, narrow = (table["contenders"][name]["saved_bytes"] for table in found)
        assert narrow < 0.9 * wide
