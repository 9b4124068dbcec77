"""docs/serving.md: its requests are sent to a server, and the files beside it fit what the server has."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documentation.snippets import ROOT, SNIPPETS, Snippet
from served_here import serving
from typer.main import get_command

from mlx_peft.cli.app import app

PAGE, FILES = "docs/serving.md", ROOT / "docs" / "serving"
WRITTEN = "http://127.0.0.1:8000"
CURL = shutil.which("curl")


def of_language(language: str) -> list[Any]:
    """The blocks of the page, each with its line for a name."""
    found = [one for one in SNIPPETS if (one.page, one.language) == (PAGE, language)]
    return [pytest.param(snippet, id=str(snippet)) for snippet in found]


@pytest.fixture
def address(world: Path) -> Iterator[str]:
    """Of a server of the folder that the page serves."""
    with serving(Path("clinics")) as found:
        yield found


@pytest.mark.skipif(CURL is None, reason="no curl here: apt install curl")
@pytest.mark.parametrize("snippet", of_language("sh"))
def test_every_request_is_answered(snippet: Snippet, address: str) -> None:
    text = snippet.text.replace("\\\n", " ").replace("|\n", "| ")
    for line in text.splitlines():
        assert WRITTEN in line
        command = re.sub(r"\bcurl\b", "curl -sS --fail-with-body", line.replace(WRITTEN, address))
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        answer = json.loads(done.stdout)
        assert answer and "error" not in answer


@pytest.mark.parametrize("snippet", of_language("python"))
def test_the_program_gets_its_answers(snippet: Snippet, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {}
    exec(compile(snippet.text.replace(WRITTEN, address), str(snippet), "exec"), given)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["north", "south"]
    assert len(given["vector"]) == 64 and given["picture"].startswith(b"\x89PNG")


def options_of_serve() -> set[str]:
    command: Any = get_command(app)
    return {name for parameter in command.commands["serve"].params for name in parameter.opts}


def words() -> dict[str, list[str]]:
    """What each of the files starts the server with."""
    container = (FILES / "Containerfile").read_text()
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(FILES / "mlx-peft.service")
    deployment, _ = yaml.safe_load_all((FILES / "kubernetes.yaml").read_text())
    (pod,) = deployment["spec"]["template"]["spec"]["containers"]
    entry = re.search(r"^ENTRYPOINT (.*)$", container, re.MULTILINE)
    assert entry is not None
    return {
        "Containerfile": json.loads(entry[1]),
        "mlx-peft.service": shlex.split(unit["Service"]["ExecStart"]),
        "kubernetes.yaml": ["mlx-peft", "serve", *pod["args"]],
    }


@pytest.mark.parametrize("file", ["Containerfile", "mlx-peft.service", "kubernetes.yaml"])
def test_a_file_starts_the_server_with_options_that_it_has(file: str) -> None:
    program, command, *rest = words()[file]
    assert Path(program).name == "mlx-peft" and command == "serve"
    assert {word for word in rest if word.startswith("--")} <= options_of_serve()


def test_probes_ask_what_there_is_and_ports_are_the_same(address: str) -> None:
    from mlx_peft.serve.settings import Settings

    deployment, service = yaml.safe_load_all((FILES / "kubernetes.yaml").read_text())
    template = deployment["spec"]["template"]
    (pod,) = template["spec"]["containers"]
    probes = [pod[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    for probe in probes:
        asked = ["curl", "-sS", "--fail", f"{address}{probe['path']}"]
        assert subprocess.run(asked, capture_output=True, timeout=60).returncode == 0
    (port,) = pod["ports"]
    assert {probe["port"] for probe in probes} == {port["name"]} == {service["spec"]["ports"][0]["targetPort"]}
    assert f"EXPOSE {port['containerPort']}\n" in (FILES / "Containerfile").read_text()
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["terminationGracePeriodSeconds"] > Settings().drain


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_one(tmp_path: Path) -> None:
    text = (FILES / "mlx-peft.service").read_text()
    (tmp_path / "mlx-peft.service").write_text(text.replace("/opt/mlx-peft/bin/mlx-peft", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "mlx-peft.service")], capture_output=True, text=True
    )
    own = [line for line in done.stderr.splitlines() if "mlx-peft.service" in line]
    assert own == []
