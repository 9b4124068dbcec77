"""Images answered on a cluster: the answers of one process, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_peft.cli import shards


class Cluster:
    """Stands for Ray: a task is done when it is asked for, the last one first where several are under way."""

    class exceptions:
        class RayTaskError(Exception):
            cause: Exception = Exception()

    def __init__(self) -> None:
        self.shards: list[int] = []

    def remote(self, function: Any) -> Any:
        class Task:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                self.shards.append(len(arguments[2]))
                return lambda: function(*arguments)

        return Task

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def get(self, task: Any) -> Any:
        return task()


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    from contextlib import nullcontext

    made = Cluster()
    monkeypatch.setattr(shards, "cluster", lambda address: nullcontext())
    monkeypatch.setattr(shards, "installed", lambda: made)
    monkeypatch.setattr(shards, "SHARD", 2)
    shards._kept.cache_clear()
    return made


def test_the_answers_are_those_of_one_process_in_its_order(command: Any, standing_in: Cluster, predicted: Any) -> None:
    run, images = predicted
    (Path(images) / "c.png").write_bytes(b"no image")
    alone = command("predict", run, images, "--format", "jsonl")
    shared = command("predict", run, images, "--format", "jsonl", "--ray", "local")
    assert (shared.exit_code, shared.stdout) == (alone.exit_code, alone.stdout) == (1, alone.stdout)
    assert standing_in.shards == [2, 2, 1]
