"""Why an adapter says what it says of an image, for whoever asks over HTTP: pictures of attention and of what is kept.

A bank's network has no method in it, so that an adapter of a bank is looked at in a model of its own: the base a second
time, from the first question on. The last one is kept; adapters of its form only change tensors in it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from convert.adapters.peft import Adapter
from convert.base import Base
from mlx_peft.adaptation.adapter import completed
from mlx_peft.adaptation.room import check_explaining
from mlx_peft.artifacts.answering import ManyAdapters, OneModel
from mlx_peft.artifacts.explain import Explained, explained
from mlx_peft.core.errors import UserError
from mlx_peft.library import entries
from mlx_peft.library.entries import Entry
from mlx_peft.protocols import model as protocols
from mlx_peft.protocols.loading import load_backend, load_library
from mlx_peft.report.explained import reduced
from mlx_peft.report.patches import heat, regions
from mlx_peft.serve import described
from mlx_peft.serve.answering import Answering, answer
from mlx_peft.serve.described import ANSWERING, Class, said
from mlx_peft.serve.known import Known
from mlx_peft.serve.problems import busy, replaced, unknown, unreadable
from mlx_peft.tasks.task import Task
from mlx_peft.vit.parameters import is_head

SIDE = 224
"""Pictures have at least so many pixels a side: each of the model's is repeated."""
MOST = 8
"""Images that are explained, or wait for it, at once."""


@dataclass(frozen=True, eq=False)
class Seen:
    """An image that was looked at.

    Attributes:
        adapter: which one was asked; None where there is one model alone.
        explained: what it made of the image.
        classes: names of its head's rows.
    """

    adapter: str | None
    explained: Explained
    classes: Sequence[str]


class Explainer:
    """Whoever is asked why. All of it happens in one thread, the device's.

    Args:
        asked: one model, or a bank.
    """

    def __init__(self, asked: OneModel | ManyAdapters) -> None:
        self._asked = asked
        self._last: tuple[Entry, Adapter, protocols.Model] | None = None

    def look(self, pixels: np.ndarray, adapter: str | None, top: int) -> Seen:
        """What an adapter makes of an image, and where its attention goes.

        Args:
            pixels: as the model sees it, uint8 ``(size, size, 3)``.
            adapter: its name; of one model it does not matter.
            top: answers that are told.

        Raises:
            UserError: there is no such adapter, or it cannot be read; a logit is not finite; memory is too little.
        """
        model, task, classes = self._of(adapter)
        base, recipe = self._asked.base, self._asked.recipe
        check_explaining(
            base.name, base.architecture, base.quantization, num_classes=len(classes),
            device=load_backend(recipe.backend).computing(), reducer=recipe.tokens,
        )  # fmt: skip
        return Seen(adapter, explained(model, task, classes, "the image", pixels, None, top), classes)

    def _of(self, adapter: str | None) -> tuple[protocols.Model, Task, Sequence[str]]:
        asked = self._asked
        if isinstance(asked, OneModel):
            return asked.model, asked.task, asked.classes
        if adapter is None:
            raise UserError("the bare backbone answers nothing that could be explained: name an adapter")
        entry = asked.bank[adapter]
        return self._with(entry, asked), entry.adapter.task, entry.classes

    def _with(self, entry: Entry, asked: ManyAdapters) -> protocols.Model:
        """A model with an adapter in it: the last one, where that has the adapter's form, or another."""
        if self._last is not None and self._last[0] is entry:
            return self._last[2]
        last, self._last = self._last, None  # what fails half way is asked no more
        adapter = entries.read(entry, asked.bank.network)
        model = last[2] if last is not None and _same_form(last[1], adapter) else None
        del last  # before another one takes its place
        if model is None:
            recipe = replace(asked.recipe, method=adapter.method)
            model = recipe.build(_held(asked), adapter.num_classes)
        model.load_adapter(completed(adapter.method, adapter.tensors, model.adapter))
        self._last = entry, adapter, model
        return model


def _held(asked: ManyAdapters) -> Base:
    """The base as the bank has it, without a head: adapters bring their own."""
    network = asked.bank.network
    every = load_library(asked.recipe.backend).framework.every(network)
    return replace(network.base, tensors={name: tensor for name, tensor in every.items() if not is_head(name)})


def _same_form(one: Adapter, other: Adapter) -> bool:
    """Whether a model of one adapter answers as the other's once it has its tensors: those are all that differs."""
    alike = (one.method, one.num_classes) == (other.method, other.num_classes)
    return alike and not other.method.implied


def told(seen: Seen) -> dict[str, Any]:
    """What was seen, for JSON; pictures are PNG in base64.

    Returns:
        ``adapter``; ``classes``: of each ``index``, ``label``, ``probability``; ``of``: the class that ``favour`` is
        about; ``pictures``: the ``image`` as the model sees it, attention ``rollout``, what is in ``favour`` of the
        class, and where patches leave or share tokens the ``tokens`` of the last block; ``tokens``: how many go through
        each block.
    """
    found = seen.explained
    pictures = {
        "image": found.pixels,
        "rollout": heat(found.pixels, found.rollout, found.patch_size),
        "favour": heat(found.pixels, found.weighted, found.patch_size),
    }
    if reduced(found):
        pictures["tokens"] = regions(found.pixels, found.tokens[-1], found.patch_size)
    row = {name: index for index, name in enumerate(seen.classes)}
    return {
        "adapter": seen.adapter,
        "of": found.of,
        "classes": [
            {"index": row[entry["class"]], "label": entry["class"], "probability": entry["probability"]}
            for entry in found.answers
        ],
        "pictures": {name: _png(picture) for name, picture in pictures.items()},
        "tokens": list(found.counts),
    }


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    times = max(1, -(-SIDE // len(pixels)))
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Pictures(BaseModel):
    image: str = Field(description="as the model sees it: PNG in base64, as all of them")
    rollout: str = Field(description="attention rollout")
    favour: str = Field(description="what is in favour of the class")
    tokens: str | None = Field(None, description="the tokens of the last block, where the model drops or merges some")


class Why(BaseModel):
    adapter: str = Field(examples=["pets"])
    of: str = Field(description="the class that favour is about", examples=["cat"])
    classes: list[Class] = Field(description="the likeliest first")
    pictures: Pictures
    tokens: list[int] = Field(description="how many go through each block")


class Took(BaseModel):
    decode: float
    total: float


class WhyAnswered(BaseModel):
    result: Why
    milliseconds: Took


def add(app: FastAPI, answering: Answering) -> None:
    """The route ``POST /v1/explain``: what classify is asked, of one image."""
    engine = answering.engine
    explainer = None if engine.served.asked is None else Explainer(engine.served.asked)
    body = described.files(replace(answering.settings, images=1), top=True)
    inside: set[object] = set()

    @contextmanager
    def place() -> Iterator[None]:
        """One of a few: each takes the device as long as many images do. Raises Problem, 503, where there is none."""
        if len(inside) == MOST:
            raise busy(f"{MOST} images are being explained already: ask again")
        inside.add(own := object())
        try:
            yield
        finally:
            inside.discard(own)

    def look(row: Known, pixels: np.ndarray, top: int) -> Seen:
        """In the device's thread. Raises Problem, 404, 503, where the adapter is gone, or another, by now."""
        assert explainer is not None
        if (now := engine.served.get(row.name)) is not row:
            raise unknown(row.name) if now is None else replaced(row.name)
        return explainer.look(pixels, row.name, top)

    @app.post("/v1/explain", **said("Where an adapter looks in an image", WhyAnswered, ANSWERING, body))
    async def explain(request: Request) -> Response:
        began = time.monotonic()
        async with answering.taken(request, headed=True) as taken:
            if explainer is None:
                raise unreadable("what is served here cannot be explained")
            if len(taken.rows) > 1:
                raise unreadable(f"there are {len(taken.rows)} images: one is explained at a time")
            (row,), (pixels,) = taken.rows, taken.pixels
            assert row is not None  # the bare base has no classes
            with place():
                looked = engine.order(look, row, pixels, taken.top)
                seen = await answering.until(request, taken.deadline, asyncio.wrap_future(looked))
                result = await answering.aside(told, seen)
        total = time.monotonic() - began
        answering.metrics.answered("explain", {row.name: 1}, total)
        return answer({"result": result, "milliseconds": {"decode": 1000 * taken.decoding, "total": 1000 * total}})
