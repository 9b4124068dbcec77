"""Files of ``bench --out`` that people share: nothing personal in them, read with suspicion, and made one table."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlx_peft.checks import bench, devices
from mlx_peft.checks.bench import Settings, Timing
from mlx_peft.checks.busy import Others
from mlx_peft.cli.app import app
from mlx_peft.core.errors import UserError
from mlx_peft.report.devices import page

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, words)], obj="mlx", prog_name="mlx-peft")


def timing(name: str, version: str, seconds: float) -> Timing:
    return Timing(
        name, "lora", version, [seconds, 2 * seconds, 3 * seconds], 8 / seconds, None, None, None, 2**20, 2**30
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three contenders, of which one is a user's own."""
    timings = [timing("mlx", "mlx 0.32.4 (gpu)", 0.1), timing("torch", "torch 2.14.1 (cpu)", 0.2)]
    monkeypatch.setattr(bench, "run", lambda *_: [*timings, timing("janes-own", "secret 1", 0.3)])
    monkeypatch.setattr(devices, "processor", lambda: "Apple M2 Max")


def test_a_file_holds_the_figures_and_nothing_personal(
    measured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices.platform, "release", lambda: "6.18.44-janes-own")
    done = run("--out", "m2-max.json", "--busy")
    assert done.exit_code == 0, done.output
    text = Path("m2-max.json").read_text()
    found = json.loads(text)
    assert found["chip"] == "Apple M2 Max"
    assert [speed["contender"] for speed in found["benchmarks"][0]["speeds"]] == ["mlx", "torch"]
    assert found["benchmarks"][0]["speeds"][0]["median_seconds"] == pytest.approx(0.2)
    for personal in ("janes-own", str(tmp_path), str(Path.home()), platform.node()):
        assert personal not in text
    assert getpass.getuser() not in found["system"]
    assert devices.read(Path("m2-max.json")).memory_gib > 0


def test_a_chip_is_the_accelerator_that_a_framework_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "processor", lambda: "a processor")
    assert devices.chip(iter(["mlx 0.3 (cpu, reference BLAS: install OpenBLAS)", "torch 2 (cpu)"])) == "a processor"
    assert devices.chip(iter(["mlx 0.3 (gpu)", "torch 2.5 (NVIDIA H100 80GB HBM3)"])) == "NVIDIA H100 80GB HBM3"


def record(chip: str, seconds: float = 0.1) -> str:
    found = devices.record([(Settings(), [timing("mlx", "mlx 1 (gpu)", seconds)])], Others(True))
    return json.dumps(found.model_copy(update={"chip": chip}).model_dump(mode="json"))


def test_files_become_one_table_by_chip(tmp_path: Path) -> None:
    for name, chip in {"a": "Apple M10", "b": "Apple M9", "c": "a|b <script>"}.items():
        (tmp_path / f"{name}.json").write_text(record(chip))
    done = run("devices", tmp_path)
    assert done.exit_code == 0
    rows = [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]]
    assert rows == ["| Apple M9", "| Apple M10", r"| a\|b \<script>"]
    assert "lora r 8 | mlx 1 (gpu) | 80.0 | 100 |" in done.stdout
    out = tmp_path / "table.md"
    assert run("devices", tmp_path, "--out", out).exit_code == 0
    assert out.read_text() == page(devices.read_all(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "is no file of a benchmark: .*chip: missing"),
        ("[1]", "should hold a JSON object"),
        ("{", "not readable as JSON"),
        (record("x").replace('"chip": "x"', '"chip": ["x"]'), "chip: should be text"),
        (record("x").replace('"mlx-peft-bench"', '"another"'), "kind: unknown"),
        (record("x").replace('"cpus": ', '"user": "jane", "cpus": '), "user: unknown key"),
        (record("x").replace('"rank": 8', '"rank": 1e999'), "rank"),
        (record("x" * 10**5), "chip: should be text of at most 120"),
    ],
)
def test_what_is_none_of_these_files_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError, match=said):
        devices.read_all(tmp_path)
    assert run("devices", tmp_path).exit_code == 2


def test_without_files_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no file of a benchmark"):
        devices.read_all(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        devices.read_all(tmp_path / "none")
    assert "should end in .json" in run("--out", tmp_path / "x.txt").stderr


def test_the_page_is_what_the_command_makes_of_the_files_once_there_are_some() -> None:
    table = RESULTS / "devices.md"
    files = list((RESULTS / "devices").glob("*.json"))
    assert table.exists() == bool(files)
    assert not files or table.read_text() == page(devices.read_all(RESULTS / "devices"))
