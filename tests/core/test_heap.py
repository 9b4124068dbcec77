"""What a process frees it keeps, and takes again without asking the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mlx_peft.core.heap import SETTINGS

PROGRAM = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from mlx_peft.core import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"1" * (n << 20) for n in range(1, 49, 8)]  # MiB, on both sides of what glibc gives back at once
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keeps = heap.keep()
if sys.argv[1:]:
    with ThreadPoolExecutor(1) as pool:
        found = [pool.submit(faults).result() for _ in range(3)]
else:
    found = [faults() for _ in range(3)]
print(json.dumps([keeps, found]))
"""
PAGES = sum(n << 20 for n in range(1, 49, 8)) // 4096


def faults(*arguments: str, **environment: str) -> tuple[bool, list[int]]:
    """Whether a fresh process keeps what it frees, and the pages that it asks for, time after time, for the same.

    Args:
        arguments: any: what asks is a thread.
    """
    ours = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=ours | environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    keeps, found = json.loads(done.stdout)
    return keeps, found


linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")


@linux
@pytest.mark.parametrize("where", [[], ["thread"]])
def test_what_is_freed_is_taken_again_without_the_kernel(where: list[str]) -> None:
    keeps, (first, *later) = faults(*where)
    assert keeps and first > PAGES / 2 and max(later) < PAGES / 100


@linux
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "")]
)
def test_what_a_user_has_said_of_the_allocator_stands(name: str, value: str) -> None:
    keeps, (_, *later) = faults(**{name: value})
    assert not keeps and min(later) > PAGES / 2
