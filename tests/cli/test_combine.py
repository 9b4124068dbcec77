"""``combine`` as a person runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from banks import adapter, base_of

from convert.adapters.peft import write_adapter
from mlx_peft.config.methods import LoRA


@pytest.fixture
def three(command: Any) -> None:
    """Adapters a and b with a head of 5 classes each, and c with the rank 2, in the working directory."""
    for number, (name, rank) in enumerate((("a", 4), ("b", 4), ("c", 2))):
        write_adapter(Path(name), adapter(base_of(), LoRA(rank=rank), number, classes=5))


def test_it_says_what_was_made_and_which_files(command: Any, three: None) -> None:
    done = command("combine", "a=0.7", "b=-3e-1", "c", "--out", "out", "--head", "b")
    assert done.exit_code == 0, done.stderr
    said, *files = done.stdout.splitlines()
    assert said == (
        "LoRA(rank=10, alpha=10.0): cat of 0.7 x a and -0.3 x b and 1 x c, the head of b, "
        "5 classes (class 0, class 1, class 2, ...)"
    )
    assert {line.split()[0] for line in files} == {str(path) for path in Path("out").iterdir()}
    assert done.stderr == ""


def test_json_is_one_document(command: Any, three: None) -> None:
    done = command(
        "combine", "a=0.5", "b=0.5", "--how", "ties", "--density", 0.2, "--head", "mean", "--out", "o", "--json"
    )
    found = json.loads(done.stdout)
    assert [(one["name"], one["weight"]) for one in found["adapters"]] == [("a", 0.5), ("b", 0.5)]
    assert (found["combination"]["how"], found["head"], found["method"]["rank"]) == ("ties", "mean", 4)
    assert found["files"].keys() == {str(path) for path in Path("o").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "Say which the result is to have"),
        (["a", "b", "--head", "a", "--how", "tise"], r"unknown way 'tise'; did you mean 'ties'"),
        (["a", "b", "--head", "a", "--how", "ties"], r"as density, such as 0.2"),
        (["a", "b", "--head", "a", "--rank", "3"], "cat has no use for rank: leave it out"),
        (["a=x", "b"], "a=x: the weight should be a number, not 'x'"),
        (["a=nan"], "the weight of a should be a finite number"),
        (["a=1", "a=2"], "an adapter is named twice"),
        (["a", "./b/../a/"], "an adapter is named twice"),
        (["a", "d", "--head", "a"], "d is not a folder"),
        (["a", "c", "--head", "a", "--how", "linear"], "has the ranks 2 and 4"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    command: Any, three: None, arguments: list[str], message: str
) -> None:
    done = command("combine", *arguments, "--out", "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not Path("out").exists()


def test_what_is_there_is_not_overwritten(command: Any, three: None) -> None:
    done = command("combine", "a", "--out", "b")
    assert done.exit_code == 2 and "b is already there: choose another folder" in done.stderr


def test_nothing_is_written_into_an_adapter(command: Any, three: None) -> None:
    for words in (["combine", "a", "--out", "b/sub/c"], ["convert", "a", "a/sub", "--to", "peft"]):
        done = command(*words)
        assert done.exit_code == 2 and "would lie in the adapter" in done.stderr and not list(Path().glob("*/sub"))


def test_the_options_that_would_mend_it_are_named(command: Any, three: None) -> None:
    assert "--head" in command("combine", "a", "b", "--out", "out").stderr
    assert "--density" in command("combine", "a", "b", "--head", "a", "--how", "ties", "--out", "out").stderr


def test_a_folder_whose_name_has_a_sign_of_equality_is_a_folder(command: Any, three: None) -> None:
    Path("a").rename("a=2")
    done = command("combine", "a=2", "--out", "out", "--json")
    assert json.loads(done.stdout)["adapters"][0] | {"sha256": ""} == {
        "name": "a=2", "method": "lora", "weight": 1.0, "sha256": "",
    }  # fmt: skip
