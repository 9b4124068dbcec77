"""One step of LoRA in each backend that is installed, each in a process of its own, and whether they agree."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.base import load_base
from mlx_peft.checks.doctor.finding import Finding, fault, fine, warning
from mlx_peft.checks.matrix import CLASSES, CUT, SMALL, Combination
from mlx_peft.checks.parity import GRADIENTS, batch, perturbed, relative
from mlx_peft.core.border import Tensors
from mlx_peft.protocols.loading import BACKENDS, INSTALL, load_backend

PATIENCE = 120.0
"""Seconds after which a step that takes a few is not waited for."""
DRIVER = Path("/proc/driver/nvidia/version")
"""Is there where NVIDIA's driver is."""
ON_CPU = "(cpu"
"""What a backend's version says where it computes on the processor."""


@dataclass(frozen=True)
class Taken:
    """A step that was taken: what framework took it, and its losses and gradients by name."""

    version: str
    seconds: float
    figures: Tensors


def available() -> list[str]:
    """The backends whose frameworks are installed."""
    return [name for name in BACKENDS if importlib.util.find_spec(name) is not None]


def steps() -> Iterator[Finding]:
    """What came of a step in each, and whether that is the same."""
    names = available()
    if not names:
        ways = " or ".join(INSTALL.values())
        yield fault("step", "neither MLX nor PyTorch is installed: nothing can be computed", ways)
        return
    with ThreadPoolExecutor(len(names)) as pool:
        answers = dict(zip(names, pool.map(taken, names), strict=True))
    for name, answer in answers.items():
        if isinstance(answer, str):
            yield fault(f"step in {name}", answer, f"install it anew: {INSTALL[name]}")
        else:
            yield from device(name, answer.version)
            yield fine(f"step in {name}", f"{answer.version}, in {answer.seconds:.1f} s")
    yield from agreement({name: answer for name, answer in answers.items() if isinstance(answer, Taken)})


def agreement(answers: Mapping[str, Taken]) -> Iterator[Finding]:
    """Whether backends have the same losses and gradients."""
    if len(answers) < 2:
        return
    one, other = (answer.figures for answer in answers.values())
    errors = {name: relative(one[name], other[name]) for name in one}
    worst = max(errors, key=lambda name: errors[name])
    said = f"{' and '.join(answers)} differ by {errors[worst]:.1e} at most ({worst})"
    if errors[worst] > GRADIENTS or one.keys() != other.keys():
        yield fault(
            "agreement",
            f"{said}: no more than {GRADIENTS:.0e} is rounding",
            "report it, with what the parity checks say",
        )
    else:
        yield fine("agreement", said)


def device(name: str, version: str) -> Iterator[Finding]:
    """Whether an accelerator is there that a backend does not compute on."""
    metal = sys.platform == "darwin" and name == "mlx"
    if ON_CPU not in version or not (metal or DRIVER.exists()):
        return
    what = "Metal is not available" if metal else "NVIDIA's driver is here"
    remedy = (
        "MLX needs macOS 14 or later on Apple silicon, and a session that may use the GPU"
        if metal
        else "pip install torch from https://download.pytorch.org/whl with CUDA, and see nvidia-smi"
    )
    yield warning(f"step in {name}", f"{version} computes on the CPU, and {what}", remedy)


def taken(name: str) -> Taken | str:
    """A step in a process of its own, or why there is none."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.npz"
        command = [sys.executable, "-m", "mlx_peft.checks.doctor.step", name, str(out)]
        environment = os.environ | {"MLX_DISABLE_COMPILE": "1", "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            return f"a step took more than {PATIENCE:.0f} s"
        if done.returncode:
            return f"a step cannot be taken: {reason(done.returncode, done.stderr)}"
        with np.load(out) as stored:
            figures = {key: stored[key] for key in stored.files}
    return Taken(json.loads(done.stdout.splitlines()[-1]), time.monotonic() - started, figures)


def reason(status: int, said: str) -> str:
    """Why a process has ended: the last line that it said, or by which signal."""
    if status < 0:
        names = {one.value: one.name for one in signal.Signals}
        return f"its process was ended by {names.get(-status, f'signal {-status}')}"
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"its process ended with status {status}"


def work(name: str, out: Path) -> str:
    """Takes the step, stores its figures, and returns the framework's version."""
    backend = load_backend(name)
    config = Combination(SMALL, "lora", None, CUT).experiment(0)
    base = load_base(config.model, CLASSES, 0)
    trainer = backend.build_trainer(config, CLASSES, base)
    trainer.model.load_adapter(perturbed(trainer.model.adapter(), 0))
    images, targets = batch(base.architecture.img_size, 0)
    before, gradients = trainer.loss_and_gradients(images, targets)
    during = float(trainer.train_step(images, targets, 1e-3))
    after, _ = trainer.loss_and_gradients(images, targets)
    losses = {"losses": np.array([before, during, after])}
    np.savez(out, allow_pickle=False, **gradients | losses)
    return backend.version()


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], Path(sys.argv[2]))))
