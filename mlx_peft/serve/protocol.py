"""The Open Inference Protocol, version 2: each adapter as a model of its own.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from mlx_peft.core.version import VERSION
from mlx_peft.serve import described
from mlx_peft.serve.answering import Answering, answer, finite_logits, written
from mlx_peft.serve.bodies import read
from mlx_peft.serve.described import (
    ANSWERING,
    LOOKING,
    Inferred,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    Sentence,
    ServerMetadata,
    said,
)
from mlx_peft.serve.guard import grant_of
from mlx_peft.serve.known import Known
from mlx_peft.serve.problems import replaced
from mlx_peft.serve.tensors import INPUT, OUTPUTS, PIXELS, Inference, inference
from mlx_peft.serve.tokens import Grant

FLOATS = "FP32"


def add(app: FastAPI, answering: Answering) -> None:
    """The routes of ``/v2``."""
    engine, settings = answering.engine, answering.settings
    body = described.tensors(settings)

    def asked(name: str, grant: Grant) -> Known:
        (row,) = answering.rows([name], grant, headed=True)
        assert row is not None
        return row

    @app.get("/v2/health/live", **said("Whether it runs", Live, (421,), error=Sentence))
    async def live() -> Response:
        return answer({"live": True})

    @app.get("/v2/health/ready", **ready_or_not("Whether it is warm, and takes requests in", Ready, (421,)))
    async def ready() -> Response:
        return answer({"ready": engine.ready}, 200 if engine.ready else 503)

    @app.get("/v2", **said("What it is", ServerMetadata, (421,), error=Sentence))
    async def server() -> Response:
        return answer({"name": "mlx-peft", "version": VERSION, "extensions": []})

    @app.get("/v2/models/{name}", **said("What goes in and comes out", ModelMetadata, (*LOOKING, 422), error=Sentence))
    async def model(request: Request, name: str) -> Response:
        return answer(metadata(asked(name, grant_of(request, settings)), engine.served.image_size))

    @app.get("/v2/models/{name}/ready", **ready_or_not("Whether it can be asked", ModelReady, (*LOOKING, 422)))
    async def model_ready(request: Request, name: str) -> Response:
        known = asked(name, grant_of(request, settings))
        return answer({"name": known.name, "ready": engine.ready}, 200 if engine.ready else 503)

    @app.post("/v2/models/{name}/infer", **said("Logits and probabilities", Inferred, ANSWERING, body, Sentence))
    async def infer(request: Request, name: str) -> Response:
        began = time.monotonic()
        known = asked(name, grant_of(request, settings))
        with answering.bodies.holding() as held:
            body = await read(request, held, settings.json, settings.body_seconds)
            deadline = time.monotonic() + settings.deadline
            ask: Inference = await answering.until(request, deadline, answering.aside(inference, body, settings))
            del body
            with engine.admit(len(ask.images)) as place:
                rows = [known] * len(ask.images)
                pixels, _ = await answering.decoded(request, ask.images, rows, deadline)
                held.free()
                future = engine.submit(pixels, rows, deadline=deadline, place=place)
        found = await answering.until(request, deadline, asyncio.wrap_future(future))
        if len({id(row) for row in found.of}) > 1:
            raise replaced(name)  # between two batches of these images: they are one tensor, and would be two models'
        known = found.of[0]

        def result() -> Response:
            return answer(inferred(ask, known, [finite_logits(known, logits) for logits in found.rows]))

        response = await written(result, len(rows) * len(known.classes) * len(ask.outputs))
        answering.metrics.answered("infer", {known.name: len(rows)}, time.monotonic() - began)
        return response


def ready_or_not(summary: str, answer: type[BaseModel], errors: Sequence[int]) -> dict[str, Any]:
    """The arguments of a route whose answer is the same with status 503."""
    found = said(summary, answer, errors, error=Sentence)
    found["responses"][503] = {"model": answer, "description": "Not ready."}
    return found


def metadata(known: Known, size: int) -> dict[str, Any]:
    """What the protocol says of a model."""
    rows = len(known.classes)
    return {
        "name": known.name,
        "versions": [],
        "platform": "mlx-peft",
        "inputs": [{"name": INPUT, "datatype": PIXELS, "shape": [-1, size, size, 3]}],
        "outputs": [{"name": name, "datatype": FLOATS, "shape": [-1, rows]} for name in OUTPUTS],
    }


def inferred(ask: Inference, known: Known, logits: list[np.ndarray]) -> dict[str, Any]:
    """The answer to a request."""
    values = {
        "logits": lambda: np.stack(logits),
        "probabilities": lambda: np.stack([known.task.probabilities(row) for row in logits]),
    }
    outputs = [
        {"name": name, "datatype": FLOATS, "shape": [len(logits), len(known.classes)], "data": flat(values[name]())}
        for name in ask.outputs
    ]
    return {"model_name": known.name, **({} if ask.id is None else {"id": ask.id}), "outputs": outputs}


def flat(array: np.ndarray) -> list[float]:
    found: list[float] = array.astype(np.float32).ravel().tolist()
    return found
