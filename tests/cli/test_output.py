"""What commands print and write, where names are hostile, encodings poor, readers gone, disks full, and time is up."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from halves import daily
from PIL import Image

from mlx_peft.report import evaluation
from mlx_peft.tasks.single_label import SINGLE_LABEL

PROGRAM = (sys.executable, "-m", "mlx_peft")
HOSTILE = "\x1b]0;owned\x07[bold]cat[/bold]\u202e|\n=cmd()"
SHOWN = r"\x1b]0;owned\x07[bold]cat[/bold]\u202e|\n=cmd()"
UNDECODABLE = os.fsdecode(b"caf\xe9")


def finish(folder: Path, **more: Any) -> Path:
    """A run's folder with a result that is enough for a table."""
    folder.mkdir(parents=True)
    result = {"run_id": "0", "method": "lora", "model": "vit_tiny_patch16_224", "metrics": {"test": {"top1": 0.5}}}
    by_hand(folder / "result.json", json.dumps(result | more))
    return folder


def ended(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, **options)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Stands for a full disk. Python would keep what it compiles there, cut off, and read it ever after."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_predictions_of_a_hostile_class_are_shown_and_not_obeyed(command, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = SimpleNamespace(notes=(), task=SINGLE_LABEL, model=None, base=None, recipe=None, classes=())
    answer = {"image": f"{UNDECODABLE}.png", "predictions": [{"class": HOSTILE, "probability": 0.5}]}
    monkeypatch.setattr("mlx_peft.artifacts.load.load_run", lambda *_, **__: loaded)
    monkeypatch.setattr("mlx_peft.artifacts.predict.answers", lambda *_: [answer])
    Image.new("RGB", (2, 2)).save(Path(f"{UNDECODABLE}.png"))
    assert command("predict", "run", f"{UNDECODABLE}.png").stdout == rf"caf\xe9.png   50.0 %  {SHOWN}" + "\n"
    document = command("predict", "run", f"{UNDECODABLE}.png", "--json").stdout_bytes
    assert json.loads(document.decode("utf-8")) == [answer]
    assert b"\x1b" not in document


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_table_of_hostile_names_is_shown_and_not_obeyed(command, tmp_path: Path, options: tuple[str, ...]) -> None:
    finish(tmp_path / "runs" / UNDECODABLE, dataset=HOSTILE)
    done = command("report", "runs", "--out", "out", *options)
    assert done.exit_code == 0, done.output
    assert not set(done.output) & set("\x1b\x07\u202e")
    if options:
        (row,) = json.loads(done.stdout)
        assert (row["run"], row["dataset"]) == (UNDECODABLE, HOSTILE)
    (row,) = csv.DictReader((tmp_path / "out" / "table.csv").read_text("utf-8").splitlines())
    assert (row["run"], row["dataset"]) == (r"caf\xe9", SHOWN)


def test_names_that_are_not_utf8_leave_as_escapes_whatever_is_called_so(command, tmp_path: Path) -> None:
    """The folder that is looked through, one of two runs that is damaged, and the folder that is written."""
    finish(tmp_path / UNDECODABLE / UNDECODABLE)
    (finish(tmp_path / UNDECODABLE / f"2{UNDECODABLE}") / "metrics.jsonl").write_text("no")
    done = command("report", UNDECODABLE, "--out", f"out{UNDECODABLE}")
    assert done.exit_code == 1, done.output
    assert r"caf\xe9/table.md" in done.stderr
    for name in ("table.md", "table.csv"):
        assert r"caf\xe9" in (tmp_path / f"out{UNDECODABLE}" / name).read_text("utf-8").replace("\\\\", "\\")


def test_the_confusion_of_hostile_classes_is_no_formula(tmp_path: Path) -> None:
    details = {"classes": ["=1+1", "-0.5", HOSTILE], "reliability": {"count": [1], "confidence": [1], "accuracy": [1]}}
    paths = evaluation.write(tmp_path, "test", {"ece": 0.0}, details, np.diag([-1, 2, 3]))
    table = next(path for path in paths if path.suffix == ".csv")
    head, *rows = csv.reader(table.read_text("utf-8").splitlines())
    assert head == ["true class", "'=1+1", "-0.5", SHOWN]
    assert rows[0] == ["'=1+1", "-1", "0", "0"]


REPORTING = """
import sys
from mlx_peft.cli import main
for options in [], ["--json"]:
    sys.argv[1:] = ["report", sys.argv[1], *options]
    main()
    print("AND", flush=True)
    sys.argv[1:] = sys.argv[2:3]
"""
"""A table and JSON: two commands in one process, which takes longer to begin than both."""


@pytest.mark.parametrize("encoding", daily(["ascii", "latin-1", "utf-8"], "latin-1"))
def test_no_encoding_is_too_poor_for_what_is_printed(tmp_path: Path, encoding: str) -> None:
    finish(tmp_path / "runs" / f"猫{UNDECODABLE}", seed=None)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    command = [sys.executable, "-c", REPORTING, tmp_path / "runs"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    plain, found, rest = done.stdout.split(b"AND\n")
    assert rest == b""
    # Of a stream that calls itself ASCII, click makes one of UTF-8.
    assert (rb"\u732b" if encoding == "latin-1" else "猫".encode()) in plain
    assert [row["run"] for row in json.loads(found.decode("utf-8"))] == [f"猫{UNDECODABLE}"]


@pytest.mark.parametrize(
    "arguments",
    daily([("ls", "models"), ("ls", "models", "--json"), ("cat", "quickstart"), ("--help",)], ("ls", "models")),
)
def test_a_reader_that_is_gone_is_told_nothing(arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)  # as soon as `| head -1` has its line
    done = ended(*arguments, stdout=write)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in (1, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("arguments", daily([("ls", "methods"), ("ls", "methods", "--json")], ("ls", "methods")))
def test_a_full_disk_under_standard_output_is_said(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = ended(*arguments, stdout=full)
    assert done.stderr == b"error: standard output cannot be written: No space left on device\n"
    assert done.returncode == 2


def test_a_full_disk_leaves_no_half_report_recipe_or_sheet(command, tmp_path: Path) -> None:
    finish(tmp_path / "runs" / "a")
    for number, name in enumerate(("cat", "dog") * 5):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / name / f"{number}.png")
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {name: vit_tiny_patch16_224, weights: none}\nmethod: {name: linear}\n"
        f"data: {{name: folder, root: {tmp_path / 'images'}, split: {{val: 0, test: 0}}}}\n"
    )
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for arguments in (
        ("report", "runs", "--out", "out"),
        ("cp", "quickstart", "copy.yaml"),
        ("data", "check", "folder", "root=images", "--sheet", "sheet.png"),
        ("data", "preview", config, "--out", "preview.png"),
    ):
        with no_file_above(100):
            done = command(*arguments)
        assert done.exit_code == 2, done.output
        assert "cannot be written: File too large" in done.stderr
        assert "--resume" not in done.output
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
        assert command(*arguments).exit_code == 0
        before = {path for path in tmp_path.rglob("*") if path.is_file()}


def test_what_was_there_stays_where_there_is_no_room(command, tmp_path: Path) -> None:
    finish(tmp_path / "runs" / "a")
    assert command("report", "runs", "--out", "out").exit_code == 0
    old = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    finish(tmp_path / "runs" / "b")
    with no_file_above(len((tmp_path / "out" / "table.csv").read_bytes())):
        assert command("report", "runs", "--out", "out").exit_code == 2
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == old


MERGING = """
import sys, time
from pathlib import Path
import mlx_peft.artifacts.merge as merge
from mlx_peft.core.writing import new_folder

def slow(path, out, *_, **__):
    with new_folder(out) as folder:
        (folder / "model.safetensors").write_bytes(bytes(1000))
        print("ready", flush=True)
        time.sleep(3600)

merge.merge_run = slow
sys.argv = ["mlx-peft", "merge", "run", sys.argv[1]]
from mlx_peft.cli import main
main()
"""


@pytest.mark.parametrize("number", daily([signal.SIGTERM, signal.SIGHUP, signal.SIGINT], signal.SIGTERM))
def test_a_command_that_is_asked_to_end_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    def usual() -> None:  # what pytest's own parent has ignored is not
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-c", MERGING, str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=usual) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_merge_says_how_timm_opens_what_it_wrote_with_its_weights(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def merge_run(run: Path, out: Path, backend: str, **options: Any) -> SimpleNamespace:
        out.mkdir()
        return SimpleNamespace(quantization=None, sqnr={}, logits=None, tokens=None, in_timm=True)

    monkeypatch.setattr("mlx_peft.artifacts.merge.merge_run", merge_run)
    out = tmp_path / "merged"
    assert command("merge", "run", str(out)).stdout.splitlines()[-1] == (
        f'open it with: timm.create_model("local-dir:{out}", pretrained=True)'
    )
