"""What no machine could meet is refused where it is written, in a message of bounded length."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from mlx_peft.config import suite
from mlx_peft.config.files import dump, load
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError, shown, suggest
from mlx_peft.core.sections import bare, sections, variants
from mlx_peft.vit.registry import find

VALID = "model: {name: vit_small_patch16_224}\nmethod: {name: linear}\ndata: {name: digits}\n"

BEYOND = ("9" * 400, "1e39", "1e300", "-1e300", str(-(2**64)))
"""Numbers outside of every bound."""

NEVER = ("1e400", "-1e400", "9" * 4400, "x" * 5000, r'"\0"', r'"a\0b"', "a/" * 2500, "[[1e300]]")
"""What no field takes, whether it is a number or a text."""

LONGEST = 3000
"""Of a message about one place: what is quoted of the user's text is a part of it."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(VALID)
    return path


def leaves(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every plain field of a section by its place, with its annotation, and the override that chooses the section."""
    for name, field in model.model_fields.items():
        inner = f"{place}{name}"
        kinds = sections(field.annotation)
        for kind in kinds:
            chosen = next((key for key, one in variants(kinds).items() if one is kind), None)
            for leaf, annotation, choice in leaves(kind, f"{inner}."):
                yield leaf, annotation, choice or (f"{inner}.name={chosen}" if chosen else "")
        if not kinds:
            yield inner, field.annotation, ""


LEAVES = list(leaves(Experiment))


def numeric(annotation: Any) -> bool:
    """Whether a number may stand there, alone or in a list."""
    inner = bare(annotation)
    if get_origin(inner) is tuple:
        inner = bare(get_args(inner)[0])
    return bool({int, float} & {bare(item) for item in get_args(inner) or (inner,)})


def answer(file: Path, *overrides: str) -> str | None:
    """The refusal, which is short; or None, where what was accepted is written and read back the same."""
    try:
        experiment = load(file, overrides)
    except UserError as error:
        assert len(str(error)) < LONGEST
        return str(error)
    file.with_name("again.yaml").write_text(dump(experiment), "utf-8")
    assert load(file.with_name("again.yaml")) == experiment
    return None


def test_the_schema_has_numbers_and_texts_in_every_section() -> None:
    assert len(LEAVES) > 100
    assert sum(numeric(annotation) for _, annotation, _ in LEAVES) > 60


@pytest.mark.one_in(2)
@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize(
    ("leaf", "annotation", "choice"), LEAVES, ids=[f"{leaf}{choice and f' {choice}'}" for leaf, _, choice in LEAVES]
)
def test_no_field_takes_what_no_machine_could_meet(
    file: Path, leaf: str, annotation: Any, choice: str, turn: int
) -> None:
    """Every day every other value."""
    chosen, wrong, items = [choice] if choice else [], [*NEVER], get_args(bare(annotation))
    if numeric(annotation):
        pair = get_origin(bare(annotation)) is tuple and ... not in items
        wrong += [f"[{', '.join([value] * len(items))}]" if pair else value for value in BEYOND]
        wrong += [".inf", "-.inf", ".nan"] if str not in map(bare, items) else []
        wrong += [str(2**64)] if bare(annotation) is int else []
    for value in wrong[turn::2]:
        assert answer(file, *chosen, f"{leaf}={value}") is not None, f"{leaf}={value[:40]} was accepted"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"train.optimizer.lr={'9' * 400}", "train.optimizer.lr: should be a finite number, not"),
        ("data.batch_size=1000000000", "data.batch_size: should be less than or equal to 1048576, not 1000000000"),
        ("data.augment.repeats=1000000000", "data.augment.repeats: should be less than or equal to 1000"),
        ("data.augment.scale=[1e-300, 1e9]", "data.augment.scale: should be between 0.0001 and 10000"),
        ("data.cache.gigabytes=1e300", "data.cache.gigabytes: should be less than or equal to 1000000"),
        ("model.image_size=0", "model.image_size: should be greater than or equal to 1, not 0"),
        ("model.image_size=-224", "model.image_size: should be greater than or equal to 1, not -224"),
        ("model.image_size=100000", "model.image_size: should be less than or equal to 4096, not 100000"),
        ("data.split.seed=4294967296", "data.split.seed: should be less than 4294967296"),
        ('data.root="a\\0b"', "data.root: has a NUL character"),
        ('model.weights="a\\0b"', "model.weights: has a NUL character"),
        (f"data.root={'a' * 300}", "data.root: is too long for a path: 300 bytes, at most 4,096, and 255 in each"),
        (f"data.cache.folder={'a/' * 3000}", "data.cache.folder: is too long for a path: 5,999 bytes"),
        (f"model.name={'v' * 100_000}", "model.name: should be text of at most 200 characters, not 'vvv"),
        (f"{'a.' * 5000}b=1", "deeper than 32 keys"),
        (f"a={'[' * 5000}", "nested deeper than 32"),
        ("method.blocks=first 99999999999999", "should be like 'last 4'"),
    ],
)
def test_the_message_says_what_would_be_right(file: Path, override: str, message: str) -> None:
    chosen = ["method.name=bitfit"] if "blocks" in override else []
    assert message in str(answer(file, *chosen, override)).replace("Value error, ", "")


def test_wrong_keys_without_number_are_counted_past_the_first(file: Path) -> None:
    file.write_text(VALID + "".join(f"k{number}: 0\n" for number in range(3000)))
    with pytest.raises(UserError) as refused:
        load(file)
    assert str(refused.value).count("unknown key") == 40
    assert str(refused.value).endswith("and others: these are the first 40")


def test_neither_long_names_nor_long_lists_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding the nearest takes the product of the lengths."""
    compared: list[tuple[int, int]] = []
    near = difflib.get_close_matches

    def counted(word: str, known: Any, **options: Any) -> list[str]:
        compared.append((len(word), max(map(len, known), default=0)))
        return near(word, known, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    assert suggest("rnak", ["rank", "x" * 100_000]) == "; did you mean 'rank'?"
    assert suggest("x" * 100_000, ["x" * 99_999, "rank"]) == ""
    assert suggest("rnak", map(str, range(100_000))) == ""
    with pytest.raises(UserError) as refused:
        find("vit_" * 25_000)
    assert len(str(refused.value)) < LONGEST
    assert all(a <= 200 and b <= 200 for a, b in compared)


def test_what_is_quoted_is_short_and_printable() -> None:
    assert shown("a'b") == '"a\'b"'
    assert shown("\x1b[31m\n") == r"'\x1b[31m\n'"
    assert len(shown("\x1b" * 10**6)) == len(shown(["x" * 100] * 100)) == 60
    assert shown("x" * 58) == repr("x" * 58)
    assert shown("x" * 59) == repr("x" * 59)[:57] + "..."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"axes: {{{'.'.join('a' * 40)}: [1]}}", "is no key"),
        (f"set: {{{'.'.join('a' * 400)}: 1}}", "is no key"),
        (f"runs: [{{name: {'a' * 101}}}]", "should be text of at most 100 characters"),
        (f"axes: {{model.name: [{'a' * 300}, b]}}", "too long a name for a folder"),
        ("seeds: [4294967296]", "should be less than 2147483648"),
        ("set: {" + ", ".join(f"k{n}: 0" for n in range(10_000)) + "}", "set: has 10,000 keys, at most 150"),
        (f"seeds: {list(range(1000))}\nset: {{a: {[0] * 9000}}}", "1,000 runs of a file of 10,00"),
        ("axes: {" + ", ".join(f"k{n}: {list(range(60))}" for n in range(60)) + "}", "more than 1000 runs"),
    ],
)  # fmt: skip
def test_a_suite_is_bounded_likewise(tmp_path: Path, file: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"base: {file.name}\n{text}\n")
    with pytest.raises(UserError) as refused:
        suite.load(path)
    assert message in str(refused.value)
    assert len(str(refused.value)) < LONGEST


@pytest.mark.parametrize("base", ["a" * 300 + ".yaml", "a/" * 3000 + "b.yaml", r'"a\0.yaml"'])
def test_a_base_that_no_file_system_could_have_is_refused(tmp_path: Path, file: Path, base: str) -> None:
    file.write_text(f"base: {base}\n{VALID}")
    assert re.search("too long for a path|has a NUL character", str(answer(file)))
    path = tmp_path / "suite.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises(UserError, match=r"too long|has a NUL character|at most 4096"):
        suite.load(path)
