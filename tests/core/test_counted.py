"""What is counted stands in the form that goes with its number."""

import pytest

from mlx_peft.core.text import counted


@pytest.mark.parametrize(
    ("number", "word", "text"),
    [
        (1, "epoch", "1 epoch"),
        (3, "step", "3 steps"),
        (0, "image", "0 images"),
        (1200, "class", "1,200 classes"),
        (1, "class", "1 class"),
        (2, "epoch", "2 epochs"),
        (2, "batch", "2 batches"),
        (2, "test image", "2 test images"),
    ],
)
def test_a_number_and_its_word(number: int, word: str, text: str) -> None:
    assert counted(number, word) == text


def test_a_word_may_have_a_plural_of_its_own() -> None:
    assert counted(2, "entry", "entries") == "2 entries"
