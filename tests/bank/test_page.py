"""The page that says what peft makes of mixed batches: its generator tells right, wrong and refused apart."""

from __future__ import annotations

import math

from bench.mixed_in_peft import SAME, Verdict, page


def test_a_verdict_is_what_the_rows_say() -> None:
    assert str(Verdict(SAME / 10)).startswith("right")
    assert str(Verdict(0.5)) == "**wrong** (0.5)"
    assert str(Verdict(math.inf, active=True)) == "**wrong** (rows of another head, all by the active adapter)"
    assert str(Verdict(refused="why")) == "refuses"


def test_a_row_is_told_for_each_method() -> None:
    lines = list(page(["IA3", "HRA", "PROMPT_TUNING"]))
    rows = {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[1:] for line in lines if "|" in line}
    assert len(rows["(IA)^3"]) == 5 and all(cell.startswith("right") for cell in rows["(IA)^3"][3:])
    assert rows["HRA"][3:] == ["refuses", "refuses"]
    assert any(line.startswith("- HRA: ``here: ") and "HRA" in line for line in lines)
    assert any(line.startswith("- PROMPT_TUNING: ``") for line in lines)
