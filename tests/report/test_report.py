"""Finished runs to a table and a figure."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import markdown
from mlx_peft.report import columns, files, gather, study, tables
from mlx_peft.report.format import count, decimal, percent, seconds, size
from mlx_peft.report.rows import drawn

VALUES = {
    "run_id": "0123456789ab",
    "model": "vit_tiny_patch16_224",
    "dataset": "digits",
    "backend": "mlx",
    "seed": 0,
}


def finish(folder: Path, method: str, top1: float | None, **more: Any) -> None:
    """A run's folder as the engine leaves it."""
    folder.mkdir(parents=True)
    metrics = {"val": {"top1": 0.5}, "test": None if top1 is None else {"top1": top1}}
    parameters = {"adapter": 40512, "head": 970, "trainable": 41482, "total": 490000}
    time = {"train_seconds": 21.54, "images_per_second": 590.4}
    result = VALUES | {"method": method, "metrics": metrics, "parameters": parameters, "time": time} | more
    (folder / "result.json").write_text(json.dumps(result))
    records = [{"step": 1, "epoch": 1, "loss": 1.0}]
    records += [{"step": e, "epoch": e, "val_top1": 0.1 * e, "train_loss": 1 / e} for e in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


TABLES = ["report.html", "table.md", "table.csv", "means.csv", "table.tex"]


def write(folder: Path, out: Path) -> list[Path]:
    """A report of what lies below a folder."""
    found = gather.gathered(folder)
    return files.write(found, study.examined(found), out)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    finish(folder / "lora", "lora", 0.97222, memory={"peak_bytes": 312_400_000}, selected={"by": "val.top1"})
    memory = {"peak_bytes": 400_000_000, "arrays_bytes": None, "process_bytes": 400_000_000}
    finish(folder / "deep" / "linear", "linear", None, seed=1, memory=memory, selected={"by": "last epoch"})
    return folder


def test_runs_are_found_at_any_depth_in_the_order_of_their_paths(runs: Path) -> None:
    assert [run.name for run in gather.gathered(runs).finished] == ["deep/linear", "lora"]
    assert [run.name for run in gather.gathered(runs / "lora").finished] == ["lora"]


def test_unfinished_runs_are_told_apart(runs: Path) -> None:
    (runs / "begun").mkdir()
    (runs / "begun" / "metrics.jsonl").write_text("")
    assert gather.gathered(runs).unfinished == ["begun"]
    assert len(gather.gathered(runs).finished) == 2


def test_another_programs_result_is_no_run(runs: Path) -> None:
    (runs / "result.json").write_text('{"score": 3}')
    assert len(gather.gathered(runs).finished) == 2


def test_a_damaged_run_is_named_and_hides_no_other(runs: Path) -> None:
    (runs / "lora" / "result.json").write_text('{"run_id": ')
    found = gather.gathered(runs)
    assert [run.name for run in found.finished] == ["deep/linear"]
    ((name, reason),) = [(one.name, one.reason) for one in found.damaged]
    assert name == "lora"
    assert "result.json is no JSON" in reason
    text = tables.markdown(found.finished, found.damaged)
    assert text.endswith(f"\n\nLeft out, damaged: lora: {markdown(reason)}.\n")
    (runs / "deep" / "linear" / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"no finished run.*\n  left out, damaged: deep/linear: .*\n  .*: lora"):
        gather.gathered(runs)


def test_names_are_obeyed_by_nothing_that_shows_them(tmp_path: Path) -> None:
    finish(tmp_path / "a" / "[bold]x", "=cmd()", 0.5, dataset="\x1b[31mred|b", model="$x", seed=-1)
    found = gather.gathered(tmp_path / "a")
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system="truecolor")
    console.print(drawn(tables.each(found.finished)))
    assert "[bold]x" in console.file.getvalue()  # type: ignore[attr-defined]
    assert r"\x1b[31mred|b" in console.file.getvalue()  # type: ignore[attr-defined]
    assert r" \x1b\[31mred\|b " in tables.markdown(found.finished)
    (row,) = csv.DictReader(tables.to_csv(found.finished).splitlines())
    assert (row["method"], row["seed"], row["dataset"]) == ("'=cmd()", "-1", r"\x1b[31mred|b")
    assert write(tmp_path / "a", tmp_path / "out")[-1].name == "curves-double.pdf"


def test_the_table_says_what_was_measured_and_dashes_what_was_not(runs: Path) -> None:
    assert tables.markdown(gather.gathered(runs).finished).splitlines() == [
        "All runs: model vit_tiny_patch16_224, data set digits, backend mlx.",
        "",
        "| run         | method | seed | selection  | test top-1 (%) | val top-1 (%) "
        "| trained | without head | seconds | images/s | peak of process (MB) | peak of arrays (MB) |",
        "| ----------- | ------ | ---: | ---------- | -------------: | ------------: "
        "| ------: | -----------: | ------: | -------: | -------------------: | ------------------: |",
        "| deep/linear | linear |    1 | last epoch |              – |         50.00 "
        "|  41,482 |       40,512 |    21.5 |      590 |                  400 |                   – |",
        "| lora        | lora   |    0 | validation |          97.22 |         50.00 "
        "|  41,482 |       40,512 |    21.5 |      590 |                    – |                 312 |",
    ]


def test_the_tokens_stand_where_runs_differ_in_them(runs: Path) -> None:
    """Two runs that are alike but for these are not taken for one experiment."""
    finish(runs / "fewer", "lora", 0.9, tokens="tome r=2")
    finish(runs / "same" / "a", "lora", 0.9, tokens="tome r=2")
    finish(runs / "same" / "b", "linear", 0.9, tokens="tome r=2")
    found = gather.gathered(runs).finished
    (fewer,) = (line.split("|") for line in tables.markdown(found).splitlines() if line.startswith("| fewer "))
    (all_of_them,) = (line.split("|") for line in tables.markdown(found).splitlines() if line.startswith("| lora "))
    assert (fewer[3].strip(), all_of_them[3].strip()) == ("tome r=2", "none")
    rows = {row["run"]: row["tokens"] for row in csv.DictReader(tables.to_csv(found).splitlines())}
    assert (rows["fewer"], rows["lora"]) == ("tome r=2", "")
    assert columns.row(found[1])["tokens"] == "tome r=2"
    assert tables.markdown(gather.gathered(runs / "same").finished).startswith("All runs: tokens tome r=2, model ")


def test_one_run_keeps_every_column(runs: Path) -> None:
    text = tables.markdown(gather.gathered(runs / "lora").finished)
    assert text.startswith("| run ")
    assert all(column.heading in text for column in (*columns.RUN_COLUMNS, *columns.COST_COLUMNS))


def test_the_terminal_shows_the_same_cells(runs: Path) -> None:
    found = gather.gathered(runs).finished
    console = Console(width=200, file=io.StringIO())
    console.print(drawn(tables.each(found)))
    text = console.file.getvalue()
    for line in tables.markdown(found).splitlines()[4:]:
        assert all(cell.strip() in text for cell in line.strip("|").split("|"))


def test_the_csv_holds_the_unrounded_values(runs: Path) -> None:
    linear, lora = csv.DictReader(tables.to_csv(gather.gathered(runs).finished).splitlines())
    assert float(lora["metrics.test.top1"]) == 0.97222
    assert linear["metrics.test.top1"] == ""
    assert float(linear["time.train_seconds"]) == 21.54


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path: Path) -> None:
    finish(tmp_path / "a|b", "lora", 0.5)
    assert "| a\\|b " in tables.markdown(gather.gathered(tmp_path).finished)


@pytest.mark.usefixtures("fine_pictures")
def test_a_report_is_written_with_its_figure(runs: Path, tmp_path: Path) -> None:
    written = write(runs, tmp_path / "out" / "report")
    figures = [f"figures/{name}-{size}.{ending}" for name in ("curves",)
               for size in ("single", "double") for ending in ("png", "pdf")]  # fmt: skip
    assert [path.relative_to(tmp_path / "out" / "report").as_posix() for path in written] == [*TABLES, *figures]
    assert written[-1].read_bytes().startswith(b"%PDF-")
    with Image.open(written[-2]) as figure:
        assert figure.width > 1000
        assert len(figure.convert("RGB").getcolors(figure.width * figure.height) or []) > 10


def test_the_same_runs_give_the_same_figure(runs: Path, tmp_path: Path) -> None:
    first, second = (write(runs, tmp_path / name)[-2:] for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_without_an_epoch_there_is_no_figure(tmp_path: Path) -> None:
    finish(tmp_path / "run", "lora", 0.5)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1.0}\n')
    assert [path.name for path in write(tmp_path, tmp_path / "out")] == TABLES


def test_a_folder_that_cannot_be_made_is_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be written: Not a directory"):
        write(runs, tmp_path / "file" / "out")


def test_numbers_are_written_for_a_person() -> None:
    assert [percent(0.97222), percent(1.0), percent(None)] == ["97.22", "100.00", "–"]
    assert [count(41482), count(0), count(None)] == ["41,482", "0", "–"]
    assert [decimal(1234.56), decimal(0.04, 2), decimal(None)] == ["1,234.6", "0.04", "–"]
    assert [seconds(9.96), seconds(75.2), seconds(3725), seconds(None)] == ["10.0 s", "1 min 15 s", "1 h 2 min", "–"]
    assert [size(999), size(1500), size(2.5e6), size(1.25e9), size(None)] == [
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "1.2 GB",
        "–",
    ]
