"""Clean environments: which Pythons are at hand, and what is installed into one and run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with import-linter

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
PATIENCE = 3600
"""Seconds after which a program is taken to hang, on a machine that does much else, and may be stopped meanwhile."""
UV = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


def pythons() -> dict[str, Path]:
    """Interpreters of the supported versions: the one that runs, those on the path, those of pyenv."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in VERSIONS:
        own = [sys.executable] if version == "{}.{}".format(*sys.version_info) else []
        others = [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
        for candidate in (*own, shutil.which(f"python{version}"), *others):
            if candidate and _version(candidate) == version:
                found[version] = Path(candidate)
                break
    return found


def _version(python: str) -> str | None:
    """Of an interpreter; None where it is none, as a shim of pyenv that stands for nothing."""
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def alone(**more: str) -> dict[str, str]:
    """The environment's variables, without what would lead a process to this checkout or into this environment."""
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in names} | more


def must(command: list[str | Path], **options: object) -> str:
    """What a command prints. Fails with all that it said where its status is not 0."""
    done = subprocess.run(command, capture_output=True, text=True, **{"env": alone(), **options})
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """One that has nothing but what is installed into it."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @classmethod
    def made(cls, folder: Path, python: Path) -> Environment:
        assert UV, "uv is missing: it comes with the extra dev"
        must([UV, "venv", "--quiet", "--no-config", "--python", python, folder])
        return cls(folder)

    def install(self, *what: str | Path) -> dict[str, str]:
        """Installs from wheels alone, so that no compiler is asked for; gives what is there then, with its versions."""
        pip = [UV, "pip"]
        where = ["--quiet", "--no-config", "--python", self.scripts / "python"]
        must([*pip, "install", "--no-build", *where, *what])
        lines = must([*pip, "freeze", *where]).splitlines()
        return {name.lower(): version for name, _, version in (re.split("(==| @ )", line) for line in lines)}

    def run(self, place: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A program of it, in the folder ``place``."""
        command = [self.scripts / program, *arguments]
        return subprocess.run(command, cwd=place, env=alone(), capture_output=True, text=True, timeout=PATIENCE)

    def must_run(self, place: Path, program: str, *arguments: str) -> str:
        return must([self.scripts / program, *arguments], cwd=place, timeout=PATIENCE)


PYTHONS = pythons()
OLDEST, NEWEST = min(PYTHONS, key=lambda name: int(name[2:])), max(PYTHONS, key=lambda name: int(name[2:]))


def with_the_oldest(wheel: Path, folder: Path, extra: str | None = None) -> Environment:
    """The wheel with the oldest releases that its requirements allow, on the oldest Python that is at hand.

    Fails where a requirement says a lower one than can be installed.
    """
    environment = Environment.made(folder / "lowest", PYTHONS[OLDEST])
    extras = [] if extra is None else ["--extra", extra]
    asked = ["--resolution", "lowest-direct", *extras, "--requirements", ROOT / "pyproject.toml"]
    there = environment.install(*asked)
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"].get(extra, [])
    bounds = dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?>=([\w.]+)", "\n".join(lines), re.MULTILINE))
    named = {re.sub(r"[-_.]+", "-", name).lower(): Version(bound) for name, bound in bounds.items()}
    higher = {name: there[name] for name, bound in named.items() if name in there and _public(there[name]) != bound}
    assert higher == {}, "these are the oldest that can be installed: the bounds are lower"
    environment.install("--no-deps", wheel)
    return environment


def _public(version: str) -> Version:
    """Without what names a build: ``2.4.0+cpu`` is 2.4.0."""
    return Version(Version(version).public)
