"""Fewer tokens in a configuration: what may be written, and what is refused before anything is made."""

from __future__ import annotations

import pytest

from mlx_peft.config.schema import Experiment
from mlx_peft.config.tokens import DyT, EViT, ReducerConfig, SkipViT, ToMe
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

SIXTEEN = Architecture(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)
PLAIN = {
    "model": {"name": "vit_tiny_patch16_224", "weights": "none"},
    "method": {"name": "linear"},
    "data": {"name": "digits"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tome", ToMe(r=13)),
        ("tome r=8", ToMe(r=8)),
        ("evit keep=0.5 blocks=[1,2]", EViT(keep=0.5, blocks=(1, 2))),
        ("evit blocks=[1, 2, 3] keep=0.5", EViT(keep=0.5, blocks=(1, 2, 3))),  # as a recipe has it
        ("evit keep=1", EViT(keep=1.0)),
        ("skipvit from=1 to=3", SkipViT.model_validate({"from": 1, "to": 3})),
        ("dyt rate=0.7", DyT(rate=0.7)),
        ("none", None),
    ],
)
def test_a_text_names_a_reducer_with_its_options(text: str, expected: ReducerConfig | None) -> None:
    found = reducer_of(text)
    assert found == expected
    assert expected is None or reducer_of(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tomes", "unknown reducer 'tomes'; did you mean 'tome'?; known: tome, evit, skipvit, dyt"),
        ("", "unknown reducer ''"),
        ("tome 13", "'13' is no option of tome"),
        ("NONE", "unknown reducer 'NONE'; did you mean 'none'?; known: tome, evit, skipvit, dyt, none"),
        ("none r=1", "none has no options"),
        ("evit blocks=[1,", "'blocks=[1,' cannot be read; write r=13 or blocks=[3,6,9]"),
        ("tome r=2 r=3", "'r' is written twice"),
        ("tome name=evit", "'name' is written twice"),
        ("tome r=true", "r: should be a whole number, not true"),
        ("evit keep=true", "keep: should be a number, not true"),
        ("evit blocks=[true]", "blocks[0]: should be a whole number, not true"),
        ("tome keep=1", "keep"),
        ("tome r=-1", "r: "),
        ("evit keep=0", "keep: "),
        ("evit keep=1.5", "keep: "),
        ("evit blocks=[]", "blocks: "),
        ("evit blocks=[3,1]", "blocks should be in order"),
        ("skipvit from=3 to=3", "from 3 should be before to 3"),
        ("dyt rate=0", "rate: "),
        ("dyt temperature=0", "temperature: "),
    ],
)
def test_what_is_no_reducer_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        reducer_of(text)
    assert said in str(refused.value) and refused.value.arguments == ("tokens",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tome r=9", "tokens.r: 9 is more than 8, half of the model's 16 patches"),
        ("evit blocks=[1,4]", "tokens.blocks: the model has no block 4: it has 4, counted from 0"),
        ("skipvit from=1 to=4", "tokens.to: the model has no block 4"),
    ],
)
def test_what_does_not_fit_a_model_is_refused(text: str, said: str) -> None:
    found = reducer_of(text)
    assert found is not None
    with pytest.raises(UserError, match=said):
        found.check(SIXTEEN)


@pytest.mark.parametrize("text", ["evit blocks=[1]", "skipvit from=1 to=2"])
def test_without_a_class_token_nobody_ranks_patches(text: str) -> None:
    without = SIXTEEN.model_copy(update={"class_token": False, "global_pool": "avg"})
    found = reducer_of(text)
    assert found is not None
    with pytest.raises(UserError, match="the model has no class token; tome needs none"):
        found.check(without)
    ToMe(r=3).check(without)


def test_it_is_left_out_of_files_where_there_is_none() -> None:
    assert "tokens" not in Experiment.model_validate(PLAIN).model_dump(mode="json")
    some = Experiment.model_validate(PLAIN | {"tokens": {"name": "skipvit", "keep": 0.5, "from": 1, "to": 3}})
    assert some.model_dump(mode="json")["tokens"] == {"name": "skipvit", "keep": 0.5, "from": 1, "to": 3}
    assert Experiment.model_validate(some.model_dump(mode="json")) == some


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("tome r=3", (13, 10, 7, 0)),
        ("tome r=8", (8, 4, 2, 0)),
        ("evit keep=0.7 blocks=[0,2]", (13, 13, 11, 0)),  # ceil(0.7 x 16) + 1, ceil(0.7 x 13) + 1
        ("evit keep=0.9 blocks=[0]", (16, 16, 16, 0)),  # one alone would be fused
        ("skipvit keep=0.55 from=1 to=2", (16, 9, 16, 0)),
        ("skipvit keep=1e-12 from=0 to=2", (1, 1, 16, 0)),  # one at least
        ("evit keep=1e-12 blocks=[0]", (2, 2, 2, 0)),
        ("dyt", (16, 16, 16, 0)),
    ],
)
def test_how_many_patches_are_left_is_known_before_there_is_an_image(text: str, left: tuple[int, ...]) -> None:
    found = reducer_of(text)
    assert found is not None
    assert found.left(SIXTEEN) == left


def test_a_share_is_not_rounded_up_for_what_floats_are_off_by() -> None:
    assert 0.55 * 100 > 55
    assert SkipViT(keep=0.55).kept(100) == 55
