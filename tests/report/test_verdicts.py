"""Which methods are in bold, what is said of missing cells, and that no test is made over seeds."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import experiment, make

from mlx_peft.report import gather, rows, tables
from mlx_peft.report.boards import board
from mlx_peft.report.comparison import one_set
from mlx_peft.report.figures import SIZES, drawings
from mlx_peft.report.figures.drawn import drawn
from mlx_peft.report.figures.tradeoffs import Point, front
from mlx_peft.report.study import Study, examined
from mlx_peft.report.verdicts import on_each_set, over_sets, standing

LORA, LINEAR, SSF = {"name": "lora", "rank": 8}, {"name": "linear"}, {"name": "ssf"}
SHARES = {"lora": (LORA, 0.80), "ssf": (SSF, 0.79), "linear": (LINEAR, 0.55)}
SETS = ("cifar10", "cifar100", "dtd", "eurosat", "flowers102", "pets")


def study(folder: Path) -> Study:
    return examined(gather.gathered(folder))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for name, (method, share) in SHARES.items():
        for seed in (0, 1):
            make(folder / f"{name}-seed={seed}", experiment(method, "cifar10", seed), share, images=300)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six data sets, learning rates of their own in one of them; on the last, one method has no run."""
    folder = tmp_path_factory.mktemp("many")
    for at, dataset in enumerate(SETS):
        for name, (method, share) in SHARES.items():
            if (name, at) != ("linear", 5):
                config = experiment(
                    method, dataset, 0, train={"epochs": 2, "optimizer": {"name": "adamw", "lr": 1e-3 * (1 + at % 2)}}
                )
                make(folder / dataset / name, config, share - 0.02 * at, images=100, predictions=False)
    return folder


def test_the_best_is_in_bold_with_all_that_is_not_significantly_worse(one: Path) -> None:
    found = study(one)
    verdict = found.verdicts[0]
    assert verdict.leader in ("lora", "ssf")
    assert verdict.best == {"lora", "ssf"}
    assert verdict.p["linear"] < 0.01 < 0.05 <= min(p for row, p in verdict.p.items() if row != "linear")
    assert "paired bootstrap over 300 test images" in verdict.said
    bold = {cells[0].text for cells in one_set(found.board, 0, verdict).cells if cells[2].bold}
    assert bold == verdict.best
    assert f"**{one_set(found.board, 0, verdict).cells[1][2].text}**" in tables.markdown(found.runs, (), found)


def test_no_test_is_made_of_seeds_where_predictions_are_missing(one: Path, tmp_path: Path) -> None:
    for folder in one.iterdir():
        target = tmp_path / folder.name
        target.mkdir()
        for name in ("result.json", "config.yaml"):
            (target / name).write_bytes((folder / name).read_bytes())
    verdict = study(tmp_path).verdicts[0]
    assert verdict.p == {}
    assert verdict.best == {verdict.leader}
    assert "nothing was tested" in verdict.said and "keeps no predictions" in verdict.said


def test_predictions_that_are_not_the_result_s_or_of_other_images_are_not_compared(one: Path, tmp_path: Path) -> None:
    lora, linear = tmp_path / "lora", tmp_path / "linear"
    make(lora, experiment(LORA, "cifar10", 0), 0.8)
    changed = make(linear, experiment(LINEAR, "cifar10", 0), 0.5)
    (linear / "SHA256SUMS.txt").unlink()
    changed["metrics"]["test"]["top1"] = 0.7
    (linear / "result.json").write_text(json.dumps(changed))
    verdict = study(tmp_path).verdicts[0]
    assert verdict.untested == {"linear": "linear: its predictions are not those of its result"}
    assert verdict.best == {"lora"} and "not compared: linear" in verdict.said


def test_over_data_sets_methods_are_known_by_what_was_done(many: Path) -> None:
    found = study(many)
    assert [column.dataset for column in found.board.columns] == list(SETS)
    assert found.board.rows == ("linear", "lora", "ssf"), "a learning rate of one set alone makes no other method"
    assert found.board.notes == {("linear", 5): ("there is no such run",)}
    assert found.board.complete() == ["lora", "ssf"]
    table = tables.markdown(found.runs, (), found)
    assert "–¹ |" in table and "¹ there is no such run" in table
    assert "mean place" in table and "Wilcoxon" in table


def test_wilcoxon_decides_over_six_sets_and_over_fewer_nothing_does(many: Path) -> None:
    runs = [run for run in gather.gathered(many).finished if run.value("method") != "linear"]
    for run in runs:
        better = 0.02 if run.value("method") == "lora" else 0.0
        run.result["metrics"]["test"]["top1"] = 0.5 + better + 0.01 * SETS.index(run.value("dataset"))
    place = standing(board(runs))
    assert place is not None
    verdict = over_sets(place)
    assert (verdict.leader, verdict.best) == ("lora", {"lora"})
    assert verdict.p["ssf"] == pytest.approx(2 / 2**6)
    fewer = standing(board([run for run in runs if run.value("dataset") != "pets"]))
    assert fewer is not None
    assert over_sets(fewer).p == {} and "5 data sets are too few" in over_sets(fewer).said


def test_a_planned_run_without_a_result_is_a_footnote_with_its_reason(one: Path, tmp_path: Path) -> None:
    plan = [{"name": f"{name}-seed={seed}", "folder": f"there/{name}-seed={seed}", "status": "finished"}
            for name in SHARES for seed in (0, 1)]  # fmt: skip
    plan += [
        {"name": "lora-seed=2", "folder": "lora-seed=2", "status": "failed", "error": "no\nmemory | <b>"},
        {"name": "vera-seed=0", "folder": "vera-seed=0", "status": "waiting"},
    ]
    for folder in one.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    runs = [gather.read_run(folder, folder.name) for folder in sorted(one.iterdir())]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": plan}))
    from mlx_peft.report.plan import plans

    (plan,) = plans(tmp_path)
    found = board([run for run in runs if run is not None], plan.runs)
    assert found.notes == {
        ("lora", 0): ("seed 2: failed: no memory | <b>",),
        ("vera", 0): ("not run",),
    }
    table = one_set(found, 0)
    cells = {row[0].text: row for row in table.cells}
    assert (cells["lora"][1].text, cells["lora"][1].marks) == ("2", (1,))
    assert (cells["vera"][1].text, cells["vera"][1].marks, cells["vera"][2].text) == ("0", (2,), "–")
    assert "¹ seed 2: failed: no memory \\| \\<b>" in rows.markdown(table)


def test_what_a_study_made_to_choose_by_is_not_compared(one: Path) -> None:
    from mlx_peft.report.boards import without_trials
    from mlx_peft.report.plan import Planned

    runs = gather.gathered(one).finished
    identity = runs[0].value("run_id")
    trial = Planned("a", "a", run_id=identity, kind="tune", status="finished")
    assert len(without_trials(runs, [trial])) == len(runs) - 1
    assert len(without_trials(runs, [trial, Planned("a", "a", run_id=identity, kind="final")])) == len(runs)


def test_a_study_s_record_says_what_was_chosen_what_failed_and_what_was_only_tried(one: Path, tmp_path: Path) -> None:
    for folder in one.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    known = {run.name: run.value("run_id") for run in gather.gathered(tmp_path).finished}
    kinds = {name: "tune" if name == "ssf-seed=0" else "final" for name in known}
    nodes = [node(name, kinds[name], known[name], "finished") for name in known]
    failed = node("lora-seed=2", "final", "ff", "failed", error="no memory")
    tried = [{"changes": {"train.optimizer.lr": lr}, "runs": [], "score": score, "loss": None, "error": None}
             for lr, score in ((0.001, 0.71), (0.003, 0.68))]  # fmt: skip
    choice = {"label": "lora", "metric": "val.top1", "direction": "max", "ties": "", "candidates": tried, "chosen": 0}
    record = tmp_path / "study.json"
    record.write_text(json.dumps({"format": 1, "nodes": [*nodes, failed], "choices": [choice]}))
    found = study(tmp_path)
    assert {run.name for run in found.runs} - {run.name for run in found.compared} == {"ssf-seed=0"}
    assert found.board.rows == ("linear called", "lora called", "ssf called")
    assert found.board.notes == {("lora called", 0): ("seed 2: failed: no memory",)}
    (table,) = tables.choices(found)
    assert [cell.text for cell in table.cells[0]] == [
        "lora",
        "lr 0.001",
        "val top-1 (%)",
        "lr 0.001: 71.00; lr 0.003: 68.00",
    ]
    assert table.below == ("Chosen at an end of what was tried, so that a value beyond it may be better: all",)
    record.write_text('{"format": 2}')
    assert [one.name for one in gather.gathered(tmp_path).damaged] == ["study.json"]


def node(name: str, kind: str, run_id: str, status: str, error: str | None = None) -> dict[str, Any]:
    method, seed = name.split("-")[0], int(name.rpartition("=")[2])
    return {"name": name, "kind": kind, "label": f"{method} called", "method": method, "seed": seed, "changes": {},
            "run_id": run_id, "folder": name, "step": None, "of": None, "status": status, "error": error,
            "seconds": None}  # fmt: skip


def test_latex_obeys_no_name_and_has_booktabs_rules(one: Path) -> None:
    found = study(one)
    text = tables.latex(found)
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"\textbf{" in text and r"$\pm$" in text
    assert rows.tex(r"50 % of $x_1 & \input{a} ~^#") == (
        r"50 \% of \$x\_1 \& \textbackslash{}input\{a\} \textasciitilde{}\textasciicircum{}\#"
    )
    assert rows.tex("[1em] * a") == "{[}1em] {*} a", "behind the end of a line, or a rule, it would be obeyed"
    lines = [line for line in text.splitlines() if line.rstrip().endswith(r"\\") and "&" in line]
    assert len({line.replace(r"\&", "").count("&") for line in lines}) == 1, "every row has as many cells"


def test_the_csv_of_means_is_unrounded_and_safe(one: Path) -> None:
    found = study(one)
    written: list[dict[str, Any]] = [*csv.DictReader(io.StringIO(tables.means_csv(found)))]
    (lora,) = [line for line in written if line["runs"] == "lora"]
    values = [run.value("metrics.test.top1") for run in found.runs if run.value("method") == "lora"]
    assert float(lora["mean"]) == pytest.approx(np.mean(values))
    assert float(lora["deviation"]) == pytest.approx(np.std(values, ddof=1))
    assert (lora["n"], lora["best"], lora["protocol.normalisation"]) == ("2", "True", "ImageNet")


def test_the_pareto_front_is_what_nothing_else_beats() -> None:
    points = [Point(at, cost, score) for at, (cost, score) in enumerate([(1, 50), (2, 60), (2, 58), (3, 60), (4, 61)])]
    assert [point.row for point in front(points)] == [0, 1, 4]


def test_each_figure_is_drawn_where_the_runs_have_what_it_shows(one: Path, many: Path) -> None:
    names = {folder: [drawing.name for drawing in drawings(study(folder))] for folder in (one, many)}
    assert names[one] == ["seeds", "curves"], "all cost the same there"
    assert names[many] == ["places", "curves"]
    for drawing in drawings(study(many)):
        for width in SIZES.values():
            assert drawing.draw(width).get_size_inches()[0] == width


@pytest.mark.slow
def test_several_processes_read_and_draw_what_one_does(one: Path) -> None:
    shown = drawings(study(one))
    assert drawn(shown, 2) == drawn(shown)
    board = study(one).board
    assert on_each_set(board, 2) == on_each_set(board)


def test_the_leader_alone_is_no_verdict(tmp_path: Path) -> None:
    make(tmp_path / "lora", experiment(LORA, "cifar10", 0), 0.8)
    found = study(tmp_path)
    assert on_each_set(found.board)[0].best == frozenset()
    assert len(tables.sections(found.runs, found)) == 1
