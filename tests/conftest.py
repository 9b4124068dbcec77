"""What all tests share: they keep nothing in a user's caches, and MLX compiles where a test asks for it."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
import torch  # noqa: F401 - before what follows: see mlx_peft.backend.blas
import typer.testing
from halves import mark_the_rest_slow
from hypothesis import settings
from kernels import compiler
from sketching import drawn_finely, sketched
from typer.main import get_command

import mlx_peft.backend.blas  # noqa: F401 - before MLX, whichever test is collected first: the others are slow without
from convert import base
from mlx_peft.core import control_groups, memory
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture

T = TypeVar("T")

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ["MLX_DISABLE_COMPILE"] = "1"
"""On Linux, MLX builds a kernel with g++ for every function that it compiles and has not met: a second each, half of
the time that the tests would take. What is computed does not depend on it, as ``parity/test_compiled.py`` shows."""

MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    """Where Linux has a folder in memory, ``tmp_path`` lies there: what is written safely is waited for on a disk."""

SELDOM = 20_000
"""New objects until Python looks for cycles among them, in the place of 700."""

SMALL = 2 << 20
"""Bytes of a model that is kept for the next test."""

LONGEST = 80
"""Letters of a parameter in a test's name."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A test has a name that a person can write: a long text in it is known by its length."""
    return f"{argname} of {len(val)}" if isinstance(val, str | bytes) and len(val) > LONGEST else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of some grids a part is slow. And a test has the same name in every process that collects it: no address, and no
    array written out."""
    mark_the_rest_slow(items)
    for item in items:
        if " at 0x" in item.nodeid or len(item.nodeid) > 8 * LONGEST:
            raise pytest.UsageError(f"give the parameters of this test short ids: {item.nodeid[: 4 * LONGEST]}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports leave nothing behind, and looking for it again and again is a fifth of their time. What was imported and
    collected stays to the end: the garbage collector need not look through it either, and a forked process copies none
    of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(SELDOM)
        gc.enable()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLX compiles, here and in processes that are started from here, as it does for whoever uses it."""
    import mlx.core as mx

    monkeypatch.delenv("MLX_DISABLE_COMPILE")
    if (folder := compiler()) is not None:
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_made_once() -> Iterator[None]:
    """Typer's runner makes every command of the program anew for each that it runs: as long as many a test takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(get_command), raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_models_drawn_once() -> Iterator[None]:
    """Most tests begin with one of a few random models. What is drawn depends on nothing but what is asked for."""
    draw, size = base.initial_state, cache(base.weights)
    kept = lru_cache(64)(draw)

    def drawn(architecture: Architecture, num_classes: int, seed: int) -> Tensors:
        if size(architecture, num_classes) > SMALL:
            return draw(architecture, num_classes, seed)
        return {name: tensor.copy() for name, tensor in kept(architecture, num_classes, seed).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "initial_state", drawn)
        yield


@pytest.fixture(scope="session", autouse=True)
def memory_looked_up_once() -> Iterator[None]:
    """How much the machine has is asked for every model that is drawn, of a dozen files of the kernel's."""
    real = control_groups.PROC

    def kept(look: Callable[[], T]) -> Callable[[], T]:
        found = look()
        return lambda: found if control_groups.PROC is real else look()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_swap", "_groups"):
            patch.setattr(memory, name, kept(getattr(memory, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def peft_asks_no_hub() -> Iterator[None]:
    """It looks there for the configuration of each model whose adapter it saves, and goes on where it finds none."""
    with pytest.MonkeyPatch.context() as patch:
        if "peft" in sys.modules:  # by any test that was collected
            patch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def pictures_are_sketches() -> Iterator[None]:
    """Where pictures are not what a test is about."""
    with sketched():
        yield


@pytest.fixture
def fine_pictures() -> Iterator[None]:
    """Pictures as users get them, PDF included."""
    with drawn_finely():
        yield


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Four images and their labels, of five classes, for a small model of either backend."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, 2, 4], np.int32)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set in the place of any, for the real backends."""
    from fake_backend import make_dataset

    from mlx_peft.artifacts import images
    from mlx_peft.training import prepare

    for module in (prepare, images):
        monkeypatch.setattr(module, "open_dataset", lambda config, watch=None: make_dataset())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A trainer and data of a few hundred bytes in the place of any, and a folder for a run."""
    from fake_backend import install, make_dataset, make_experiment, make_feed, make_trainer

    install(monkeypatch, make_dataset())
    yield SimpleNamespace(
        out=tmp_path / "run",
        dataset=make_dataset,
        experiment=make_experiment,
        feed=make_feed,
        trainer=make_trainer,
        install=lambda dataset: install(monkeypatch, dataset),
    )
