"""docs/data.md says of each set what the set itself states."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_peft.data import REGISTRY
from mlx_peft.data.sets import medmnist, vtab

ROWS = {
    line.split("`")[1]: line
    for line in (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8").splitlines()
    if line.startswith("| `")
}


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.published])
def test_a_set_s_row_has_its_facts(name: str) -> None:
    entry, row = REGISTRY[name], ROWS[name]
    assert f"| {entry.classes} |" in row
    if name.startswith(vtab.PREFIX):
        task = vtab.TASKS[name.removeprefix(vtab.PREFIX)]
        assert row.endswith(f"| {task.group} | {task.classes} | {task.test:,} |")
        return
    assert entry.licence in row
    if name.startswith(medmnist.PREFIX):
        assert " | ".join(f"{size:,}" for size in entry.variants[0].sizes.values()) in row
        return
    assert f"<{entry.source}>" in row
    for variant in entry.variants:
        assert f"`{variant.name}`" in row
        assert all(f"{size:,} {split}" in row for split, size in variant.sizes.items())


def test_no_row_is_about_a_set_that_is_not_there() -> None:
    assert set(ROWS) == {name for name, entry in REGISTRY.items() if entry.published}
