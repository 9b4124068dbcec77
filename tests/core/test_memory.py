"""What memory there is, by the machine, its control groups and the process's limits; and what is refused for it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_peft.core import control_groups, memory
from mlx_peft.core.errors import UserError

GIB = 2**30
RAM = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the kernel's files: no swap, no groups, no limits of the process."""
    monkeypatch.setattr(control_groups, "PROC", tmp_path / "proc")
    monkeypatch.setattr(control_groups, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_limits", list)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_it_is_the_machine_s(kernel: Path) -> None:
    assert memory.available() == RAM
    write(kernel / "proc/meminfo", "MemTotal: 9 kB\nSwapTotal:       2097152 kB\nSwapFree: 1 kB\n")
    assert memory.available() == RAM + 2 * GIB


def test_macos_makes_swap_as_it_needs_it(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.available() == 2 * RAM


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/a/b\n", "a/b/memory.max"),
        ("0::/a/b\n", "a/memory.max"),
        ("0::/\n", "memory.max"),
        ("0::/elsewhere/in/the/host\n", "memory.max"),  # a container sees its own group as the root
        ("5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n", "memory/a/memory.limit_in_bytes"),
        ("4:hugetlb,memory:/a/b\n", "memory/a/memory.limit_in_bytes"),
        ("4:memory:/host/only\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_a_control_group_s_share_counts_and_those_around_it(kernel: Path, groups: str, file: str) -> None:
    write(kernel / "proc/self/cgroup", groups)
    write(kernel / "cgroup" / file, "max\n")
    assert memory.available() == RAM
    write(kernel / "cgroup" / file, f"{GIB // 2}\n")
    assert memory.available() == GIB // 2


def test_another_s_group_does_not_count(kernel: Path) -> None:
    write(kernel / "proc/self/cgroup", "0::/a\n3:cpu:/b\n")
    write(kernel / "cgroup/b/memory.max", "1\n")
    write(kernel / "cgroup/memory/b/memory.limit_in_bytes", "1\n")
    assert memory.available() == RAM


def test_a_limit_of_the_process_counts() -> None:
    limit = 3 * GIB // 2
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, resource.RLIM_INFINITY))\n"
    code += "from mlx_peft.core import memory; print(memory.available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == limit
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != limit


def test_what_does_not_fit_is_refused_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 16 * GIB)
    memory.require({"weights": 16 * GIB, "logits": 0}, "it")
    with pytest.raises(UserError) as refused:
        memory.require({"weights": 16 * GIB, "attention": 350 * GIB, "logits": 0}, "the model", advice="be modest")
    assert str(refused.value) == (
        "the model needs at least 366 GiB of memory (weights 16.0 GiB, attention 350 GiB), "
        "and there are 16.0 GiB here; be modest"
    )


def test_an_accelerator_s_own_memory_counts_beside_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 16 * GIB)
    memory.require({"weights": 30 * GIB}, "it", own=16 * GIB)
    with pytest.raises(UserError, match=r"there are 32\.0 GiB here, 16\.0 GiB of them the accelerator's$"):
        memory.require({"weights": 33 * GIB}, "it", own=16 * GIB)


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 MiB"), (120 * 2**20, "120 MiB"), (16 * GIB // 5, "3.2 GiB"), (2**50, "1,048,576 GiB")],
)
def test_bytes_are_said_as_people_say_them(size: int, text: str) -> None:
    assert memory.gib(size) == text
