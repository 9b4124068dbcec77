"""GitHub's workflows and issue forms: what can be known of them without GitHub."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_peft.cli.app import app

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
ACTIONLINT = Path(sysconfig.get_path("scripts")) / "actionlint"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text())


def scripts(workflow: dict[str, Any]) -> Iterator[str]:
    return (step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step)


def all_scripts() -> list[str]:
    return [script for path in WORKFLOWS for script in scripts(read(path.stem))]


def test_actionlint_finds_nothing() -> None:
    done = subprocess.run([ACTIONLINT, "-no-color", *WORKFLOWS], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_actionlint_would_find_something(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text((GITHUB / "workflows" / "docs.yml").read_text().replace("needs: build", "needs: built"))
    done = subprocess.run([ACTIONLINT, "-no-color", broken], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "built" in done.stdout


def test_every_target_and_script_that_is_run_is_there() -> None:
    targets = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE), ".venv/.dev-ready"}
    text = "\n".join(all_scripts())
    made = {line.split()[-1] for line in re.findall(r"^make .*$", text, re.MULTILINE)}
    assert {"lint", "test", "test-slow", "docs", "packages", "notebooks", "demo"} <= made <= targets
    assert {*re.findall(r"\.github/[\w.]+", text)} == {".github/metal.py", ".github/torch_ref.sh"}


@pytest.mark.parametrize("script", range(len(all_scripts())))
def test_every_script_is_one_of_the_shells(script: int) -> None:
    text = re.sub(r"\$\{\{.*?\}\}", "x", all_scripts()[script])
    assert subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0


def test_every_supported_python_is_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert read("tests")["jobs"]["linux"]["strategy"]["matrix"]["python"] == supported
    assert read("release")["jobs"]["try"]["strategy"]["matrix"]["python"] == supported
    assert {*read("nightly")["jobs"]["packages"]["steps"][1]["with"]["python-version"].split()} == {*supported}


def test_nothing_is_published_with_a_password() -> None:
    jobs = read("release")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and jobs["publish"]["environment"]["name"] == "pypi"
    assert all("secrets." not in path.read_text() for path in WORKFLOWS)
    assert all(read(path.stem)["permissions"] == {"contents": "read"} for path in WORKFLOWS)


def test_every_job_ends_and_keeps_no_credentials() -> None:
    jobs = [job for path in WORKFLOWS for job in read(path.stem)["jobs"].values()]
    assert all(0 < job["timeout-minutes"] <= 360 for job in jobs)
    checkouts = [step for job in jobs for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert checkouts and all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("tag", ["v0.1.0", "v0.1.1"])
def test_a_tag_that_is_not_the_version_publishes_nothing(tag: str, tmp_path: Path) -> None:
    (script,) = (text for text in scripts(read("release")) if "TAG#v" in text and "pyproject" in text)
    (tmp_path / "pyproject.toml").write_text('version = "0.1.0"\n')
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env={**os.environ, "TAG": tag})
    assert (done.returncode == 0) == (tag == "v0.1.0")


@pytest.mark.slow
def test_a_system_without_mlx_does_what_its_job_asks(tmp_path: Path) -> None:
    """The script of the job on Windows, here, where MLX is not to be found."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "mlx.py").write_text("raise ImportError('not here')\n")
    paths = os.pathsep.join((str(hidden), os.environ.get("PYTHONPATH", str(ROOT))))
    programs = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", GITHUB / "torch_ref.sh", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": paths, "PATH": programs}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "timm" / "model.safetensors").is_file()


@pytest.mark.parametrize("works", [True, False])
def test_mlx_computes_on_the_cpu_where_its_device_does_not(works: bool, capsys: pytest.CaptureFixture[str]) -> None:
    given = runpy.run_path(str(GITHUB / "metal.py"))
    main = given["main"]
    main.__globals__["TRY"] = given["TRY"] if works else "raise RuntimeError('no Metal')"
    main()
    out, err = capsys.readouterr()
    if works:
        assert out == "" and "its own device" in err
        return
    assert "no Metal" in err
    name, _, folder = out.strip().partition("=")
    try:
        asked = [sys.executable, "-c", "import mlx.core as mx; print(mx.default_device())"]
        done = subprocess.run(asked, env={**os.environ, name: folder}, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    assert name == "PYTHONPATH" and "cpu" in done.stdout


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {*form} == {"name", "description", "labels", "body"}
    kinds = {"textarea", "input", "dropdown", "checkboxes", "markdown"}
    assert all(part["type"] in kinds and part["attributes"]["label"] for part in form["body"])
    names = [part["id"] for part in form["body"]]
    assert len(names) == len({*names})


def test_a_fault_and_a_device_come_with_what_doctor_says() -> None:
    for name in ("fault", "device"):
        form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
        (doctor,) = (part for part in form["body"] if part["id"] == "doctor")
        assert "mlx-peft doctor --json" in doctor["attributes"]["label"] and doctor["validations"]["required"]


def test_a_form_names_only_commands_that_there_are() -> None:
    named = {name for path in FORMS for name in re.findall(r"`mlx-peft (\w+)", path.read_text())}
    assert named <= {command.name or command.callback.__name__ for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }
