"""What is packed holds all that it needs and no more, and works where nothing else is installed, on each Python."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from types import SimpleNamespace

import pytest
from packages.environments import (
    NEWEST,
    PROJECT,
    PYTHONS,
    ROOT,
    UV,
    Environment,
    alone,
    must,
    with_the_oldest,
)

PACKED = {"convert": "convert", "mlx_peft": "mlx_peft", "torch_ref": "torch_ref"} | {
    f"experiments/{kind}": f"mlx_peft/recipes/{kind}" for kind in ("configs", "models", "suites")
}
"""Folders of the repository, each with its place in the wheel."""


def tracked() -> list[str]:
    return subprocess.check_output(["git", "ls-files", *PACKED], cwd=ROOT, text=True).splitlines()


@pytest.fixture(scope="module", params=PYTHONS)
def installed(packed: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, request) -> Environment:
    """The wheel in an environment of its own, as ``pip install mlx-peft`` leaves it."""
    environment = Environment.made(tmp_path_factory.mktemp("clean") / request.param, PYTHONS[request.param])
    environment.install(packed.wheel)
    return environment


@pytest.fixture
def lowest(packed: SimpleNamespace, tmp_path: Path) -> Environment:
    """The wheel with the oldest releases that its requirements allow, on the oldest Python that is at hand."""
    return with_the_oldest(packed.wheel, tmp_path)


def must_work(environment: Environment, place: Path) -> None:
    """The commands of somebody's first minutes, without PyTorch and without a network."""
    assert "Fine-tune a model" in environment.must_run(place, "mlx-peft", "--help")
    assert environment.must_run(place, "mlx-peft", "--version") == f"mlx-peft {PROJECT['version']}\n"
    assert "quickstart" in environment.must_run(place, "mlx-peft", "ls", "recipes")
    assert "lora" in environment.must_run(place, "mlx-peft", "ls", "methods")
    for method in ("linear", "lora"):
        trained = json.loads(
            environment.must_run(
                place, "mlx-peft", "train", "quickstart", f"method.name={method}", "train.epochs=1", "--out",
                f"runs/{method}", "--json",
            )
        )  # fmt: skip
        assert 0.2 < trained["metrics"]["test"]["top1"] <= 1
    environment.must_run(place, "mlx-peft", "convert", "runs/lora", "timm", "--to", "timm")
    assert (place / "timm" / "model.safetensors").is_file()
    table = environment.must_run(place, "mlx-peft", "report", "runs", "--out", "report")
    assert "lora" in table and (place / "report").is_dir()


@pytest.mark.slow
def test_the_sdist_has_what_the_wheel_is_made_of_and_no_tests(packed):
    with tarfile.open(packed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    usual = {"PKG-INFO", "README.md", "LICENSE", "pyproject.toml", ".gitignore", "CHANGELOG.md", "CITATION.cff"}
    assert names == {*tracked(), *usual}


@pytest.mark.slow
def test_the_wheel_has_every_module_and_what_is_shipped_and_nothing_else(packed):
    with zipfile.ZipFile(packed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(metadata).decode())
    places = [(folder, place) for folder, place in PACKED.items()]
    expected = {
        place + file.removeprefix(folder)
        for file in tracked()
        for folder, place in places
        if file.startswith(f"{folder}/")
    }
    assert names == expected
    assert packed.wheel.name.endswith("-py3-none-any.whl"), "of any machine: nothing is compiled for it"
    assert facts["License-Expression"] == "MIT" and facts["Requires-Python"] == "<3.14,>=3.10"
    assert {*facts.get_all("Provides-Extra")} == {*PROJECT["optional-dependencies"]}


@pytest.mark.slow
def test_it_works_in_a_clean_environment(installed, tmp_path):
    must_work(installed, tmp_path)


@pytest.mark.slow
def test_it_works_with_the_oldest_releases_that_it_allows(lowest, tmp_path):
    must_work(lowest, tmp_path)


@pytest.mark.slow
def test_what_an_extra_is_missing_for_names_it(installed, tmp_path):
    done = installed.run(tmp_path, "torch-ref", "train", "quickstart")
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'mlx-peft[torch]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["uvx", "pipx"])
def test_it_runs_without_being_installed(packed, runner, tmp_path):
    assert UV
    uvx = [UV, "tool", "run", "--no-config", "--python", PYTHONS[NEWEST]]
    command = {
        "uvx": [*uvx, "--from", packed.wheel],
        "pipx": [*uvx, "pipx", "run", "--python", PYTHONS[NEWEST], "--spec", packed.wheel],
    }
    assert must([*command[runner], "mlx-peft", "--version"]) == f"mlx-peft {PROJECT['version']}\n"
    assert "quickstart" in must([*command[runner], "mlx-peft", "ls", "recipes"])


PLATFORMS = ("aarch64-apple-darwin", "x86_64-manylinux_2_35", "aarch64-manylinux_2_35", "x86_64-pc-windows-msvc")
"""MLX's wheels are for macOS 14 and glibc 2.35, and later ones."""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_platform_needs_a_compiler(platform, version, tmp_path):
    """Every requirement has a wheel for it; of PyTorch's extra and the server's too."""
    made = tmp_path / "all.txt"
    asked = ["--no-build", "--python-platform", platform, "--python-version", version]
    extras = ["--extra", "torch", "--extra", "serve"]
    command = [UV, "pip", "compile", "--quiet", "--no-config", *asked, *extras, ROOT / "pyproject.toml", "-o", made]
    must(command, env=alone(MACOSX_DEPLOYMENT_TARGET="14.0"))
    lines = made.read_text()
    assert ("\nmlx==" in lines) == ("windows" not in platform)


def test_all_has_every_extra_that_is_for_users():
    extras = PROJECT["optional-dependencies"]

    def held(name: str) -> set[str]:
        found = re.findall(r"mlx-peft\[([\w,]+)\]", "\n".join(extras[name]))
        return {name}.union(*(held(extra) for names in found for extra in names.split(",")))

    assert held("all") == {*extras} - {"dev", "docs"} and held("dev") == {*extras}


def test_a_message_names_an_extra_that_there_is():
    named = {
        name
        for package in ("mlx_peft", "torch_ref", "convert")
        for path in (ROOT / package).rglob("*.py")
        for names in re.findall(r"mlx-peft\[([\w,]+)\]", path.read_text())
        for name in names.split(",")
    }
    assert {"torch", "ray"} <= named <= {*PROJECT["optional-dependencies"]}


def test_the_version_is_one():
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(PROJECT['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
