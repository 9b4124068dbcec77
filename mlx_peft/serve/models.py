"""Which models there are, and loading and letting go of them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from mlx_peft.core.errors import UserError
from mlx_peft.serve.answering import Answering, answer
from mlx_peft.serve.described import ADMINISTERING, LetGo, Model, Models, said
from mlx_peft.serve.guard import grant_of, must_administer
from mlx_peft.serve.known import Known
from mlx_peft.serve.problems import Problem, unknown


def add(app: FastAPI, answering: Answering) -> None:
    """The routes of ``/v1/models``."""
    engine, settings, metrics = answering.engine, answering.settings, answering.metrics
    served = engine.served

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
        try:
            known = await asyncio.wrap_future(engine.order(served.load, name))
        except UserError as error:
            raise Problem(422, str(error)) from None
        metrics.loaded(name, "load")
        return answer(told(known))

    @app.delete("/v1/models/{name}", **said("Lets an adapter go", LetGo, ADMINISTERING))
    async def unload(request: Request, name: str) -> Response:
        must_administer(request, settings)
        if served.get(name) is None:
            raise unknown(name)
        try:
            await asyncio.wrap_future(engine.order(served.unload, name))
        except UserError as error:
            raise Problem(422, str(error)) from None
        metrics.loaded(name, "unload")
        return answer({"name": name, "loaded": False})
