"""Which models there are, and loading and letting go of them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from mlx_peft.serve.answering import Answering, answer
from mlx_peft.serve.described import ADMINISTERING, LetGo, Model, Models, said
from mlx_peft.serve.guard import grant_of, must_administer
from mlx_peft.serve.known import Known
from mlx_peft.serve.problems import unknown

OVER = object()
"""What there is behind the last step of a load."""


def add(app: FastAPI, answering: Answering) -> None:
    """The routes of ``/v1/models``."""
    engine, settings, metrics = answering.engine, answering.settings, answering.metrics
    served, changing = engine.served, asyncio.Lock()  # in the order in which they are asked for

    def told(known: Known) -> dict[str, Any]:
        return {
            "name": known.name,
            "base": known.base,
            "method": known.method,
            "classes": list(known.classes),
            "metrics": dict(known.metrics),
            "loaded": served.loaded(known.name),
            "bytes": known.bytes,
        }

    @app.get("/v1/models", **said("Which models there are", Models, (401, 421)))
    async def models(request: Request) -> Response:
        grant = grant_of(request, settings)
        found = [known for name in served.names if grant.allows(name) and (known := served.get(name)) is not None]
        return answer({"models": [told(known) for known in found]})

    @app.put("/v1/models/{name}", **said("Reads an adapter, again where it is there", Model, ADMINISTERING))
    async def load(request: Request, name: str) -> Response:
        must_administer(request, settings)
        async with changing:
            steps = served.load(await asyncio.to_thread(served.read, name))
            while await asyncio.wrap_future(engine.order(next, steps, OVER)) is not OVER:
                pass
            known = served.get(name)
        assert known is not None  # nothing lets it go but what waits for this
        metrics.loaded(name, "load")
        return answer(told(known))

    @app.delete("/v1/models/{name}", **said("Lets an adapter go", LetGo, ADMINISTERING))
    async def unload(request: Request, name: str) -> Response:
        must_administer(request, settings)
        async with changing:
            if served.get(name) is None:
                raise unknown(name)
            await asyncio.wrap_future(engine.order(served.unload, name))
        metrics.loaded(name, "unload")
        return answer({"name": name, "loaded": False})
