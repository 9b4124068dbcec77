"""Runs whose files were changed in every way: `report` shows what can be shown, and names the others."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from halves import daily
from rich.console import Console
from typer.testing import CliRunner

from mlx_peft.cli.app import app
from mlx_peft.core.errors import UserError
from mlx_peft.report import gather, study, tables, vtab
from mlx_peft.report.rows import drawn

RESULT: dict[str, Any] = {
    "run_id": "0123456789ab",
    "status": "finished",
    "backend": "mlx",
    "model": "vit_tiny_patch16_224",
    "method": "lora",
    "dataset": "vtab-1k:kitti",
    "seed": 0,
    "metrics": {
        "val": {"top1": 0.5, "loss": 1.5, "count": 20},
        "test": {"top1": 0.4, "auroc": 0.7, "loss": 2.0, "count": 21},
    },
    "parameters": {"adapter": 40512, "head": 970, "trainable": 41482, "total": 490000},
    "time": {"train_seconds": 21.5, "epoch_seconds": 7.2, "images_per_second": 590.4},
    "memory": {"peak_bytes": 312_400_000},
    "stored": {"total_bytes": 22_000_000},
    "selected": {"epoch": 2, "by": "val.top1"},
    "splits": {name: {"size": 800, "sha256": "0" * 64} for name in ("train", "val", "test")},
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "step": {"name": "four-bits", "quantize": {"bits": 4}},
    "of": "ba9876543210",
    "notes": [],
}
RECORDS: list[dict[str, Any]] = [
    {"step": 1, "epoch": 1, "loss": 1.0, "lr": 0.1, "rank/blocks.0.attn.qkv": 4},
    *({"step": e, "epoch": e, "train_loss": 1 / e, "val_top1": 0.1 * e, "val_loss": 1.0} for e in (1, 2, 3)),
]
CONFIG = "seed: 0\n"
VALUES: tuple[Any, ...] = (
    *(10**400, -(10**30), 2**63, -1, 0, 1.5, 1e300, -1e-300, float("nan"), float("inf"), -float("inf")),
    *(True, False, None, [], [[]], {}, {"a": [1]}, [0.5], "", "0.5", "nan", "a" * 5000),
    *("\x1b[2J\x9b31m", "[bold]x[/bold] [/nothing]", "=1+1", "a|b\nc", "$\\frac{$", "\u202egnp", "\ud800", "../../x"),
)
WHOLE = (
    *(b"", b"[]", b"3", b"{}", b"null", b'"text"', b"{", b"[" * 200_000, b"\xff\xfe\x00", b"\x00" * 50),
    *(b"1" * 5000, b'{"run_id": 3}', b'{"run_id": "a", "run_id": []}', b"\xef\xbb\xbf{}"),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON document, the document's own excepted."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    node = document
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return document


def without(document: Any, place: tuple[Any, ...]) -> Any:
    document = copy.deepcopy(document)
    node = document
    for key in place[:-1]:
        node = node[key]
    del node[place[-1]]
    return document


def tampered() -> list[tuple[str, bytes]]:
    """A file of a run, and what stands in it: every value in every way, and the whole in others."""
    cases: list[tuple[str, bytes]] = []
    for file, document in (("result.json", RESULT), ("metrics.jsonl", RECORDS)):
        dump: Callable[[Any], bytes] = as_result if file == "result.json" else as_records
        for place in places(document):
            cases += [(file, dump(changed(document, place, value))) for value in VALUES]
            cases.append((file, dump(without(document, place))))
        cases += [(file, content) for content in WHOLE]
    return cases + [("config.yaml", content) for content in WHOLE]


def as_result(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_records(document: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in document).encode()


CASES = tampered()
CHANGES = 120
"""Of every run of the tests; in slow ones there are more, and the figures are drawn of some hundreds."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run that is whole, and one to be changed."""
    for name in ("whole", "changed"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG)
        (folder / "metrics.jsonl").write_bytes(as_records(RECORDS))
    (tmp_path / "runs" / "whole" / "result.json").write_bytes(as_result(RESULT | {"seed": 1}))
    return tmp_path / "runs"


def put(runs: Path, file: str, content: bytes) -> None:
    (runs / "changed" / "result.json").write_bytes(as_result(RESULT))
    (runs / "changed" / "metrics.jsonl").write_bytes(as_records(RECORDS))
    (runs / "changed" / "config.yaml").write_text(CONFIG)
    (runs / "changed" / file).write_bytes(content)


def check(result: Any, runs: Path) -> None:
    """A report that shows the whole run, and the other one too or its name with what is wrong."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "whole" in result.stdout
    left_out = "left out, damaged: changed: " in result.stderr
    assert result.exit_code == (1 if left_out else 0)
    assert left_out == ("Left out, damaged: changed: " in result.stdout)
    assert not set(result.output) & set("\x1b\x9b\u202e\ud800")


@pytest.mark.parametrize("changes", [CHANGES, pytest.param(10 * CHANGES, marks=pytest.mark.slow)])
def test_every_change_is_shown_as_what_it_is_or_named_and_left_out(runs: Path, changes: int) -> None:
    console = Console(quiet=True, force_terminal=True)
    read, damaged = 0, 0
    for number, (file, content) in enumerate(random.Random(0).sample(CASES, changes)):
        put(runs, file, content)
        found = gather.gathered(runs)
        assert "whole" in [run.name for run in found.finished]
        assert len(found.finished) + len(found.damaged) == 2
        if number % 10 == 0:
            console.print(drawn(tables.each(found.finished)))
        tables.markdown(found.finished, found.damaged).encode()
        tables.to_csv(found.finished).encode()
        vtab.lines(study.examined(found).board)
        read, damaged = read + len(found.finished) - 1, damaged + len(found.damaged)
    assert min(read, damaged) > changes / 6


@pytest.mark.parametrize(("file", "content"), random.Random(1).sample(CASES, 2), ids=range(2))
def test_the_command_ends_without_a_traceback(runs: Path, tmp_path: Path, file: str, content: bytes) -> None:
    put(runs, file, content)
    check(CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "out")]), runs)
    assert (tmp_path / "out" / "figures" / "curves-double.png").exists()


@pytest.mark.slow
def test_the_command_ends_without_a_traceback_however_a_run_was_changed(runs: Path, tmp_path: Path) -> None:
    for file, content in random.Random(2).sample(CASES, 200):  # each draws every figure
        put(runs, file, content)
        check(CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "out")]), runs)


def test_a_folder_in_the_place_of_a_file_and_a_pipe_are_named(runs: Path) -> None:
    put(runs, "metrics.jsonl", b"")
    for name in ("result.json", "metrics.jsonl"):
        for make in (Path.mkdir, os.mkfifo):
            (runs / "changed" / name).unlink()
            make(runs / "changed" / name)  # type: ignore[operator]
            assert [one.reason for one in gather.gathered(runs).damaged] == [f"{name} is not a file"]
            (shutil.rmtree if make is Path.mkdir else os.unlink)(runs / "changed" / name)
            put(runs, "config.yaml", b"")


@pytest.mark.parametrize("name", daily(["config.yaml", "predictions.npz", "SHA256SUMS.txt"], "predictions.npz"))
def test_nobody_waits_for_a_pipe_beside_a_result(runs: Path, tmp_path: Path, name: str) -> None:
    put(runs, "metrics.jsonl", as_records(RECORDS))
    (runs / "changed" / name).unlink(missing_ok=True)
    os.mkfifo(runs / "changed" / name)
    check(CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "out")]), runs)


def test_a_link_in_the_place_of_a_configuration_shows_nobody_s_file(runs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("password: hunter2\n")
    put(runs, "metrics.jsonl", as_records(RECORDS))
    (runs / "changed" / "config.yaml").unlink()
    (runs / "changed" / "config.yaml").symlink_to(secret)
    check(CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "out")]), runs)
    assert "hunter2" not in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_where_no_run_is_whole_all_are_named(runs: Path) -> None:
    put(runs, "result.json", b'{"run_id": "a", "metrics": []}')
    shutil.rmtree(runs / "whole")
    with pytest.raises(
        UserError,
        match=r"no finished run .*\n  left out, damaged: changed: result.json is not a run's: metrics: should be a "
        r"section of keys and values or null, not \[\]$",
    ):
        gather.gathered(runs)
