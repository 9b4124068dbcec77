"""Runs that differ in their seed alone: told apart from all others, averaged, and drawn with their spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mlx_peft.config.files import dump
from mlx_peft.config.schema import Experiment
from mlx_peft.report import gather, tables
from mlx_peft.report.drawing import COLOURS, png
from mlx_peft.report.figures import SIZES, curves
from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.groups import grouped, spread
from mlx_peft.training.run import configuration_id

TOP1 = {"lora": (0.90, 0.94, 0.95), "linear": (0.70, 0.75, 0.71)}


def run(name: str, seed: int, top1: float, configuration: str | None, epochs: int = 3, **record: float) -> FinishedRun:
    result = {
        "seed": seed,
        "method": "lora",
        "backend": "mlx",
        "metrics": {"val": {"top1": top1, "loss": 1 - top1}, "test": None},
    }
    records = ({"step": n, "epoch": n, "val_top1": top1 - 0.1 / n, "val_loss": 2 / n, "train_loss": 1 / n} | record
               for n in range(1, epochs + 1))  # fmt: skip
    return FinishedRun(name, result, tuple(records), configuration)


def seeds(epochs: int = 3) -> list[FinishedRun]:
    return [run(f"{method}-seed={seed}", seed, top1, method, epochs)
            for method, values in TOP1.items() for seed, top1 in enumerate(values)]  # fmt: skip


def test_the_mean_and_the_sample_s_deviation_are_numpy_s() -> None:
    found = spread(TOP1["lora"])
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(np.mean(TOP1["lora"]))
    assert found.deviation == pytest.approx(np.std(TOP1["lora"], ddof=1))
    assert spread([0.5]) == spread(iter([0.5])) and spread([]) is None


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (("lora-seed=0", "lora-seed=1"), "lora"),
        (("lora-mlx-10", "lora-mlx-11"), "lora-mlx"),
        (("rank=1-seed=1", "rank=1-seed=2"), "rank=1"),
        (("s0/lora", "s1/lora"), "lora"),
        (("seed=0", "seed=1"), "lora"),
        (("mine", "yours"), "mine and 1 more"),
    ],
)
def test_a_group_is_called_what_its_runs_have_in_common(names: tuple[str, str], common: str) -> None:
    numbers = [int("".join(filter(str.isdigit, name.split("=")[-1][-2:])) or at) for at, name in enumerate(names)]
    numbers = [at for at, _ in enumerate(names)] if names[0].startswith("s0") else numbers
    (group,) = grouped([run(name, seed, 0.5, "x") for name, seed in zip(names, numbers, strict=True)])
    assert group.name == common


def test_runs_stand_alone_whose_configuration_or_seed_does_not_make_them_a_group() -> None:
    runs = [run("a", 0, 0.5, None), run("b", 1, 0.5, None), run("c", 0, 0.5, "x"), run("d", 0, 0.5, "x")]
    assert [group.name for group in grouped(runs)] == ["a", "b", "c", "d"]
    assert len(tables.sections(runs)) == 1


def test_a_table_of_means_says_of_how_many_seeds_they_are() -> None:
    runs = seeds()
    runs[-1].result["metrics"]["val"].pop("loss")
    text = tables.markdown(runs)
    means, each = text.split("\n\nAll runs: ")
    _, heading, _, lora, linear = means.replace("\n\n", "\n").splitlines()
    cells = [cell.strip() for cell in heading.strip("| ").split("|")]
    lora_cells, linear_cells = (
        dict(zip(cells, map(str.strip, row.strip("| ").split("|")), strict=True)) for row in (lora, linear)
    )
    values = [100 * value for value in TOP1["lora"]]
    expected = f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert (lora_cells["runs"], lora_cells["n"], lora_cells["val top-1 (%)"]) == ("lora", "3", expected)
    assert linear_cells["val loss"].endswith(" (2)"), "one of the three has none"
    assert each.count("linear-seed=") == 3


def experiment(seed: int, rank: int = 8, **data: Any) -> Experiment:
    values = {"seed": seed, "model": {"name": "vit_tiny_patch16_224"}, "method": {"name": "lora", "rank": rank},
              "data": {"name": "digits"} | data}  # fmt: skip
    return Experiment.model_validate(values)


def test_runs_of_before_they_had_the_id_are_known_by_their_configuration(tmp_path: Path) -> None:
    for name, config in {"a": experiment(0), "b": experiment(1, root="elsewhere"), "c": experiment(0, rank=4)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump(config))
        result = {"run_id": name, "seed": config.seed, "splits": {"val": None}}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    runs = gather.gathered(tmp_path).finished
    assert [[run.name for run in group.runs] for group in grouped(runs)] == [["a", "b"], ["c"]]
    assert runs[0].configuration == configuration_id(experiment(7), {"val": None})


def test_runs_are_in_the_order_of_their_suite(tmp_path: Path) -> None:
    order = ["vera", "lora", "linear"]
    for name in (*order, "another"):
        (tmp_path / "suite" / name).mkdir(parents=True)
        (tmp_path / "suite" / name / "result.json").write_text(json.dumps({"run_id": name}))
        (tmp_path / "suite" / name / "metrics.jsonl").write_text("")
    record = tmp_path / "suite" / "sweep.json"
    record.write_text(json.dumps({"runs": [{"name": name, "folder": f"there/{name}"} for name in order]}))
    assert [run.name for run in gather.gathered(tmp_path / "suite").finished] == ["another", *order]
    for damage in ("[]", "{", '{"runs": [3]}', '{"runs": 3}', "null"):
        record.write_text(damage)
        assert [run.name for run in gather.gathered(tmp_path / "suite").finished] == sorted(["another", *order])


@pytest.fixture
def drawn() -> Iterator[Any]:
    def draw(runs: list[FinishedRun]) -> Figure:
        figure = curves.draw(runs, SIZES["double"])
        assert figure is not None
        assert png(figure, 50)
        return figure

    yield draw


def names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_line_is_the_mean_and_its_band_one_deviation_to_each_side(drawn: Any) -> None:
    figure = drawn(seeds())
    assert names(figure) == ["lora (n = 3)", "linear (n = 3)"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["validation top-1 (%)", "validation loss", "training loss"]
    top1 = figure.axes[0]
    assert [to_hex(line.get_color()) for line in top1.lines] == [colour.lower() for colour in COLOURS[:2]]
    np.testing.assert_allclose(top1.lines[0].get_ydata()[-1], 100 * (np.mean(TOP1["lora"]) - 0.1 / 3))
    band = top1.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == 3][:, 1]
    np.testing.assert_allclose(last.max() - last.min(), 200 * np.std(TOP1["lora"], ddof=1))


def test_of_one_epoch_the_axis_is_a_single_one_and_no_point_hides_another(drawn: Any) -> None:
    figure = drawn([run(f"r{n}", 0, 0.5, str(n), epochs=1) for n in range(4)])
    for axes in figure.axes:
        assert list(axes.get_xticks()) == [1]
        assert axes.get_xlim() == (0.5, 1.5)
        assert len({float(line.get_xdata()[0]) for line in axes.lines}) == 4


def test_a_run_without_validation_is_drawn_by_what_it_has(drawn: Any) -> None:
    bare = FinishedRun(
        "bare", {}, ({"step": 1, "epoch": 1, "train_loss": 2.0}, {"step": 2, "epoch": 2, "train_loss": 1.0})
    )
    assert [axes.get_ylabel() for axes in drawn([bare]).axes] == ["training loss"]
    figure = drawn([bare, *seeds()])
    assert names(figure)[0] == "bare"
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 3]
    colours = [to_hex(line.get_color()) for line in figure.axes[0].lines]
    assert colours == [colour.lower() for colour in COLOURS[1:3]], "a line has its colour in every panel"


def test_accuracy_has_no_room_above_what_can_be(drawn: Any) -> None:
    assert drawn([run("a", 0, 1.1, "a", val_top1=1.0)]).axes[0].get_ylim()[1] <= 102


def test_losses_of_several_magnitudes_have_a_logarithmic_scale(drawn: Any) -> None:
    wide = [FinishedRun("a", {}, tuple({"step": n, "epoch": n, "train_loss": 10.0**-n} for n in (1, 2, 3)))]
    assert [axes.get_yscale() for axes in drawn(wide).axes] == ["log"]
    assert {axes.get_yscale() for axes in drawn(seeds()).axes} == {"linear"}


def test_of_more_than_can_be_told_apart_the_best_are_drawn(drawn: Any, recwarn: pytest.WarningsRecorder) -> None:
    """Beyond that a legend leaves no room for the curves, and the time to draw it grows with the runs."""
    values = {f"run{n:02}": n / 100 for n in range(curves.DRAWN + 5)}
    runs = [FinishedRun(name, {}, ({"step": 1, "epoch": 1, "val_top1": value},)) for name, value in values.items()]
    figure = drawn(runs)
    assert names(figure) == [f"run{n:02}" for n in range(5, 25)]
    assert figure.get_suptitle() == "the best 20 of 25 configurations"
    assert not recwarn.list
