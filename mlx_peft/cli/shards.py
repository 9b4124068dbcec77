"""Many images answered on a Ray cluster: tasks over shards of them, whose answers come in the order of the images."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from mlx_peft.artifacts.answering import Asked
from mlx_peft.artifacts.predict import answers
from mlx_peft.core.errors import UserError
from mlx_peft.data.looking import Watch
from mlx_peft.data.parquet_rows import Cell
from mlx_peft.data.questions import Question, Questions
from mlx_peft.studies.on_ray import cluster, installed

SHARD = 512
"""A task answers so many images: few enough that all hosts have some, and more than it takes to open a model."""

LARGEST = 8192
"""Rows of a Parquet file's row group are in one task, so that the group is read once, up to so many."""

AHEAD = 2
"""So many tasks for each processor of the cluster are under way, or wait for their turn to be told."""

Opening = tuple[Any, ...]
"""How the model is opened, as plain values."""


def answers_on(
    address: str,
    opening: Opening,
    opened: Callable[..., Asked],
    questions: Questions,
    top: int,
    watch: Watch,
) -> Iterator[dict[str, Any]]:
    """What ``artifacts.predict.answers`` gives, made by the hosts of a cluster, which see the images, the model and its
    weights at the same paths. A task whose process dies is made again.

    Args:
        opening: what ``opened``, a function of a module, makes the model of on each host.

    Raises:
        UserError: as ``answers``; and where there is no such cluster.
    """
    with cluster(address):
        ray = installed()
        make = ray.remote(answered)
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        under_way: deque[Any] = deque()
        asked = _shards(questions.without_pauses())
        done = read = 0
        first = ""
        watch("answering", 0, questions.count)
        while True:
            while len(under_way) < most and (shard := next(asked, None)):
                under_way.append(make.remote(opened, opening, shard, top, os.getcwd()))
            if not under_way:
                break
            for told in _got(ray, under_way.popleft()):
                done, read = done + 1, read + ("error" not in told)
                first = first or told.get("error", "")
                yield told
            watch("answering", done, questions.count)
    if not read:
        raise UserError(f"none of the {done} images can be read; the first: {first}" if done else "no image is named")


def _shards(asked: Iterator[Question]) -> Iterator[list[Question]]:
    """Parts of what is asked, in its order; of Parquet files whole row groups."""
    shard: list[Question] = []
    for question in asked:
        if len(shard) >= LARGEST or (len(shard) >= SHARD and not _of_one_group(shard[-1], question)):
            yield shard
            shard = []
        shard.append(question)
    if shard:
        yield shard


def _of_one_group(one: Question, other: Question) -> bool:
    """Whether both are in the same row group."""
    return isinstance(one.content, Cell) and isinstance(other.content, Cell) and one.content[:3] == other.content[:3]


def _got(ray: Any, task: Any) -> Sequence[dict[str, Any]]:
    """A shard's answers. Raises UserError as the host did."""
    try:
        found: Sequence[dict[str, Any]] = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise UserError(str(error.cause)) from None
    return found


def answered(
    opened: Callable[..., Asked], opening: Opening, shard: Sequence[Question], top: int, directory: str
) -> list[dict[str, Any]]:
    """The answers on a shard, in a process of the cluster, which keeps the model for its next one."""
    os.chdir(directory)
    found: list[dict[str, Any]] = []
    try:
        found += answers(_kept(opened, opening), Questions(iter(shard), len(shard)), top)
    except UserError:
        if len(found) < len(shard):  # else none of these could be read, and others may be
            raise
    return found


@lru_cache(maxsize=1)
def _kept(opened: Callable[..., Asked], opening: Opening) -> Asked:
    return opened(*opening)
