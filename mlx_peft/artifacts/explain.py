"""Why a model says what it says of an image: where its attention went, and what became of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.adaptation.room import check_explaining
from mlx_peft.artifacts.load import Loaded
from mlx_peft.core.errors import UserError, shown, suggest
from mlx_peft.data import eval_image
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.names import spelled
from mlx_peft.data.questions import Questions
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.model import Model
from mlx_peft.tasks.logits import finite
from mlx_peft.tasks.task import Task
from mlx_peft.vit import relevance
from mlx_peft.vit.attention import Explanation
from mlx_peft.vit.places import PATCH

SKIPPED, DROPPED = -1, -2
"""In the place of a token's number: its patch goes around the block, or its MLP, in a token of its own, or is in none
any more."""


@dataclass(frozen=True, eq=False)
class Explained:
    """One image. Maps are ``(grid, grid)``, a number for each patch.

    Attributes:
        image: its file, as it was named.
        pixels: as the model sees it, uint8 ``(size, size, 3)``.
        patch_size: side of a patch in them; pixels past the last whole patch are seen by nobody.
        answers: the likeliest of what the task answers, see ``Task.answer``.
        of: the class whose logit was differentiated.
        rollout, weighted: see ``vit.relevance``; float64.
        taken: of each block, likewise.
        tokens: of each block: the number of the token that the patch is in as it comes to the block; SKIPPED, DROPPED.
        counts: of each block: how many tokens go through it, the class token and all others with them; where some go
            past its MLP, how many do not.
    """

    image: str
    pixels: np.ndarray
    patch_size: int
    answers: list[dict[str, Any]]
    of: str
    rollout: np.ndarray
    weighted: np.ndarray
    taken: tuple[np.ndarray, ...]
    tokens: tuple[np.ndarray, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Unread:
    """An image that cannot be read, and why."""

    image: str
    error: str


def explain(
    loaded: Loaded, questions: Questions, of: str | None = None, top: int = 5, watch: Watch = unwatched
) -> Iterator[Explained | Unread]:
    """The images that are asked about, in their order, each as soon as it is done.

    Args:
        of: the class that the gradient speaks for, by its name; None: of each image the likeliest.
        top: answers that are told of each.

    Raises:
        UserError: the model has no such class, a logit is not finite, or there is too little memory.
    """
    row = None if of is None else class_row(of, loaded.classes)
    base = loaded.base
    check_explaining(
        base.name, base.architecture, base.quantization, num_classes=len(loaded.classes),
        device=load_backend(loaded.recipe.backend).computing(), reducer=base.tokens,
    )  # fmt: skip
    watch("explaining", 0, questions.count)
    for done, question in enumerate(questions.without_pauses(), start=1):
        if question.content is not None:
            raise UserError(f"{question.file}: images in Parquet are not explained, image files are")
        image = question.image
        try:
            pixels = eval_image(Path(image), loaded.preprocessing, loaded.image_size)
        except UserError as error:
            yield Unread(image, str(error))
        else:
            yield explained(loaded.model, loaded.task, loaded.classes, image, pixels, row, top)
        watch("explaining", done, questions.count)


def class_row(name: str, classes: Sequence[str]) -> int:
    """The row of the head that has a class. Raises UserError, with the nearest names, where there is none."""
    rows = {spelled(known): row for row, known in enumerate(classes)}
    if spelled(name) not in rows:
        raise UserError(f"the model has no class {shown(name)}{suggest(name, classes)}", arguments=("of",))
    return rows[spelled(name)]


def explained(
    model: Model, task: Task, classes: Sequence[str], image: str, pixels: np.ndarray, row: int | None, top: int
) -> Explained:
    """An image that a model sees. Raises UserError where a logit is not finite.

    Args:
        classes: names of the head's rows.
        image: what it is called.
        pixels: as the model sees it, uint8 ``(size, size, 3)``.
        row: the class whose logit is differentiated; None: the likeliest.
        top: answers that are told.
    """
    found = model.explain(np.array(pixels)[None], None if row is None else [row])
    logits = finite(found.logits[0], f"the model for {image}")
    side = found.architecture.grid_size
    rollout, weighted, *taken = (
        each[0].reshape(side, side)
        for each in (relevance.rollout(found), relevance.gradient_weighted(found), *relevance.taken(found))
    )
    return Explained(
        image=image,
        pixels=pixels,
        patch_size=found.architecture.patch_size,
        answers=task.answer(logits, classes, top),
        of=classes[int(found.classes[0])],
        rollout=rollout,
        weighted=weighted,
        taken=tuple(taken),
        tokens=tuple(each.reshape(side, side) for each in _numbers(found)),
        counts=tuple(len(block.asked) if block.fed is None else int(block.fed[0].sum()) for block in found.blocks),
    )


def _numbers(found: Explanation) -> Iterator[np.ndarray]:
    """Of each block: the token that each patch is in, ``(patches,)``: the one that holds most of it."""
    for block, (held, through) in zip(found.blocks, relevance.holdings(found), strict=True):
        token = held[0].argmax(0)
        around = token >= through
        if block.fed is not None:
            around |= ~block.fed[0, block.left.span(PATCH)][token - block.asked.span(PATCH).start]
        yield np.where(held[0].max(0) == 0, DROPPED, np.where(around, SKIPPED, token))
