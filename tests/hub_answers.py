"""What a command that sends to the hub, or fetches from it, answers and leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def done(result: Any) -> Any:
    """What a command that did its work gave."""
    assert result.exit_code == 0, result.output
    return result


def failed(result: Any) -> str:
    """What a command that refused said; its status is 2 and no traceback is there."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def left(folder: Path) -> set[str]:
    """What lies in a folder besides the hub's cache and the test's own files."""
    return {path.name for path in folder.iterdir()} - {"cache", "image.png"}


def changing(hub: Any) -> list[str]:
    """The requests that would make or change something."""
    return [request for request in hub.requests if not request.startswith(("GET", "HEAD", "POST /api/validate-yaml"))]
