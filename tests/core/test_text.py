"""What is shown of names that a stranger chose: nothing in them is obeyed, and all of it can be seen."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata

import pytest

from mlx_peft.core.json_io import canonical, to_json
from mlx_peft.core.text import csv_cell, markdown, printable, printable_lines

ESCAPES = {
    "\x1b[31mred": r"\x1b[31mred",
    "two\nlines\r\tand a tab": r"two\nlines\r\tand a tab",
    "bell\x07, delete\x7f": r"bell\x07, delete\x7f",
    "eight bits \x9b31m": r"eight bits \u009b31m",
    "\u202egnp.exe": r"\u202egnp.exe",
    "isolated \u2066\u2069, marked \u200e\u200f\u061c": r"isolated \u2066\u2069, marked \u200e\u200f\u061c",
    "zero\u200bwidth\ufeff": r"zero\u200bwidth\ufeff",
    "tag \U000e0041": r"tag \U000e0041",
    "line\u2028separator\u2029": r"line\u2028separator\u2029",
    os.fsdecode(b"caf\xe9.png"): r"caf\xe9.png",
    "half \ud83d": r"half \ud83d",
}


@pytest.mark.parametrize(("text", "shown"), ESCAPES.items())
def test_what_is_not_seen_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["cat", "Löwe", "猫 と 犬", "می‌خواهم", "👩‍🔬", "🇬🇧", "e\u0301", r"C:\photos\cat.png", "[bold]", ""]
)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


def test_no_control_sign_and_no_half_pair_passes() -> None:
    shown = set(printable("".join(map(chr, [*range(0x20000), *range(0xE0000, 0xE0200)]))))
    left = {sign for sign in shown if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")}
    assert not left
    bidirectional = {"RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
    assert not {sign for sign in shown if unicodedata.bidirectional(sign) in bidirectional}
    assert "".join(shown).encode()


def test_lines_of_a_message_stay_lines() -> None:
    assert printable_lines("one\n  \x1b[2Jtwo") == "one\n  \\x1b[2Jtwo"


def test_markdown_obeys_nothing_in_a_name() -> None:
    assert markdown("a|b") == r"a\|b"
    assert markdown(r"a\|b") == r"a\\\|b"
    assert markdown("<b>[x](javascript:1)") == r"\<b>\[x\](javascript:1)"
    assert markdown("*so* `ls` __init__ &lt;") == r"\*so\* \`ls\` \_\_init\_\_ \&lt;"
    assert markdown("vit_tiny_patch16_224 R&D, 3 < 4\n") == r"vit_tiny_patch16_224 R&D, 3 < 4\n"


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd", "-cmd|'/c calc'!A1", "@sum(a1)", "\t=1", "\r=1", "＝1+1", "-", "-1+2"]
)
def test_a_spreadsheet_takes_no_name_for_a_formula(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text), 1])
    ((cell, _),) = csv.reader(io.StringIO(file.getvalue()))
    assert cell == f"'{printable(text)}"


@pytest.mark.parametrize("text", ["-0.5", "+3", "1e-3", "-.5", "cat", "a=b", ""])
def test_numbers_and_other_names_stay_as_they_are(text: str) -> None:
    assert csv_cell(text) == text


def test_json_of_a_name_that_is_not_utf8_is_json_and_gives_the_name_back() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    text = to_json({"image": name, "class": "猫"})
    assert "猫" in text
    assert json.loads(text.encode()) == {"image": name, "class": "猫"}
    assert os.fsencode(json.loads(text)["image"]) == b"caf\xe9.png"
    assert json.loads(to_json("\x9b2J \u202e \U000e0041 \n")) == "\x9b2J \u202e \U000e0041 \n"
    assert to_json("\x9b2J \U000e0041 \n") == r'"\u009b2J \udb40\udc41 \n"'
    assert to_json(["猫"], ascii=True, indent=None) == r'["\u732b"]'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": -float("inf")}]])
def test_what_json_has_no_word_for_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(value)


def test_the_canonical_text_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": ["é"]}) == canonical({"a": ["é"], "b": 1}) == r'{"a": ["\u00e9"], "b": 1}'
