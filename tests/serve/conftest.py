"""A server in this process, over a folder of small adapters, in either backend; and what the offline bank says."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banks import SIDES, SIZE, base_of, folder_of, network
from PIL import Image
from starlette.testclient import TestClient

from mlx_peft.config.methods import VPT, Linear, LoRA
from mlx_peft.library.bank import Bank
from mlx_peft.serve.app import create_app
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.served import ServedBank
from mlx_peft.serve.settings import Settings

METHODS = [LoRA(rank=4), LoRA(rank=2, targets=("q", "v")), VPT(tokens=2), Linear(), LoRA(rank=4)]


def encoded(number: int, form: str = "PNG", size: tuple[int, int] = (40, 36)) -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters; no test changes them."""
    place = tmp_path_factory.mktemp("served")
    folder_of(METHODS, place, base_of())
    return place


@dataclass(frozen=True)
class Running:
    """A server that was started.

    Attributes:
        http: asks it.
        bank: another bank of the same folder, which no server has.
    """

    http: TestClient
    engine: Engine
    bank: Bank

    @property
    def names(self) -> tuple[str, ...]:
        return self.bank.names

    def classify(self, files: list[bytes], **fields: Any) -> Any:
        images = [("images", (f"{at}.png", file)) for at, file in enumerate(files)]
        return self.http.post("/v1/classify", files=images, data=fields)


Start = Callable[..., Running]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """``start("torch", queue=3)`` starts a server."""
    with ExitStack() as stack:

        def begin(side: str = "torch", place: Path = folder, wrap: Any = None, **limits: Any) -> Running:
            bank = SIDES[side].load_adapters(network(side), place)
            served: Any = ServedBank(SIDES[side].load_adapters(network(side), place), network(side).base, place)
            settings = replace(Settings(max_batch=4), **limits)
            engine = Engine(served if wrap is None else wrap(served), settings)
            http = stack.enter_context(TestClient(create_app(engine, settings), raise_server_exceptions=False))
            engine.start().result()
            return Running(http, engine, bank)

        yield begin


@pytest.fixture
def pictures() -> list[bytes]:
    return [encoded(number) for number in range(5)]


def written(files: list[bytes], folder: Path) -> list[str]:
    """The files on a disk, for the offline bank."""
    folder.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        (folder / f"{number}.png").write_bytes(file)
    return [str(folder / f"{number}.png") for number in range(len(files))]


assert SIZE == 32
