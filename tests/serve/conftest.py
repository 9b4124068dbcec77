"""A server in this process, over a folder of small adapters, in either backend; and what the offline bank says."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
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
from mlx_peft.serve.running import Server, configured, listening
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


LIMITS = Settings(
    max_batch=4, header_seconds=0.5, body_seconds=0.5, hosts=("127.0.0.1",), images=8, admin_token="admin-" + "a" * 20
)
"""Of the server that is asked over real connections."""


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
        yield partial(begin, stack, folder)


@pytest.fixture(scope="session")
def plain(folder: Path) -> Iterator[Running]:
    """A server that every test finds as the last one left it: it has no memory of what it was asked."""
    with ExitStack() as stack:
        yield begin(stack, folder, images=4)


def begin(
    stack: ExitStack, folder: Path, side: str = "torch", place: Path | None = None, wrap: Any = None, **limits: Any
) -> Running:
    """A server that ends with the stack.

    Args:
        place: of its adapters, where not in ``folder``.
        wrap: makes of what is served what takes its place.
        limits: in its settings.
    """
    place = place or folder
    bank = SIDES[side].load_adapters(network(side), place)
    served: Any = ServedBank(SIDES[side].load_adapters(network(side), place), network(side).base, place)
    settings = replace(Settings(max_batch=4), **limits)
    engine = Engine(served if wrap is None else wrap(served), settings)
    http = stack.enter_context(TestClient(create_app(engine, settings), raise_server_exceptions=False))
    engine.start().result()
    return Running(http, engine, bank)


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


@pytest.fixture(scope="session")
def port(folder: Path) -> Iterator[int]:
    """Where a server listens, in a thread of this process."""
    with listens(folder, LIMITS) as (number, _):
        yield number


@contextmanager
def listens(folder: Path, limits: Settings) -> Iterator[tuple[int, Server]]:
    """The port of a server in a thread of this process."""
    served = ServedBank(SIDES["torch"].load_adapters(network("torch"), folder), network("torch").base, folder)
    engine, warm = Engine(served, limits), threading.Event()
    with listening("127.0.0.1", 0) as there:
        number = there.getsockname()[1]
        server = Server(configured(engine, limits), engine, warm.set)
        thread = threading.Thread(target=server.run, args=([there],))
        thread.start()
        assert warm.wait(20)
        yield number, server
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
