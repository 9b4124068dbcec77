"""What a model, or a bank of adapters, says of images that are no data set's, however many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.artifacts.answering import Asked, OneModel
from mlx_peft.artifacts.load import Loaded
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import eval_image
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.data.questions import Question, Questions
from mlx_peft.data.stream import Part, decoded


def predict(loaded: Loaded, paths: Sequence[Path], top_k: int = 5, watch: Watch = unwatched) -> list[dict[str, Any]]:
    """What ``answers`` gives of one model and a few image files."""
    each = (Question(str(path)) for path in paths)
    return list(answers(OneModel.of(loaded), Questions(each, len(paths)), top_k, watch))


def answers(asked: Asked, questions: Questions, top: int = 1, watch: Watch = unwatched) -> Iterator[dict[str, Any]]:
    """What is answered of each image, in their order: ``{"image": path, "predictions": [...]}``, see ``Task.answer``.

    Of classes the likeliest: ``{"class": ..., "probability": ...}``. Between the two stands ``"adapter"`` where one was
    asked by its name. Of an image that cannot be read, in the place of predictions, ``"error"``: the reason. Raises
    UserError at the end where none could be read; where a logit is not finite, and where there is too little memory.
    """
    for part in _parts(asked, questions, watch):
        adapters = [question.adapter for question in part.asked]
        rows = asked.logits(part.images, adapters) if None in part.errors else part.images
        for question, error, row in zip(part.asked, part.errors, rows, strict=False):
            told = _told(question, error)
            if error is None:
                told["predictions"] = asked.entries(row, question.adapter, top, question.image)
            yield told


@dataclass(frozen=True, eq=False)
class Features:
    """Those of some images.

    Attributes:
        asked: the images that were read, with their adapters.
        rows: float32 ``(len(asked), dim)``.
        told: of each image that was asked about, in the form of ``answers``, without predictions.
    """

    asked: Sequence[Question]
    rows: np.ndarray
    told: Sequence[Mapping[str, Any]]


def features(asked: Asked, questions: Questions, watch: Watch = unwatched) -> Iterator[Features]:
    """The vector before any head of each image, in their order, a part of them at a time. Raises as ``answers``."""
    for part in _parts(asked, questions, watch):
        told = [_told(*one) for one in zip(part.asked, part.errors, strict=True)]
        there = [at for at, error in enumerate(part.errors) if error is None]
        read = [part.asked[at] for at in there]
        rows = np.empty((0, 0), np.float32)
        if there:
            rows = asked.features(part.images, [question.adapter for question in part.asked])[there]
        sound = np.isfinite(rows).all(axis=1)
        if not sound.all():
            first = read[int(np.argmin(sound))].image
            raise UserError(f"the features of {first} are not finite: training diverged, or the model is damaged")
        yield Features(read, rows, told)


def _told(question: Question, error: str | None) -> dict[str, Any]:
    """What is said of an image before any answer."""
    adapter = {} if question.adapter is None else {"adapter": question.adapter}
    return {"image": question.image, **adapter, **({} if error is None else {"error": error})}


def _parts(asked: Asked, questions: Questions, watch: Watch) -> Iterator[Part[Question]]:
    """The images, decoded; of whoever wants it with more rows at the end, so that parts have few sizes.

    These are that of the first, or, where nobody knows how many images there are, powers of two.

    Raises UserError at the end where none could be read, or none was named by whoever names them as they come.
    """
    size, count, done, answered, first = asked.image_size, questions.count, 0, 0, ""
    asked.check_room(asked.batch_size if count is None else min(asked.batch_size, count))

    def seen(question: Question) -> np.ndarray:
        picture = question.picture()
        try:
            return eval_image(picture, asked.preprocessing(question.adapter), size)
        except UserError as error:
            raise UserError(str(error) if isinstance(picture, Path) else f"{question.image}: {error}") from error

    watch("answering", 0, count)
    with closing(decoded(questions.with_contents(), seen, size, asked.part)) as parts:
        rows = 0
        for part in map(_without_contents, parts):
            if count is None:
                rows = min(1 << (len(part.asked) - 1).bit_length(), asked.part)
            rows = rows or len(part.asked)
            yield _filled(part, rows) if asked.fills else part
            done += len(part.asked)
            answered += sum(error is None for error in part.errors)
            first = first or next(filter(None, part.errors), "")
            watch("answering", done, count)
    if not answered and (done or count is None):
        none_of = "" if done == 1 else f"none of the {counted(done, 'image')} can be read; the first: "
        raise UserError(f"{none_of}{first}" if done else "no image is named: the list is empty")


def _without_contents(part: Part[Question]) -> Part[Question]:
    """The bytes of what is decoded are let go of: who asked is kept longer than a part."""
    return replace(part, asked=[question._replace(content=None) for question in part.asked])


def _filled(part: Part[Question], rows: int) -> Part[Question]:
    """Empty images behind the others."""
    if (more := rows - len(part.images)) <= 0:
        return part
    empty = np.zeros((more, *part.images.shape[1:]), np.uint8)
    return Part(part.asked, np.concatenate([part.images, empty]), part.errors)
