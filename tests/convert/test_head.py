"""Which head a model begins with: the weights' own where it is known to be for the same classes, else a new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mlx_peft
import torch_ref
from convert import head as heads
from convert.base import Base, load_base
from convert.timm import read
from convert.timm.write import write_model
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.task import Task
from mlx_peft.vit.initial import initial_head

Tiny = Callable[..., Base]
Begun = Callable[..., Base]
NAME = "deit_tiny_distilled_patch16_224"
CLASSES = ("cat", "dog", "emu", "fox", "gnu")


@pytest.fixture
def old(tiny: Tiny) -> Base:
    return tiny(NAME)


@pytest.fixture
def begun(old: Base, tmp_path: Path) -> Begun:
    """A base begun from a folder of weights for ``theirs``."""

    def begin(
        wish: str | None, ours: Sequence[str], theirs: Sequence[str] = CLASSES, task: Task = SINGLE_LABEL
    ) -> Base:
        if not (tmp_path / "model").exists():
            write_model(tmp_path / "model", base=old, tensors=old.tensors, classes=theirs, exactly=True)
        model = Model.model_validate({"name": NAME, "weights": str(tmp_path / "model"), "head": wish})
        return load_base(model, len(ours), 7, classes=ours, task=task)

    return begin


def rows(base: Base, old: Base) -> list[int] | None:
    """Which rows of the old heads those of the new model are; None where they are none of them."""
    found = [[np.flatnonzero((w == row).all(1)).tolist() for row in base.tensors[f"{name}.weight"]]
             for name in ("head", "head_dist") for w in [old.tensors[f"{name}.weight"]]]  # fmt: skip
    if found == [[[]] * len(base.tensors["head.weight"])] * 2:
        return None
    first, second = ([row for (row,) in one] for one in found)
    assert first == second
    for name in ("head", "head_dist"):
        np.testing.assert_array_equal(base.tensors[f"{name}.bias"], old.tensors[f"{name}.bias"][first])
    return first


SAID = "head: kept, its classes are the data's"
SAME = [0, 1, 2, 3, 4]
MIXED = ("gnu", "cat", "emu", "dog", "fox")
OTHERS = ("apple", "pear", "fig", "plum", "lime")


@pytest.mark.parametrize(
    ("wish", "ours", "theirs", "kept", "said"),
    [
        (None, CLASSES, CLASSES, SAME, SAID),
        (None, MIXED, CLASSES, [4, 0, 2, 1, 3], f"{SAID} in another order: its rows are put in theirs"),
        (None, OTHERS, CLASSES, None, "head: a new one for 5 classes, the weights have one for others (row 0 is 'cat', "
         "and should be 'apple')"),
        (None, CLASSES, (), None, "head: a new one for 5 classes; the weights have one for as many, but whether they "
         "are the same is not known"),
        (None, CLASSES[:4], CLASSES, None, "head: a new one for 4 classes, the weights have one for 5"),
        ("new", CLASSES, CLASSES, None, "head: a new one for 5 classes, as asked"),
        ("keep", CLASSES, CLASSES, SAME, "head: kept as asked, its classes are the data's"),
        ("keep", MIXED, CLASSES, [4, 0, 2, 1, 3], "head: kept as asked, its classes are the data's in another order: "
         "its rows are put in theirs"),
        ("keep", CLASSES, (), SAME, "head: kept as asked, whether its 5 classes are the same is not known"),
        ("keep", OTHERS, CLASSES, SAME, "head: kept as asked, though the weights name other classes (row 0 is 'cat', "
         "and should be 'apple')"),
        ("keep", ("cat", "dog", "emu", "fox", "yak"), CLASSES, SAME, "head: kept as asked, though the weights name "
         "other classes (row 4 is 'gnu', and should be 'yak')"),
    ],
)  # fmt: skip
def test_a_head_is_kept_where_its_classes_are_the_data_s_or_it_is_asked_for(
    begun: Begun, old: Base, wish: str | None, ours: Sequence[str], theirs: Sequence[str], kept: list[int] | None,
    said: str,
) -> None:  # fmt: skip
    base = begun(wish, ours, theirs)
    assert rows(base, old) == kept
    assert base.notes[-1] == said == base.head.note
    assert base.head.kept == (kept is not None)
    if kept is None:
        for name, tensor in initial_head(base.architecture, len(ours), 7).items():
            np.testing.assert_array_equal(base.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (CLASSES[:4], CLASSES, "the head of .* is for 5 classes, and 4 are needed"),
        (
            ("dog", "cat", "emu", "fox", "yak"),
            CLASSES,
            "row 1 of the head of .* is 'dog', which is class 0 of the data",
        ),
    ],
)
def test_a_head_that_would_answer_something_else_is_not_kept(
    begun: Begun, ours: Sequence[str], theirs: Sequence[str], message: str
) -> None:
    with pytest.raises(UserError, match=f"model.head: keep, but {message}.*write new, or leave it out"):
        begun("keep", ours, theirs)


def test_there_must_be_a_head_to_keep(tiny: Tiny, saved: Callable[[dict[str, np.ndarray]], str]) -> None:
    path = saved({name: tensor for name, tensor in tiny(NAME).tensors.items() if not name.startswith("head_dist")})
    sizes = {"depth": 3, "embed_dim": 24, "num_heads": 3}
    for weights, source in ((path, path), ("none", "random")):
        with pytest.raises(UserError, match=f"model.head: keep, but {source} has no head to keep"):
            load_base(Model(name=NAME, weights=weights, image_size=64, args=sizes, head="keep"), 5, 0)


def test_the_same_classes_in_another_task_are_other_answers(begun: Begun, old: Base) -> None:
    base = begun(None, CLASSES, CLASSES, MULTI_LABEL)
    assert rows(base, old) is None
    assert "answers another task, in which an image has one class" in base.head.reason
    assert rows(begun("keep", CLASSES, CLASSES, MULTI_LABEL), old) == SAME


@pytest.mark.parametrize("kept", [True, False])
def test_published_weights_of_imagenet_have_its_classes(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """timm has ImageNet-1k's classes in the order of WordNet's identifiers; a digest of them is all that is known."""
    synsets = pytest.importorskip("timm.data").ImageNetInfo("imagenet-1k").label_names()
    ours = synsets[::-1] if kept else [*synsets[:-1], "n99999999"]
    found = tiny("deit_tiny_patch16_224", classes=1000)
    tensors = dict(found.tensors)
    monkeypatch.setattr(read, "download", lambda *_: Path())
    monkeypatch.setattr(read, "read_tensors", lambda _: tensors)
    sizes = {"depth": 3, "embed_dim": 24, "num_heads": 3}
    base = load_base(Model(name="deit_tiny_patch16_224", image_size=64, args=sizes), 1000, 0, classes=ours)
    assert base.head.kept == kept
    expected = tensors["head.weight"][::-1] if kept else initial_head(base.architecture, 1000, 0)["head.weight"]
    np.testing.assert_array_equal(base.tensors["head.weight"], expected)
    assert len(synsets) == heads.USUAL_CLASSES


@pytest.mark.parametrize("mp", [mlx_peft, torch_ref], ids=["mlx", "torch"])
def test_in_a_notebook_a_head_is_kept_where_nobody_says_how_many_classes_there_are(
    mp: ModuleType, tiny: Tiny, tmp_path: Path
) -> None:
    old = tiny("deit_tiny_patch16_224")
    write_model(tmp_path / "model", base=old, tensors=old.tensors)

    def head(**options: Any) -> np.ndarray:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = mp.create_model("deit_tiny_patch16_224", str(tmp_path / "model"), **options)
        assert bool(caught) == (options == {"num_classes": 5}), "as many classes need not be the same ones"
        found: np.ndarray = mp.state_dict(model)["head.weight"]
        return found

    own = old.tensors["head.weight"]
    np.testing.assert_array_equal(head(), own)
    np.testing.assert_array_equal(head(num_classes=5, head="keep"), own)
    for options in ({"num_classes": 5}, {"num_classes": 5, "head": "new"}, {"head": "new"}):
        new = head(**options)
        assert new.shape == own.shape and not (new == own).any()
    assert len(head(num_classes=7)) == 7
    with pytest.raises(UserError, match="is for 5 classes, and 7 are needed"):
        head(num_classes=7, head="keep")


def test_a_choice_that_was_not_made_is_in_no_file() -> None:
    assert "head" not in Model(name=NAME).model_dump()
    assert Model(name=NAME, head="keep").model_dump(mode="json")["head"] == "keep"
    assert '"head":' not in Model(name=NAME).model_dump_json()
