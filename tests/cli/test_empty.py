"""A word of a command line that is empty is refused: as a path it would be the working directory."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "", "a.png"), "an argument is empty: a name or a path is wanted; '.' is this folder"),
        (("predict", "run", ""), "an argument is empty, behind run: "),
        (("eval", ""), "an argument is empty"),
        (("merge", "run", "--out", ""), "an argument is empty, behind --out: "),
        (("merge", "run", "--out="), "--out= has nothing behind it: "),
        (("train", "quickstart", "--out", ""), "an argument is empty, behind --out: "),
        (("data", "check", ""), "an argument is empty"),
        (("config", "validate", ""), "an argument is empty"),
        (("bench", "--out", ""), "an argument is empty"),
    ],
)
def test_an_empty_word_is_refused(command: Any, arguments: tuple[str, ...], message: str) -> None:
    done = command(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
