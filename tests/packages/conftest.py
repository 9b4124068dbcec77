"""What is packed, once for all tests, and a place for environments that are gigabytes large."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from packages.environments import ROOT, must


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The sdist and the wheel that is built from it, as ``python -m build`` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "source"
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    must([sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder, copy])
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return SimpleNamespace(sdist=sdist, wheel=wheel)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder beside the code. ``tmp_path`` may lie in memory, which an environment with PyTorch would fill."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="environment-") as folder:
        yield Path(folder)
