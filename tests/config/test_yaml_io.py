"""YAML in and out."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.config.yaml_io import MAX_DEPTH, parse, parse_value, write
from mlx_peft.core.errors import UserError

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))
look_alikes = st.sampled_from(
    ["1e-3", "1E5", "010", "0x10", "1_000", "yes", "no", "on", "null", "~", "", "true", "1:30"]
)
look_alikes |= st.sampled_from(
    ["2024-01-01", "-", "*a", "&a", "!x", "#", "a: b", "- a", ".inf", ".nan", "<<", "=", "1."]
)


@settings(max_examples=150)
@given(st.dictionaries(names, values | look_alikes, max_size=5))
def test_what_is_written_is_read_back(tree: dict[str, object]) -> None:
    assert parse(write(tree), "x").values == tree


@settings(max_examples=100)
@given(st.dictionaries(names, scalars | look_alikes, min_size=1, max_size=4))
def test_text_stays_text_for_another_reader(tree: dict[str, object]) -> None:
    other = yaml.safe_load(write(tree))
    assert {name: type(value) for name, value in other.items()} == {name: type(value) for name, value in tree.items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3E2", 300.0),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-7", -7),
        ("010", 10),
        ("~", None),
    ],
)
def test_numbers_are_read_as_they_are_meant(text: str, value: object) -> None:
    read = parse_value(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "no", "off", "2024-01-01", "1:30", "0x10", "1_000", ".nan", ".inf", "e3", "1e"]
)
def test_what_only_looks_like_a_value_is_text(text: str) -> None:
    assert parse_value(text, "x") == text


@settings(max_examples=100)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_as_python_writes_it(number: float) -> None:
    assert math.isclose(parse_value(repr(number), "x"), number, rel_tol=0)


def test_a_key_written_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(UserError, match=r"f\.yaml:4: 'rank' is written twice; first at f\.yaml:2"):
        parse("method:\n  rank: 1\n  name: lora\n  rank: 2\n", "f.yaml")


def test_where_each_value_stands_is_known() -> None:
    where = parse("a: 1\nb:\n  c:\n    - 1\n    - 2\n", "f.yaml").where
    assert where["a",] == "f.yaml:1"
    assert where["b", "c"] == "f.yaml:3"
    assert where["b", "c", 1] == "f.yaml:5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "f.yaml:2: aliases are not read"),
        ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "f.yaml:2: aliases"),
        ("a: " + "[" * 5000, f"f.yaml:1: nested deeper than {MAX_DEPTH}"),
        ("".join(" " * n + "a:\n" for n in range(100)), f"nested deeper than {MAX_DEPTH}"),
        ("a: !!python/object/apply:os.system [ls]\n", "the tag"),
        ("a: !!binary aGk=\n", "the tag"),
        ("a: 1e999\n", "'1e999' cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ('a: "\\ud800"\n', "cannot be read"),
        ("a: [1, 2\n", "expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("- 1\n", "should hold keys and values"),
        ("lora\n", "should hold keys and values"),
        ("? [a, b]\n: 1\n", "a key should be a name"),
        ("a: \x01\n", "unacceptable character"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "f.yaml")
    assert message in str(caught.value)


@settings(max_examples=200)
@given(st.text("ab:-[]{}&*!|>'\"%@`#,? \n\t0.e~\\\u0085\ufeff", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse(text, "x")
    except UserError:
        return
    assert parse(write(document.values), "x").values == document.values


def test_an_empty_text_is_an_empty_mapping() -> None:
    assert parse("# nothing\n", "x").values == {}


def test_lists_of_plain_values_are_written_on_one_line() -> None:
    assert write({"targets": ["qkv", "proj"], "betas": [0.9, 0.999]}) == "targets: [qkv, proj]\nbetas: [0.9, 0.999]\n"
