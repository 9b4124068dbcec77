"""What Linux's control groups leave a process, of both of their versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def around(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that this process is in, and of those around them, with their version."""
    for line in text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        place = root / path.strip("/")
        for group in (place, *place.parents):
            if group.is_relative_to(root):
                yield group, 1 if controllers else 2


def text(path: Path) -> str:
    """What a file of the kernel's says; nothing where there is none."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
