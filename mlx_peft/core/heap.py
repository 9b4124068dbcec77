"""Memory that is freed and wanted again at once: on Linux the process keeps it, and the kernel need not clear it anew.

A training step asks for the same blocks as the step before it. glibc gives what is freed at the end of its heap back to
the kernel, and every block above 32 MiB; then each page of it has to be cleared and mapped again at its next use. Of a
LoRA step of ViT-S, batch 8, that was 80,000 pages and a tenth of all processor time, and the process is no larger for
keeping them: its peak is the step's (``tests/bench/freed_memory.py``). What it costs is that the memory stays with the
process until it ends.

A thread of its own would take from an arena of its own, made of heaps of 64 MiB, and glibc gives each of those back as
soon as nothing of it is in use, whatever the thresholds say. So all threads take from one.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""The parameters' numbers in ``malloc.h``."""

NEVER = -1
"""No freed end of the heap is given back."""

LARGEST = 2**30
"""Bytes of a block that is still taken from the heap. A larger one takes long enough to hide what mapping it costs."""

SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX")
"""Whoever sets one of these has said what the allocator is to do."""


def keep() -> bool:
    """Has the process keep what it frees; whether it does: with glibc, and where a user has said nothing else.

    A thread that has taken memory before keeps its arena.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    tune = ctypes.CDLL(None).mallopt
    return bool(tune(TRIM_THRESHOLD, NEVER) and tune(MMAP_THRESHOLD, LARGEST) and tune(ARENA_MAX, 1))
