"""Processes that were forked after a model was used, and processes with little address space: no one waits for ever."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from halves import daily
from hanging import HUNG

from mlx_peft.backend.blas import LEAST, check_address_space
from mlx_peft.core.errors import UserError

FORKED = """
import json, multiprocessing, os, sys, traceback
import numpy as np
from convert.base import load_base
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_backend

name, combinations = sys.argv[1], json.loads(sys.argv[2])
model = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32}
model["args"] = {"patch_size": 4, "embed_dim": 192, "depth": 1, "num_heads": 3}
experiment = Experiment.model_validate(
    {"model": model, "method": {"name": "lora"}, "data": {"name": "digits"}, "backend": name}
)
backend = load_backend(name)
if name == "torch":  # once here, and not in each process: the first optimiser imports it, which takes as long as torch
    import torch._dynamo
images, targets = np.zeros((32, 32, 32, 3), np.uint8), np.zeros(32, np.int32)

def make():
    return backend.build_trainer(experiment, 10, load_base(experiment.model, 10, 0))

USES = {
    "nothing": lambda: None,
    "predict": lambda: trainer.model.logits(images),
    "train": lambda: float(trainer.train_step(images, targets, 1e-3)),
    "make": lambda: make().model.logits(images),
}

def child(after, told):
    try:
        USES[after]()
        os._exit(0)
    except UserError as error:
        os.write(told, str(error).encode())
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

used, trainer = "nothing", None
for before, after, how in combinations:
    if before != used:
        trainer, used = trainer or make(), before
        USES[before]()
    heard, told = os.pipe()
    if how == "fork":
        if not (process := os.fork()):
            child(after, told)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    else:
        process = multiprocessing.get_context("fork").Process(target=child, args=(after, told))
        process.start()
        process.join()
        status = process.exitcode
    os.close(told)
    print(json.dumps([status, os.read(heard, 10_000).decode()]), flush=True)
"""
COMBINATIONS = [
    ("nothing", "make", "fork"),
    *[("predict", after, "fork") for after in ("nothing", "predict", "train", "make")],
    *[("train", "predict", "multiprocessing"), ("train", "train", "fork")],
]
"""What a process did before it was forked, what the new one does, and how: in this order, in one process."""


@pytest.mark.parametrize("backend", daily(["mlx", "torch"], "mlx"))
def test_a_forked_process_computes_or_is_told_why_not(backend: str) -> None:
    """One test, since loading a backend takes longer than all that it computes."""
    threads = os.environ | {"OMP_NUM_THREADS": "2"}  # with one thread torch has none that a fork could lack
    done = subprocess.run(
        [sys.executable, "-c", FORKED, backend, json.dumps(COMBINATIONS)],
        capture_output=True, text=True, timeout=HUNG, env=threads | {"OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    for (before, after, how), (status, said) in zip(COMBINATIONS, ended, strict=True):
        refused = backend == "mlx" and before != "nothing" and after != "nothing"
        assert status == (2 if refused else 0), (before, after, how, said)
        assert ("forked from one that has computed with MLX" in said) == refused, (before, after, how)


def test_little_address_space_is_said_before_mlx_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom mlx_peft.core.errors import UserError\ntry:\n    import mlx_peft.backend.models\n"
        "except UserError as error:\n    print(error, 'mlx.core' in sys.modules)\n"
    )
    limit = 1_000_000 * 1024  # ulimit -v 1000000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HUNG, preexec_fn=limited
    )
    assert done.stdout.startswith("this process may have 0.95 GiB of address space (ulimit -v), and MLX needs 1.25")
    assert done.stdout.endswith(" False\n")


def test_enough_address_space_is_not_spoken_of() -> None:
    check_address_space(resource.RLIM_INFINITY)
    check_address_space(LEAST)
    with pytest.raises(UserError, match="raise the limit"):
        check_address_space(LEAST - 1)
