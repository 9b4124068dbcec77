"""Files changed on purpose."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.core.sums import SUMS


def by_hand(path: Path, content: str | bytes) -> None:
    """Writes a file, and takes the digests away that would tell it from what was written before."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (path.parent / SUMS).unlink(missing_ok=True)
