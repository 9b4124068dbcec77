"""``metrics.jsonl`` while a run writes it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import to_json
from mlx_peft.core.writing import disk_errors
from mlx_peft.training.run import Record


class MetricsFile:
    """``metrics.jsonl``, open for appending from a known length on."""

    def __init__(self, path: Path, length: int) -> None:
        """Cuts off what lies beyond ``length`` bytes. Raises UserError where there is less."""
        with disk_errors(path):
            self._file = open(path, "ab")  # noqa: SIM115
        if self._file.tell() < length:
            raise UserError(f"{path} is shorter than the checkpoint says: someone changed it; the run cannot go on")
        self._file.truncate(length)
        self._file.seek(length)  # truncating moves no position, and that is what sync returns
        self._path = path
        self._digest = hashlib.sha256(path.read_bytes())

    def write(self, record: Record) -> None:
        line = f"{to_json(record, indent=None, ascii=True)}\n".encode()
        with disk_errors(self._path):
            self._file.write(line)
            self._file.flush()
        self._digest.update(line)

    def sync(self) -> tuple[int, str]:
        """Puts all on the disk and returns the length in bytes, and their SHA-256."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())
        return self._file.tell(), self._digest.hexdigest()

    def close(self) -> None:
        with disk_errors(self._path):  # which tries again to write what did not fit
            self._file.close()
