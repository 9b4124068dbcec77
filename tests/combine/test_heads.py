"""Whose head a combined adapter has: nobody guesses it."""

from __future__ import annotations

import numpy as np
import pytest
from banks import adapter, base_of

import mlx_peft as mp
from convert.adapters.peft import read_adapter
from mlx_peft.config.methods import LoRA
from mlx_peft.core.errors import UserError
from mlx_peft.tasks.registry import classification

CLASSES = ("cat", "dog", "owl", "eel", "ant")


def test_without_a_head_said_it_is_refused_with_what_to_write(written, tmp_path):
    given = [written("a", LoRA()), written("b", LoRA(), 1, classes=3)]
    with pytest.raises(UserError, match=r"a has 5 classes .*, b has 3 classes .*the name of one of them, mean .*join"):
        mp.combine(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wanted", ["a", "b", "path"])
def test_the_head_is_that_of_the_adapter_that_was_named(wanted, written, tmp_path):
    places = {name: written(name, LoRA(), i, classes=5 - i) for i, name in enumerate("ab")}
    chosen = places["b" if wanted == "path" else wanted]
    made = mp.combine(list(places.values()), tmp_path / "out", head=str(chosen) if wanted == "path" else wanted)
    own, found = read_adapter(chosen), read_adapter(tmp_path / "out")
    np.testing.assert_array_equal(found.tensors["head.weight"], own.tensors["head.weight"])
    assert found.classes == own.classes == made.adapter.classes


def test_the_mean_is_weighted_and_of_the_same_classes_whatever_their_order(written, tmp_path):
    one, other = adapter(base_of(), LoRA(), 0, 5), adapter(base_of(), LoRA(), 1, 5)
    order = [4, 2, 0, 1, 3]
    names = [CLASSES, tuple(CLASSES[i] for i in order)]
    places = [written(name, LoRA(), i, named=names[i]) for i, name in enumerate("xy")]
    mp.combine(dict(zip(places, (3.0, 1.0), strict=True)), tmp_path / "out", head="mean")
    found = read_adapter(tmp_path / "out")
    rows = [order.index(i) for i in range(5)]
    expected = 0.75 * one.tensors["head.weight"] + 0.25 * other.tensors["head.weight"][rows]
    np.testing.assert_allclose(found.tensors["head.weight"], expected, atol=1e-7)
    assert found.classes == CLASSES


def test_joined_heads_have_the_classes_of_all(written, tmp_path):
    places = [
        written("a", LoRA(), 0, classes=2, named=("cat", "dog")),
        written("b", LoRA(), 1, classes=3, named=("owl", "eel", "ant")),
    ]
    mp.combine(places, tmp_path / "out", head="join")
    found, own = read_adapter(tmp_path / "out"), [read_adapter(place) for place in places]
    assert found.classes == CLASSES
    np.testing.assert_array_equal(found.tensors["head.bias"], np.concatenate([o.tensors["head.bias"] for o in own]))


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("mean", {"classes": 3}, "heads of different classes have no mean"),
        ("mean", {"named": CLASSES}, "heads of different classes have no mean"),
        ("mean", {"task": classification(True)}, "these heads do not go together"),
        ("join", {}, "several heads have the class 'class 0'.* are not joined"),
        ("join", {"named": ()}, "the classes of b have no names"),
        ("c", {}, "no adapter here is called 'c'; the head can be that of a, b, or mean, or join"),
    ],
)
def test_a_head_that_there_cannot_be_is_refused(head, options, message, written, tmp_path):
    with pytest.raises(UserError, match=message):
        mp.combine([written("a", LoRA()), written("b", LoRA(), 1, **options)], tmp_path / "out", head=head)


def test_weights_that_cancel_have_no_mean_of_heads(written, tmp_path):
    given = {written("a", LoRA()): 1.0, written("b", LoRA(), 1): -1.0}
    with pytest.raises(UserError, match="weights add up to 0, so that their heads have no mean"):
        mp.combine(given, tmp_path / "out", head="mean")


@pytest.mark.parametrize("head", ["mean", "join"])
@pytest.mark.parametrize("args", [{"embed_dim": 48}, {"distilled": True}], ids=["another width", "two heads"])
def test_heads_of_different_models_do_not_go_together(head, args, written, tmp_path):
    given = [written("a", LoRA(), named=CLASSES), written("b", LoRA(), 1, base_of(**args), named=("f", *CLASSES[1:]))]
    with pytest.raises(UserError, match=r"these heads read what different models say: of a .*head.* and of b .*head"):
        mp.combine(given, tmp_path / "out", head=head)
