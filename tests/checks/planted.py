"""Faults for ``doctor`` to find: how each is planted, what is found, and the remedy."""

from __future__ import annotations

import ctypes
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants

from mlx_peft.checks.doctor import machine, packages, step
from mlx_peft.checks.doctor.step import Taken
from mlx_peft.core import memory

Planted = Callable[[pytest.MonkeyPatch, Path], None]


def figures(change: float = 0.0) -> dict[str, np.ndarray]:
    return {"losses": np.array([2.0, 2.0, 1.9 + change]), "head.weight": np.ones((2, 3), np.float32)}


def package(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, version: str, *needs: str, extras: Sequence[str] = ()
) -> None:
    """Installs a package, by what it says of itself alone."""
    place = folder / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    (place / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder / "site"))


def old_mlx(patch: pytest.MonkeyPatch, folder: Path) -> None:
    package(patch, folder, "mlx", "0.20.1")


def torchvision_of_another_torch(patch: pytest.MonkeyPatch, folder: Path) -> None:
    package(patch, folder, "torchvision", "0.19.1", "torch==2.4.1")
    package(patch, folder, "torch", "2.6.0")


def two_builds(patch: pytest.MonkeyPatch, folder: Path) -> None:
    package(patch, folder, "torchvision", "0.19.1+cpu", "torch==2.4.1")
    package(patch, folder, "torch", "2.4.1+cu124")


EXTRAS = [
    *("torch>=2.4; extra == 'torch'", "timm>=1.0.20; extra == 'torch'"),
    *("torch>=2.6; extra == 'export'", "onnx>=1.17; extra == 'export'", "pyarrow>=15; extra == 'datasets'"),
]


def of_extras(patch: pytest.MonkeyPatch, folder: Path, **versions: str) -> None:
    """This package with three extras, and of what they ask for these packages alone."""
    package(patch, folder, packages.OWN, "1.0", *EXTRAS, extras=("torch", "export", "datasets"))
    for name, version in versions.items():
        package(patch, folder, name, version)
    real, there = packages.installed, {packages.OWN, *versions}
    patch.setattr(packages, "installed", lambda name: real(name) if name in there else None)


def old_for_an_extra(patch: pytest.MonkeyPatch, folder: Path) -> None:
    of_extras(patch, folder, torch="2.5.1", timm="1.0.20", onnx="1.17")


def old_for_every_extra(patch: pytest.MonkeyPatch, folder: Path) -> None:
    of_extras(patch, folder, torch="2.3.0")


def something_missing(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(packages, "installed", lambda name, real=packages.installed: None if name == "pillow" else real(name))


def no_openblas(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def none(name: str, mode: int = 0) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    patch.undo()
    patch.setattr(sys, "platform", "linux")
    patch.setattr(ctypes, "CDLL", none)


def no_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(sys, "platform", "linux")
    patch.setattr(shutil, "which", lambda name: None)


def one_thread(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("OMP_NUM_THREADS", "1")


def too_many_threads(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("OMP_NUM_THREADS", "64")


def little_memory(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(memory, "physical", lambda: 2**31)


def few_addresses(patch: pytest.MonkeyPatch, folder: Path) -> None:
    limits = {resource.RLIMIT_AS: 2**30}
    patch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2)


def few_files(patch: pytest.MonkeyPatch, folder: Path) -> None:
    limits = {resource.RLIMIT_NOFILE: 64}
    patch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2)


def no_cache(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A file lies where the folder would be made, which holds for root too."""
    (folder / "hub").write_text("")


def no_disk(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, free=2**20))


def old_python(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(machine.platform, "python_version", lambda: "3.8.19")


def translated_python(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(machine, "translated", lambda: True)


def silent_hub(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


def offline(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def different(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(step, "taken", lambda name: Taken(name, 1.0, figures(0.01 * (name == "mlx"))))


def broken(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(
        step, "taken", lambda name: "its process was ended by SIGILL" if name == "mlx" else Taken(name, 1, {})
    )


def none_installed(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(step, "available", list)


def on_the_cpu(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(step, "DRIVER", folder)
    patch.setattr(step, "taken", lambda name: Taken(f"{name} 9.9 (cpu)", 1.0, figures()))


FAULTS: dict[str, tuple[Planted, str, str, str, str]] = {
    "an old MLX": (old_mlx, "packages", "fault", r"mlx 0\.20\.1 is here, and >=0\.31", "pip install -U 'mlx>=0.31"),
    "a torch too old for an extra": (
        old_for_an_extra, "packages", "fault", r"torch 2\.5\.1 is here, and mlx-peft\[export\] needs >=2\.6",
        r"pip install -U 'torch>=2\.6'",
    ),
    "a torch too old for every extra": (
        old_for_every_extra, "packages", "fault", r"torch 2\.3\.0 is here, and mlx-peft\[torch\] needs >=2\.4",
        r"pip install -U 'torch>=2\.4'",
    ),
    "a package that is missing": (something_missing, "packages", "fault", "pillow is missing", "install -U 'pillow"),
    "torchvision for another torch": (
        torchvision_of_another_torch, "torch", "fault", r"torchvision 0\.19\.1 is built for torch==2\.4\.1, and",
        "pip install -U torch torchvision",
    ),
    "torch and torchvision of two builds": (two_builds, "torch", "fault", "of two builds", "whl/cu124"),
    "no OpenBLAS": (no_openblas, "BLAS", "warning", "no OpenBLAS", "apt install libopenblas0-pthread"),
    "no compiler": (no_compiler, "compiler", "fault", r"no g\+\+", r"apt install g\+\+"),
    "one thread": (one_thread, "threads", "warning", "8 cores free, and OMP_NUM_THREADS=1", "unset OMP_NUM_THREADS"),
    "too many threads": (too_many_threads, "threads", "warning", "OMP_NUM_THREADS=64 has more", "unset OMP_NUM"),
    "little memory": (little_memory, "memory", "warning", r"2\.0 GiB of memory", "train.accumulate"),
    "few addresses": (few_addresses, "memory", "fault", r"may have 1\.0 GiB: MLX needs", "ulimit -v unlimited"),
    "few files": (few_files, "open files", "warning", "may have 64", "ulimit -n 4096"),
    "a cache that cannot be written to": (no_cache, "weights", "fault", "cannot be written to", "set HF_HOME"),
    "no disk": (no_disk, "disk", "fault", "1 MiB free", "free some"),
    "a Python that is not supported": (old_python, "python", "fault", r"3\.8\.19 .*; supported: ", "uv venv"),
    "a Python that is translated": (translated_python, "python", "fault", "translated", "Python for arm64"),
    "a hub that is silent": (silent_hub, "hub", "warning", "cannot be reached", "HTTPS_PROXY"),
    "a hub that is not to be asked": (offline, "hub", "warning", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
    "backends that differ": (different, "agreement", "fault", r"differ by .*e-03 at most \(losses\)", "report it"),
    "a backend that does not work": (broken, "step in mlx", "fault", "SIGILL", "anew: pip install mlx-peft"),
    "no backend": (none_installed, "step", "fault", "neither MLX nor PyTorch", r"pip install 'mlx-peft\[torch\]'"),
    "a GPU that is not used": (on_the_cpu, "step in torch", "warning", "NVIDIA's driver is here", "nvidia-smi"),
}  # fmt: skip
"""What is planted, and what is found: in a word, how bad it is, what is said, and the remedy."""
