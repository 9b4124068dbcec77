"""Threads that decode share one budget of memory, and take no more than is reckoned with."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hanging import HUNG
from PIL import Image

from mlx_peft.data import memory, pillow


def test_a_forked_process_has_a_budget_of_its_own() -> None:
    """Its parent's threads, which hold what they have taken of theirs, are not in it."""
    whole = memory.budget()
    with whole.decoding(whole.total, 0):
        child = os.fork()
        if child == 0:
            threading.Timer(20, os._exit, (1,)).start()  # it would wait for ever
            with memory.budget().decoding(1, 0):
                os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_threads_take_no_more_than_there_is() -> None:
    budget, inside = memory.Budget(100), []
    lock, most = threading.Lock(), 0

    def work(size: int) -> None:
        nonlocal most
        with budget.one_image(), budget.decoding(size, size // 2):
            with lock:
                inside.append(min(size, 100))
                most = max(most, sum(inside))
            threading.Event().wait(0.001)
            with lock:
                inside.remove(min(size, 100))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 10, 500, 25, 100, 70] * 10))
    assert 0 < most <= 100
    assert budget.most <= 100
    with budget.decoding(100, 0):
        pass  # nothing is kept by anybody


def test_a_thread_never_waits_for_itself() -> None:
    budget = memory.Budget(100)
    with budget.one_image():
        for _ in range(3):
            with budget.decoding(90, 80):
                pass
    with budget.decoding(100, 0):
        pass


def test_an_image_that_fails_gives_its_memory_back() -> None:
    budget = memory.Budget(100)
    with pytest.raises(ValueError, match="broken"), budget.one_image(), budget.decoding(100, 100):
        raise ValueError("broken")
    with budget.decoding(100, 0):
        pass


MEASURED = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mlx_peft.data import read_image
from mlx_peft.data.memory import one_image

small, large, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def read(path):
    with one_image():
        return read_image(path).shape

with ThreadPoolExecutor(threads) as pool:
    list(pool.map(read, [small] * threads))
    before = peak()
    list(pool.map(read, [large] * threads))
print(peak() - before)
"""
SLACK = 40 * 2**20
"""Bytes that a process may grow by without having anything to do with pixels: threads, arenas, the file itself."""

ARENA = 40 * 2**20
"""Bytes that the allocator may hold back for each thread: it returns what is larger at once."""


def growth(folder: Path, form: str, mode: str, side: int, threads: int, **environment: str) -> int:
    """Bytes by which a process grows that reads large images of one colour after small ones, in so many threads."""
    for name, size in (("small", 8), ("large", side)):
        options = {"lossless": True} if form == "WEBP" else {"compression": "tiff_lzw"} if form == "TIFF" else {}
        Image.new(mode, (size, size), 7 if mode in "LP" else (1, 2, 3, 4)[: len(mode)]).save(
            folder / name, form, **options
        )
    command = [sys.executable, "-c", MEASURED, str(folder / "small"), str(folder / "large"), str(threads)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=HUNG
    )
    return int(done.stdout)


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own count of memory is Linux's")


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGBA"), ("PNG", "L"), ("WEBP", "RGBA"), ("TIFF", "RGBA"), ("BMP", "RGB"), ("GIF", "P")],
)
def test_decoding_takes_what_is_reckoned_with(tmp_path: Path, form: str, mode: str) -> None:
    assert growth(tmp_path, form, mode, 2500, 1) <= pillow.PEAK[form] * 2500**2 + SLACK


@linux
def test_threads_decode_within_one_budget(tmp_path: Path) -> None:
    """Five that each take 190 MB at once would need a gigabyte."""
    side, memory, threads = 3000, 270_000_000, 5
    taken = growth(tmp_path, "WEBP", "RGB", side, threads, MLX_PEFT_IMAGE_MEMORY=str(memory))
    assert taken <= memory + SLACK + threads * ARENA
