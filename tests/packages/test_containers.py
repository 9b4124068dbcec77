"""The files of which containers are made: what can be known of them without making one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from packages.environments import PROJECT, ROOT, UV, must

HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
FILES = [ROOT / "Dockerfile", ROOT / "docs" / "serving" / "Containerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text(FILES[0].read_text().replace("USER 1000", "USER root"))
    done = subprocess.run([HADOLINT, "--no-color", broken], capture_output=True, text=True)
    assert done.returncode == 1 and "root" in done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_installed_and_copied_is_there(file: Path) -> None:
    """Its extras are of this package, and what the build reads is not kept from it."""
    text = file.read_text()
    (extras,) = re.findall(r"\[([\w,]+)\]['\"]? *\\?$", text, re.MULTILINE)
    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}
    assert set(re.findall(r"^FROM python:(\S+)-slim", text, re.MULTILINE)) == {"3.12"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {
        "pyproject.toml",
        PROJECT["readme"],
        *PROJECT["license-files"],
        "mlx_peft",
        "torch_ref",
        "convert",
    } <= let_in


@pytest.mark.slow
def test_a_wheel_can_be_built_of_what_is_let_in(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            there = ROOT / line[1:]
            copy = shutil.copytree if there.is_dir() else shutil.copy
            source.mkdir(exist_ok=True)
            copy(there, source / line[1:])
    must([UV, "build", "--quiet", "--no-config", "--wheel", "--out-dir", tmp_path, source])
    assert len([*tmp_path.glob("*.whl")]) == 1
