"""What is remembered of images, as files: found again, whole, bounded, and written by several at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hanging import HUNG

from mlx_peft.config import schema
from mlx_peft.data import checked
from mlx_peft.data.checked import LIMIT, SEEN, WHOLE, Memory
from mlx_peft.data.seen import RECORD


def data(root: Path) -> schema.Data:
    return schema.Data(name="folder", root=root, cache=schema.Cache(folder=root.parent / "cache"))


def marks(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def test_all_memories_together_stay_within_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those go that were not read for longest; what is not of that kind is left alone."""
    size = 1000
    monkeypatch.setattr(checked, "LIMIT", 3 * (8 * size + 200))
    theirs = tmp_path / "cache" / "mlx-peft-cache" / "checked" / "theirs.whole"
    places = []
    for number in range(6):
        memory = Memory.of(data(tmp_path / str(number)), WHOLE)
        memory.keep(np.arange(size, dtype=np.uint64))
        assert memory.path is not None
        places.append(memory.path)
        os.utime(memory.path, (number, number))
        if number == 0:
            theirs.write_bytes(bytes(10**5))
    assert [path.exists() for path in places] == [False] * 3 + [True] * 3
    assert theirs.exists()
    big = Memory.of(data(tmp_path / "big"), WHOLE)
    big.keep(np.arange(10**4, dtype=np.uint64))
    assert big.path is not None and not big.path.exists()
    assert LIMIT >= 8 * 10**7


def test_a_memory_finds_what_it_kept_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two records at a time, one of which is left out."""
    monkeypatch.setattr(checked, "BLOCK", 2)
    rng = np.random.default_rng(0)
    kept = marks(7, 2**64 - 1, 3, 11, 5)
    records = np.frombuffer(rng.bytes(5 * RECORD.itemsize), RECORD)
    config = data(tmp_path / "images")
    Memory.of(config, SEEN).keep(kept, records, kept != 11)
    found = np.zeros(7, RECORD)
    known = Memory.of(config, SEEN).find(marks(3, 4, 2**64 - 1, 7, 0, 11, 3), found)
    assert known.tolist() == [True, False, True, True, False, False, True]
    assert found[known].tobytes() == records[[2, 1, 0, 2]].tobytes()
    assert not Memory.of(config, WHOLE).find(marks(3)).any()
    assert Memory.of(data(tmp_path / "other"), SEEN).find(marks()).size == 0


def test_what_is_seen_in_all_of_imagenet_is_remembered() -> None:
    assert 1_281_167 * (8 + RECORD.itemsize) < LIMIT


WRITER = """
import sys
from pathlib import Path
import numpy as np
from mlx_peft.config import schema
from mlx_peft.data.checked import WHOLE, Memory
config = schema.Data(name="folder", root=Path(sys.argv[1]), cache={"folder": sys.argv[1]})
for round in range(10):
    Memory.of(config, WHOLE).keep(np.arange(4000, dtype=np.uint64) + np.uint64(int(sys.argv[2])))
    found = Memory.of(config, WHOLE).marks
    assert len(found) == 4000 and found[-1] - found[0] == 3999, (len(found), round)
"""


def test_processes_that_write_one_memory_at_once_leave_it_whole(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(start)], stderr=subprocess.PIPE, text=True)
        for start in (10, 10**6)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=HUNG)
        assert writer.returncode == 0, errors
    assert [path.suffix for path in (tmp_path / "mlx-peft-cache" / "checked").iterdir()] == [".whole"]
