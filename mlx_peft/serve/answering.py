"""From a request's body to its answer: what classify, embed and the other ways to ask have in common."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import to_json
from mlx_peft.serve.asked import JSON, asked, media_type
from mlx_peft.serve.batches import Answers, Place
from mlx_peft.serve.bodies import Bodies, read
from mlx_peft.serve.decoding import decoded, decoders
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.guard import chosen, grant_of
from mlx_peft.serve.known import Known, Row
from mlx_peft.serve.metrics import Metrics
from mlx_peft.serve.problems import Problem, gone, late, unreadable
from mlx_peft.serve.settings import Settings
from mlx_peft.serve.tokens import Grant
from mlx_peft.tasks.logits import finite

Text = TypeVar("Text")

SMALL = 2**16
"""Bytes of a body that is read in the loop itself: handing it to a thread would take longer."""

MANY = 4096
"""Numbers of an answer that is written in the loop itself, which takes 5 ms. A longer one is written in a thread, image
by image, so that others are answered meanwhile."""


@dataclass(frozen=True, eq=False)
class Taken:
    """A request that was taken in.

    Attributes:
        rows: whom each image asks.
        pixels: uint8 ``(images, size, size, 3)``.
        top: classes that are told.
        deadline: by ``time.monotonic``.
        decoding: seconds that it took.
        place: that was taken for the images.
    """

    rows: Sequence[Row]
    pixels: np.ndarray
    top: int
    deadline: float
    decoding: float
    place: Place


class Answering:
    """What a server has at hand for its requests.

    Args:
        engine: that answers.
        settings: the limits.
        metrics: told of each request.
    """

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self.bodies, self.pool = Bodies(settings), decoders(settings)

    async def classify(self, request: Request) -> Response:
        """``POST /v1/classify``"""
        return await self._of_files(request, "classify", headed=True)

    async def embed(self, request: Request) -> Response:
        """``POST /v1/embed``"""
        return await self._of_files(request, "embed", headed=False)

    async def _of_files(self, request: Request, route: str, headed: bool) -> Response:
        began = time.monotonic()
        async with self.taken(request, headed) as taken:
            future = self.engine.submit(taken.pixels, taken.rows, headed, deadline=taken.deadline, place=taken.place)
        answers = await self.until(request, taken.deadline, asyncio.wrap_future(future))

        def results() -> str:
            pairs = zip(answers.of, answers.rows, strict=True)
            each = (classes_of(*pair, taken.top) if headed else embedding_of(*pair) for pair in pairs)
            return ", ".join(to_json(one, indent=None) for one in each)

        numbers = len(taken.rows) * (taken.top if headed else self.engine.served.dim)
        told = await written(results, numbers)
        total = time.monotonic() - began
        self.metrics.answered(route, Counter(None if row is None else row.name for row in taken.rows), total)
        milliseconds = to_json(_milliseconds(taken.decoding, answers, total), indent=None)
        return Response(f'{{"results": [{told}], "milliseconds": {milliseconds}}}', media_type=JSON)

    @asynccontextmanager
    async def taken(self, request: Request, headed: bool) -> AsyncIterator[Taken]:
        """A request that was taken in: who asks, what, and the images, decoded. Its place is free again behind the
        block, unless it was used in it.

        Args:
            headed: whether classes are asked for, so that each image asks somebody who has some.

        Raises Problem, whatever is wrong with it.
        """
        grant = grant_of(request, self.settings)
        with self.bodies.holding() as held:
            kind = request.headers.get("content-type", "")
            most = self.settings.json if media_type(kind) == JSON else self.settings.body
            body = await read(request, held, most, self.settings.body_seconds)
            deadline = time.monotonic() + self.settings.deadline
            read_here, arguments = len(body) <= SMALL, (kind, body, self.settings.images, headed)
            ask = asked(*arguments) if read_here else await self.until(request, deadline, self.aside(asked, *arguments))
            del body, arguments
            rows = self.rows(ask.adapters, grant, headed)
            with self.engine.admit(len(rows)) as place:
                pixels, decoding = await self.decoded(request, ask.images, rows, deadline)
                held.free()
                yield Taken(rows, pixels, ask.top, deadline, decoding, place)

    def rows(self, names: Sequence[str | None], grant: Grant, headed: bool) -> list[Row]:
        """Whom images ask. Raises Problem, 404, 409, 422."""
        served = self.engine.served
        found: dict[str | None, Row] = {}
        for name in dict.fromkeys(names):
            if name is None and not headed and served.usual is not None:
                found[name] = None
                continue
            own = [one for one in served.names if grant.allows(one)] if name is None else []
            chosen_name = own[0] if len(own) == 1 else name
            one = chosen(chosen_name, own, grant, None if chosen_name is None else served.get(chosen_name))
            if headed and not one.classes:
                raise unreadable(f"the model {one.name!r} has no classes: ask it for its features")
            found[name] = one
        return [found[name] for name in names]

    async def decoded(
        self, request: Request, images: Sequence[bytes | np.ndarray], rows: Sequence[Row], deadline: float
    ) -> tuple[np.ndarray, float]:
        """The images as their models see them, and how many seconds that took."""
        served = self.engine.served
        recipes = [row.recipe if row is not None else served.usual for row in rows]
        began, over = time.monotonic(), threading.Event()
        arguments = images, recipes, served.image_size, self.settings.decoding, over
        try:
            pixels = await self.until(request, deadline, self.aside(decoded, *arguments))
        finally:
            over.set()  # a thread that is still at it stops behind the image that it has in hand
        return pixels, time.monotonic() - began

    async def until(self, request: Request, deadline: float, awaited: Any) -> Any:
        """What is awaited. Raises Problem: 504, where it is not there in time; 499, where whoever asked has gone, and
        nothing more is computed for them."""
        answer, left = asyncio.ensure_future(awaited), asyncio.ensure_future(_left(request))
        try:
            wait = max(deadline - time.monotonic(), 0)
            done, _ = await asyncio.wait({answer, left}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                return answer.result()
            raise gone() if left in done else late(self.settings.deadline)
        finally:
            answer.cancel()
            left.cancel()

    async def aside(self, function: Any, *arguments: Any) -> Any:
        """Calls a function in one of the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)


async def _left(request: Request) -> None:
    """Back as soon as whoever asked has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def written(write: Callable[[], Text], numbers: int) -> Text:
    """What an answer of so many numbers is written as: of ``MANY`` in a thread."""
    return await asyncio.to_thread(write) if numbers > MANY else write()


def answer(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(to_json(value, indent=None), status, media_type=JSON)


@dataclass(frozen=True)
class Likely:
    """A class of an answer."""

    index: int
    label: str
    probability: float


def finite_logits(known: Known, logits: np.ndarray) -> np.ndarray:
    """Logits in float64. Raises Problem, 500, where one is not finite."""
    try:
        return finite(logits)
    except UserError:
        raise Problem(500, f"the logits of {known.name!r} are not finite: its training diverged") from None


def likeliest(known: Known, logits: np.ndarray, top: int) -> list[Likely]:
    """The likeliest classes of an image. Raises as ``finite_logits``."""
    values = finite_logits(known, logits)
    best = np.argsort(-values, kind="stable")[:top].tolist()
    probabilities = known.task.probabilities(values)
    return [Likely(index, known.classes[index], float(probabilities[index])) for index in best]


def classes_of(row: Row, logits: np.ndarray, top: int) -> dict[str, Any]:
    assert row is not None  # the bare base has no classes
    return {"adapter": row.name, "classes": [vars(one) for one in likeliest(row, logits, top)]}


def embedding_of(row: Row, features: np.ndarray) -> dict[str, Any]:
    if not np.isfinite(features).all():
        raise Problem(500, "the features are not finite")
    return {"adapter": None if row is None else row.name, "embedding": features.tolist()}


def _milliseconds(decoding: float, answers: Answers, total: float) -> dict[str, float]:
    seconds = {"decode": decoding, "queue": answers.queue, "device": answers.device, "total": total}
    return {name: round(1000 * value, 3) for name, value in seconds.items()}
