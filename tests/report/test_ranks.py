"""The heat map of ranks, from a run's metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mlx_peft.core.errors import UserError
from mlx_peft.report import ranks

RECORDS = [
    {"step": 1, "epoch": 1, "rank/blocks.0.attn.qkv/q": 4, "rank/blocks.1.attn.qkv/q": 4, "rank/blocks.1.mlp.fc1": 4},
    {"step": 1, "epoch": 1, "loss": 2.0},
    {"step": 8, "epoch": 1, "rank/blocks.0.attn.qkv/q": 0, "rank/blocks.1.attn.qkv/q": 4, "rank/blocks.1.mlp.fc1": 2},
    {"step": 9, "epoch": 1, "train_loss": 1.0},
]


def metrics(folder: Path, records: list[dict[str, float]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_last_ranks_are_the_ones_recorded_last() -> None:
    assert ranks.last_ranks(RECORDS) == {"blocks.0.attn.qkv/q": 0, "blocks.1.attn.qkv/q": 4, "blocks.1.mlp.fc1": 2}


@pytest.mark.usefixtures("fine_pictures")
def test_a_run_that_dealt_out_ranks_gets_a_figure(tmp_path: Path) -> None:
    out = ranks.write(metrics(tmp_path / "run", RECORDS))
    assert out == tmp_path / "run" / "ranks.png"
    with Image.open(out) as figure:
        colours = figure.convert("RGB").getcolors(figure.width * figure.height) or []
    # Viridis from end to end: 0 is its darkest, 4 the largest rank here; the layer that is not adapted stays white.
    assert {(68, 1, 84), (253, 231, 37), (255, 255, 255)} <= {colour for _, colour in colours}


def test_the_same_ranks_give_the_same_figure_whatever_came_before(tmp_path: Path) -> None:
    first, second = (ranks.write(metrics(tmp_path / name, rows)) for name, rows in (("a", RECORDS), ("b", RECORDS[2:])))
    assert first and second and first.read_bytes() == second.read_bytes()
    other = ranks.write(metrics(tmp_path / "c", RECORDS[:1]))
    assert other and other.read_bytes() != first.read_bytes()


def test_another_methods_run_gets_none(tmp_path: Path) -> None:
    folder = metrics(tmp_path / "run", [RECORDS[1], RECORDS[3]])
    assert ranks.write(folder) is None
    assert [file.name for file in folder.iterdir()] == ["metrics.jsonl"]


def test_ranks_of_nothing_are_drawn_too(tmp_path: Path) -> None:
    assert ranks.draw({"blocks.0.attn.proj": 0})


def test_a_figure_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    folder = metrics(tmp_path / "run", RECORDS)
    (folder / "ranks.png").mkdir()
    with pytest.raises(UserError, match=r"ranks\.png"):
        ranks.write(folder)
