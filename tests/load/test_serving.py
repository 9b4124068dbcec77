"""The load test itself, for a few seconds: its server, its clients and its table work together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_answer_of_a_short_load_is_the_bank_s(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "tests" / "load" / "serving.py"), str(tmp_path)]
    words += ["--seconds", "5", "--saturate", "3", "--warm", "1"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| image by image, saturated |" in done.stdout and "not the offline bank's: 0." in done.stdout
