"""The processors that are free, by affinity and by the control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_peft.core import control_groups, cores

GROUPS = {
    "none": ({}, 8),
    "no quota": ({"cgroup": "0::/a/b\n", "a/cpu.max": "max 100000\n"}, 8),
    "two and a half": ({"cgroup": "0::/a/b\n", "a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 3),
    "less than one": ({"cgroup": "0::/a\n", "a/cpu.max": "20000 100000\n"}, 1),
    "version 1": ({"cgroup": "4:cpu,cpuacct:/a\n", "cpu/a/cpu.cfs_quota_us": "200000\n",
                   "cpu/a/cpu.cfs_period_us": "100000\n"}, 2),
    "version 1, no quota": ({"cgroup": "4:cpu:/a\n", "cpu/a/cpu.cfs_quota_us": "-1\n",
                             "cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), GROUPS.values(), ids=GROUPS)
def test_no_more_than_affinity_and_quota_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        path = tmp_path / ("proc/self/cgroup" if name == "cgroup" else f"groups/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(control_groups, "PROC", tmp_path / "proc")
    monkeypatch.setattr(control_groups, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cores.free() == expected


@pytest.mark.parametrize(
    ("siblings", "allowed", "expected"),
    [
        (("0,2", "1,3", "0,2", "1,3"), {0, 1, 2, 3}, 2),
        (("0", "1", "2", "3"), {0, 1, 2, 3}, 4),
        (("0,2", "1,3", "0,2", "1,3"), {0, 1}, 2),
        (("0,2", "1,3", "0,2", "1,3"), {0, 2}, 1),
        ((), {0, 1, 2}, 3),
    ],
    ids=["two of each core", "one of each core", "one of each allowed", "a core's two", "not told"],
)
def test_processors_that_are_one_core_count_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: tuple[str, ...], allowed: set[int], expected: int
) -> None:
    for number, text in enumerate(siblings):
        path = tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{text}\n")
    monkeypatch.setattr(cores, "PROCESSORS", tmp_path)
    monkeypatch.setattr(cores, "_quotas", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed, raising=False)
    assert cores.whole() == expected
