"""A server over a folder of adapters in this process, at an address that a browser and another program can ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from mlx_peft.serve.app import create_app
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.opening import opened
from mlx_peft.serve.settings import Settings

WARM = 120
"""Seconds in which a small model is ready, on any machine."""


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[str]:
    """Its address, once it is ready."""
    served, _ = opened(str(folder), "torch")
    engine = Engine(served, Settings(max_batch=4, **settings))
    server = uvicorn.Server(
        uvicorn.Config(create_app(engine, engine.settings), port=0, log_config=None, lifespan="on", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    engine.start().result(WARM)
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(WARM)
    assert not thread.is_alive()
