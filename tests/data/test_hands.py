"""Who makes the rows: how many, and whether threads or processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.pipelines import AUGMENTS, BICUBIC, data

from mlx_peft.config import schema
from mlx_peft.core import cores
from mlx_peft.core.errors import UserError
from mlx_peft.data.filling import fill
from mlx_peft.data.hands import MOST, hands, number
from mlx_peft.data.rows import Augmented, Evaluated


@pytest.mark.parametrize(("wanted", "free", "beside", "expected"), [
    ("auto", 4, None, 4), ("auto", 400, None, MOST), ("auto", 8, "4", 2), ("auto", 2, "4", 1), ("auto", 4, "x", 4),
    (7, 2, "4", 7),
])  # fmt: skip
def test_as_many_threads_as_cores_are_free(
    monkeypatch: pytest.MonkeyPatch, wanted: int | str, free: int, beside: str | None, expected: int
) -> None:
    monkeypatch.setattr(cores, "free", lambda: free)
    if beside is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert number(wanted) == expected


def test_of_mlx_launch_s_processes_those_of_the_same_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "free", lambda: 12)
    (tmp_path / "hosts.json").write_text('[["192.0.2.1:1"], ["192.0.2.2:1"], ["192.0.2.2:2"], ["192.0.2.2:3"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    for rank, expected in (("0", 12), ("3", 4), ("4", 12), ("x", 12)):
        monkeypatch.setenv("MLX_RANK", rank)
        assert number("auto") == expected


def test_processes_are_taken_where_threads_would_wait_for_one_another() -> None:
    colours = Augmented(AUGMENTS["randaugment"], BICUBIC, 24, 0, 0)
    for rows in (colours, Augmented(AUGMENTS["flip"], BICUBIC, 24, 0, 0), Evaluated(BICUBIC, 24)):
        for threads, processes in ((rows.worth, False), (rows.worth + 1, True)):
            found = hands(data(threads=threads), rows, (24, 24))
            assert (found.threads, found.fill is not fill) == (threads, processes)
    assert hands(data(threads=99).model_copy(update={"workers": "threads"}), colours, (24, 24)).fill is fill
    assert colours.worth < Evaluated(BICUBIC, 24).worth


def test_how_many_is_not_said_by_workers() -> None:
    with pytest.raises(UserError, match=r"workers.*how many there are is data\.threads"):
        schema.Data(name="folder", workers=4)  # type: ignore[arg-type]
    assert "workers" not in schema.Data(name="folder").model_dump()
    assert schema.Data(name="folder", workers="processes").model_dump()["workers"] == "processes"
