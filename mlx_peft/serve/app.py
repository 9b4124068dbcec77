"""The application: what can be asked over HTTP, and what becomes of a request that cannot be answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_peft.core.errors import UserError
from mlx_peft.core.version import VERSION
from mlx_peft.serve import described, explaining, models, protocol
from mlx_peft.serve.answering import Answering, answer
from mlx_peft.serve.described import ANSWERING, Classified, Embedded, said
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.guard import grant_of, must_be_called, must_be_of_here
from mlx_peft.serve.metrics import Metrics
from mlx_peft.serve.problems import Problem
from mlx_peft.serve.settings import Settings

LOG = logging.getLogger(__package__)
STATIC = Path(__file__).parent / "static"
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
"""Of every response: answers about images are kept nowhere on their way."""
FAILED = "the server failed; its log says why"
PAGE = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""What the page may load: nothing from elsewhere."""


def create_app(engine: Engine, settings: Settings, metrics: Metrics | None = None) -> FastAPI:
    """The application of an engine, which it starts, and closes at its end.

    Args:
        engine: not started yet, or started: whoever starts it sees whether it becomes warm.
        settings: the limits.
        metrics: that the engine is metered by; None: new ones.
    """
    metrics = metrics or Metrics()
    engine.meter = metrics
    answering = Answering(engine, settings, metrics)
    served = engine.served
    metrics.watch(
        lambda: engine.waiting,
        lambda: sum(map(served.loaded, served.names)),
        lambda: len(served.names),
        lambda: engine.ready,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        engine.deliver = loop.call_soon_threadsafe
        yield
        await loop.run_in_executor(None, engine.close)
        answering.pool.shutdown()

    app = FastAPI(
        title="mlx-peft", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        description="Vision Transformers with many adapters on one backbone.",
    )  # fmt: skip
    app.state.engine, app.state.settings, app.state.answering, app.state.metrics = engine, settings, answering, metrics
    for kind, handler in _handlers(metrics).items():
        app.add_exception_handler(kind, handler)
    about = {headed: described.files(settings, headed) for headed in (True, False)}
    app.post("/v1/classify", **said("What is in images", Classified, ANSWERING, about[True]))(answering.classify)
    app.post("/v1/embed", **said("Features of images", Embedded, ANSWERING, about[False]))(answering.embed)
    models.add(app, answering)
    protocol.add(app, answering)
    explaining.add(app, answering)
    _add_metrics(app, settings, metrics)
    if (STATIC / "index.html").is_file():
        _add_page(app)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Guarded, settings=settings)
    return app


def _add_metrics(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """What is counted, and what describes the server."""

    @app.get(
        "/metrics", response_class=PlainTextResponse, **said("What is counted, for Prometheus", None, (401, 403, 421))
    )
    def told(request: Request) -> Response:  # in a thread: of many adapters it is a long text
        if grant_of(request, settings).adapters is not None:
            raise Problem(403, "the metrics name all adapters: a token that may ask all of them is needed")
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json", include_in_schema=False)
    async def described() -> Response:
        return answer(app.openapi())


def _add_page(app: FastAPI) -> None:
    """The page to try it."""
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"content-security-policy": PAGE})


def problem(path: str, status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response that is no answer. The Open Inference Protocol has the sentence alone."""
    error = reason if path.startswith("/v2") else {"status": status, "reason": reason}
    response = answer({"error": error}, status)
    response.headers.update(headers or {})
    return response


def _handlers(metrics: Metrics) -> dict[Any, Callable[..., Any]]:
    """What becomes of an exception."""

    def refused(request: Request, status: int, reason: str, headers: Any = None) -> Response:
        metrics.refused(route_of(request.scope), status)
        return problem(request.url.path, status, reason, headers)

    async def of_problem(request: Request, error: Problem) -> Response:
        return refused(request, error.status, error.reason, error.headers)

    async def of_http(request: Request, error: HTTPException) -> Response:
        return refused(request, error.status_code, f"{error.detail}: see /openapi.json", error.headers)

    async def of_user(request: Request, error: UserError) -> Response:
        """What a request has wrong is a Problem where it is read; this is about files and memory of the server's."""
        LOG.error("a request could not be answered: %s", error)
        return refused(request, 500, FAILED)

    async def of_bug(request: Request, error: Exception) -> Response:
        LOG.error("a request could not be answered", exc_info=error)
        return refused(request, 500, FAILED)

    return {Problem: of_problem, HTTPException: of_http, UserError: of_user, Exception: of_bug}


def route_of(scope: Scope) -> str:
    """The last word of what was asked, where there is such a thing: what strangers write is no label."""
    route = scope.get("route")
    return str(getattr(route, "path", "")).rpartition("/")[2].strip("{}") if route is not None else ""


class Guarded:
    """Before anything else: whether the server is called by its name, and by no other site's page; and headers of every
    response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._hosts, self._origins = app, settings.hosts, settings.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        headers = Headers(scope=scope)
        try:
            must_be_called(headers.get("host", ""), self._hosts)
            must_be_of_here(scope["method"], headers, self._origins)
        except Problem as error:
            await problem(scope["path"], error.status, error.reason)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)
