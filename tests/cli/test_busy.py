"""No command records times on a machine that others keep busy, unless it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from machines import Machine
from PIL import Image

from mlx_peft.checks import bench_data, bench_inference, busy, turns

MUCH = 2 * busy.QUIET
TIMED: dict[str, list[str]] = {
    "bench": [],
    "bench tokens": ["tome r=2", "--backend", "torch"],
    "bench inference": ["--only", "torch"],
    "bench data": ["photos"],
}
"""Each command that records times, and its arguments."""


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed."""

    def fail(*_: Any) -> None:
        raise AssertionError("something was timed")

    monkeypatch.setattr(turns, "workers", fail)
    monkeypatch.setattr(bench_inference, "write", fail)
    monkeypatch.setattr(bench_data, "rounds", fail)


@pytest.mark.parametrize("words", TIMED)
def test_every_command_that_records_times_refuses_a_busy_machine(
    words: str, command: Any, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(Path("photos", name, "0.png"))
    monkeypatch.setattr(busy, "Others", Machine(MUCH).others)
    refused = command(*words.split(), *TIMED[words])
    assert refused.exit_code == 2 and refused.stdout == ""
    said = " ".join(refused.stderr.split())
    assert "error: other processes take 20% of the " in said and said.endswith("(--busy)")
    recorded = command(*words.split(), *TIMED[words], "--busy")
    assert str(recorded.exception) == "something was timed"


def test_a_mistake_is_told_of_before_the_machine_is_looked_at(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "Others", Machine(MUCH).others)
    assert "did you mean 'vit_tiny_patch16_224'" in command("bench", "--model", "vit_tinny_patch16_224").stderr
