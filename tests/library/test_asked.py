"""What a notebook gives that cannot be meant is one sentence; what PEFT has a configuration for is understood."""

from __future__ import annotations

import numpy as np
import peft
import pytest
from library.conftest import CLASSES, create

from mlx_peft.config.methods import LoRA
from mlx_peft.core.errors import UserError
from mlx_peft.library.theirs import method_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "cat"}, "classes should be a list of names.* not 'cat'"),
        ({"classes": 3}, "not 3: how many there are is num_classes"),
        ({"classes": 0}, "not 0: how many there are is num_classes"),
        ({"classes": ["a", "a", "b"]}, "'a' is there twice"),
        ({"classes": []}, "one name at least"),
        ({"classes": ["a", ""]}, "one of them is empty"),
        ({"classes": {"a", "b"}}, "should be a list of names"),
        ({"classes": {0: "a"}}, "should be a list of names"),
        ({"classes": 2.5}, "should be a list of names"),
        ({"classes": None, "num_classes": 0}, "num_classes should be a whole number of at least 1, not 0"),
        ({"num_classes": 3}, "num_classes is 3, and classes has 4 names"),
    ],
)
def test_classes_are_names(mp, options, message):
    with pytest.raises(UserError, match=message):
        create(mp, **options)


def test_names_may_lie_in_an_array_and_rows_may_have_none(mp):
    assert create(mp, classes=np.array(CLASSES)).classes == CLASSES
    assert create(mp, classes=None, num_classes=5).head.weight.shape[0] == 5


def test_a_merged_method_is_not_trained_on(mp, images, labels):
    model = create(mp)
    mp.add_adapter(model, "lora", rank=2)
    replaced = mp.merge(model)
    with pytest.raises(UserError, match=r"the method is merged into the model.*unmerge it first"):
        mp.fit(model, (images, labels), epochs=1, batch_size=4, val=0, quiet=True)
    mp.unmerge(model, replaced)
    assert mp.fit(model, (images, labels), epochs=1, batch_size=4, val=0, quiet=True).epoch == 1


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"r": 4, "target_modules": ["qkv"]}, {"rank": 4, "alpha": 8, "targets": ["qkv"]}),
        ({"r": 4, "target_modules": ["query", "value"]}, {"rank": 4, "alpha": 8, "targets": ["q", "v"]}),
        ({"target_modules": "all-linear", "use_dora": True}, {"alpha": 8, "targets": "all-linear", "dora": True}),
        ({"r": 2, "lora_alpha": 3, "use_rslora": True}, {"rank": 2, "alpha": 3, "rslora": True}),
        ({"lora_dropout": 0.1, "modules_to_save": ["head"]}, {"alpha": 8, "dropout": 0.1}),
        ({"target_modules": ["fc1"], "layers_to_transform": [0]}, {"alpha": 8, "targets": ["fc1"], "blocks": [0]}),
        ({"init_lora_weights": "pissa", "task_type": "FEATURE_EXTRACTION"}, {"alpha": 8, "init": "pissa"}),
        ({"rank_pattern": {"fc1": 2}}, {"alpha": 8, "rank_pattern": {"fc1": 2}}),
    ],
)
def test_a_configuration_of_pefts_is_the_method_that_it_describes(theirs, ours):
    assert method_of(peft.LoraConfig(**theirs)) == LoRA(**ours)


def test_pefts_lora_scales_as_it_does_there(mp):
    model = create(mp)
    mp.add_adapter(model, peft.LoraConfig(r=4, target_modules=["qkv"]))
    assert model.method == LoRA(rank=4, alpha=8, targets=["qkv"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (None, r"by its name, 'lora', or LoRA\(rank=8\), not null \(NoneType\)"),
        (4, r"not 4 \(int\)"),
        (peft.LoraConfig, "not "),
        (peft.LoraConfig(target_modules=r".*\.qkv"), "is a pattern"),
        (peft.LoraConfig(target_modules=["qq"]), "targets"),
        (peft.LoraConfig(bias="all"), "bias=\"?'?all.* has no word here"),
        (peft.LoraConfig(init_lora_weights="gaussian"), "init_lora_weights=.* has no word here"),
        (peft.LoraConfig(exclude_modules=["fc1"]), "exclude_modules=.* has no word here"),
        (peft.IA3Config(), "LoraConfig alone is understood, not IA3Config"),
    ],
)
def test_a_method_that_is_none_is_told(mp, method, message):
    model = create(mp)
    with pytest.raises(UserError, match=message):
        mp.add_adapter(model, method)
    assert model.method is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mp, m: mp.optimizer(m, learning_rate=1e-3), "learning_rate: unknown key; did you mean 'lr'"),
        (lambda mp, m: m.predict(""), "an image: the path is empty"),
        (lambda mp, m: m.predict(["", "a.jpg"]), "an image: the path is empty"),
        (lambda mp, m: mp.prepare(m, ""), "an image: the path is empty"),
        (lambda mp, m: mp.evaluate(m, ""), "data: the path is empty"),
        (lambda mp, m: mp.evaluate(""), "the path is empty"),
        (lambda mp, m: mp.load(""), "what is loaded: the path is empty"),
        (lambda mp, m: mp.load(3), "what is loaded should be a path, not 3"),
        (lambda mp, m: mp.load("runs/nothere"), "runs/nothere: no such file or folder here, and as a name: unknown"),
        (lambda mp, m: mp.load_adapter(m, ""), "the adapter's folder: the path is empty"),
        (lambda mp, m: mp.load_adapter(m, "nothere"), "there is no folder nothere"),
        (lambda mp, m: mp.save_adapter(m, ""), "the adapter's folder: the path is empty"),
        (lambda mp, m: mp.save_adapter(m, "x", classes="abcd"), "should be a list of names"),
        (lambda mp, m: mp.Data(name="folder", root=""), "root: the path is empty"),
        (lambda mp, m: create(mp, weights=""), "weights: the path is empty"),
        (lambda mp, m: mp.fit("quickstart", out=""), "out: the path is empty"),
        (lambda mp, m: mp.summary(3), r"a model is wanted, .* not 3 \(int\)"),
        (lambda mp, m: mp.merge(None), "a model is wanted"),
        (lambda mp, m: mp.unmerge(None, {}), "a model is wanted"),
        (lambda mp, m: mp.state_dict("runs/a"), "a model is wanted"),
        (lambda mp, m: mp.add_adapter(None), "a model is wanted"),
        (lambda mp, m: mp.remove_adapter(None), "a model is wanted"),
        (lambda mp, m: mp.optimizer(None), "a model is wanted"),
        (lambda mp, m: mp.training_step(None, None), "a model is wanted"),
        (lambda mp, m: mp.prepare(None, []), "a model is wanted"),
        (lambda mp, m: mp.fit(None, "x"), "a model is wanted"),
        (lambda mp, m: mp.evaluate(3, "x"), "a model is wanted"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(mp, call, message):
    with pytest.raises(UserError, match=message):
        call(mp, create(mp))


def test_so_many_images_at_once_change_no_measure(mp, images, labels):
    model = create(mp)
    found, usual = mp.evaluate(model, (images, labels), batch_size=7), mp.evaluate(model, (images, labels))
    assert found["top1"] == usual["top1"] and found["count"] == len(images)


def test_what_is_shown_is_a_line(mp):
    model = create(mp)
    assert repr(mp.merge(model)) == "<0 layers that unmerge puts back>"
    assert repr(mp.optimizer(model, lr=1e-4)).startswith("AdamW(lr=0.0001, ")


def test_the_adapter_in_a_run_is_loaded(mp, tmp_path):
    model, other = create(mp), create(mp)
    mp.add_adapter(model, "lora", rank=2)
    mp.save_adapter(model, tmp_path / "run" / "adapter")
    mp.load_adapter(other, tmp_path / "run")
    assert other.method == model.method
