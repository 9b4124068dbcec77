"""Methods by name, peft's words answered with ours, one short exception, what is trained in numbers."""

from __future__ import annotations

import traceback

import numpy as np
import peft
import pytest
import timm
from library.conftest import SIZE, create

from mlx_peft.core.errors import UserError


def test_a_method_is_named_with_its_options_behind(mp):
    one, other = create(mp), create(mp)
    mp.add_adapter(one, "lora", rank=4, targets="all-linear", seed=3)
    mp.add_adapter(other, mp.LoRA(rank=4, targets="all-linear"), seed=3)
    a, b = mp.state_dict(one), mp.state_dict(other)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert mp.add_adapter(create(mp)) is None, "LoRA where nothing is said"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"r": 8}, r"^LoRA: r: .*'rank'"),
        ("lora", {"lora_alpha": 8, "lora_dropout": 0.1}, r"'alpha'.*'dropout'"),
        ("lora", {"target_modules": ["qkv"]}, r"'targets'"),
        ("lora", {"use_dora": True, "use_rslora": True}, r"'dora'.*'rslora'"),
        ("lora", {"layers_to_transform": [0]}, r"'blocks'"),
        ("lora", {"init_lora_weights": "pissa"}, r"'init'"),
        ("lora", {"modules_to_save": ["head"]}, r"modules_to_save: .*the head is trained and saved always"),
        ("lora", {"bias": "none", "task_type": None}, r"bias: .*; task_type: "),
        ("ia3", {"feedforward_modules": ["fc2"]}, r"'feedforward'"),
        ("dora", {}, r"it is 'lora', dora=True"),
        ("lorra", {}, "did you mean 'lora'"),
        ("lora", {"rank": 0}, "rank: .* not 0"),
        ("lora", {"targets": ["query"]}, "targets.*'q'"),
    ],
)
def test_other_words_are_answered_with_ours(mp, method, options, message):
    with pytest.raises(UserError, match=message):
        mp.add_adapter(create(mp), method, **options)


def test_options_beside_a_whole_method_are_refused(mp):
    with pytest.raises(UserError, match="has its options already, and rank was given too"):
        mp.add_adapter(create(mp), mp.LoRA(), rank=4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mp: mp.LoRA(r=8),
        lambda mp: mp.QAT(bits=7),
        lambda mp: mp.Data(),
        lambda mp: mp.LoRA(8),
        lambda mp: setattr(mp.LoRA(), "rank", 16),
        lambda mp: mp.create_model("vit_tiny_patch16_224", image_size="large"),
    ],
)
def test_what_reaches_a_notebook_is_short_and_ours(mp, wrong):
    with pytest.raises(UserError) as caught:
        wrong(mp)
    text = "".join(traceback.format_exception(caught.value))
    assert "pydantic" not in text.lower() and len(caught.traceback) <= 4 and len(str(caught.value)) < 400


def test_what_is_trained_is_counted_as_peft_counts_it(mp):
    model = create(mp)
    everything = mp.summary(model)
    assert everything.method is None and everything.share == 1.0
    mp.add_adapter(model, "lora", rank=4, targets="all-linear")
    found = mp.summary(model)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", num_classes=4, img_size=SIZE, patch_size=8, embed_dim=48, depth=2, num_heads=3
    )
    options = peft.LoraConfig(r=4, target_modules=r".*blocks\.\d+\..*\.(qkv|proj|fc1|fc2)", modules_to_save=["head"])
    trainable, _ = peft.get_peft_model(theirs, options).get_nb_trainable_parameters()
    assert found.trainable == trainable and found.total == everything.total + trainable - found.head
    assert found.parts.keys() == {f"blocks.*.{p}" for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")} | {"head"}
    assert found.parts["head"] == found.head == 4 * 48 + 4
    assert repr(found).startswith(f"lora: {trainable:,} of ")


def test_a_version_is_there(mp):
    assert mp.__version__
    assert all(part.isdigit() for part in mp.__version__.split(".")[:2])


def test_an_adapter_over_weights_that_an_earlier_method_changed_is_not_saved(mp, tmp_path, images, labels):
    """Alone it would give other logits than it gives here, wherever it is loaded."""
    for method in ("full", "lora"):
        model = create(mp)
        mp.add_adapter(model, method)
        if method == "lora":
            mp.merge(model)
        mp.remove_adapter(model)
        mp.add_adapter(model, "linear")
        with pytest.raises(UserError, match="put it on a model as it was created"):
            mp.save_adapter(model, tmp_path / method)
