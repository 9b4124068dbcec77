"""Methods as Hugging Face PEFT begins and trains them, read by both backends; what is more than that is refused."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
from comparing import relative
from foreign_models import prepared
from peft_reference import gradients, logits, timm_of

# isort: split

from interop.tuners import EVERYWHERE, begun, own, same_beginning
from interop.vera_ia3 import GRADIENTS, IMAGES, LABELS, LOGITS, build, reread, rewritten, trained_by_peft

from convert.adapters.peft import read_adapter
from mlx_peft.core.errors import UserError

THEIRS = {
    "oft": (
        lambda: peft.OFTConfig(target_modules=rf"{EVERYWHERE}(qkv|fc2)", oft_block_size=8, module_dropout=0.2),
        {"block_size": 8, "targets": ("qkv", "fc2"), "blocks": None, "cayley": "neumann", "terms": 5},
    ),
    "oft exact": (
        lambda: peft.OFTConfig(target_modules=["blocks.1.attn.proj"], oft_block_size=12, use_cayley_neumann=False),
        {"block_size": 12, "targets": ("proj",), "blocks": (1,), "cayley": "exact"},
    ),
    "oft three terms, which are four": (
        lambda: peft.OFTConfig(target_modules=["qkv"], oft_block_size=8, num_cayley_neumann_terms=3),
        {"block_size": 8, "terms": 4},
    ),
    "oft of so many blocks, shared": (
        lambda: peft.OFTConfig(target_modules=["qkv", "fc2"], r=6, oft_block_size=0, block_share=True),
        {"block_count": 6, "block_share": True},
    ),
    "boft": (
        lambda: peft.BOFTConfig(target_modules=["qkv", "fc1"], boft_block_size=8, boft_dropout=0.1),
        {"block_size": 8, "targets": ("qkv", "fc1"), "factors": 1},
    ),
    "boft of so many blocks": (
        lambda: peft.BOFTConfig(target_modules=["qkv", "fc2"], boft_block_size=0, boft_block_num=4),
        {"block_count": 4},
    ),
    "road": (
        lambda: peft.RoadConfig(target_modules=["qkv", "fc1"], group_size=24),
        {"variant": 1, "group_size": 24, "targets": ("qkv", "fc1")},
    ),
    "road of four": (
        lambda: peft.RoadConfig(target_modules=["qkv"], group_size=6, variant="road_4"),
        {"variant": 4, "group_size": 6},
    ),
    "loha": (
        lambda: peft.LoHaConfig(target_modules=["qkv", "fc2"], r=3, alpha=5, module_dropout=0.1, rank_dropout=0.1),
        {"rank": 3, "alpha": 5.0, "targets": ("qkv", "fc2")},
    ),
    "lokr": (
        lambda: peft.LoKrConfig(target_modules=["qkv", "fc2"], r=3, alpha=5, rank_dropout=0.1, rank_dropout_scale=True),
        {"rank": 3, "alpha": 5.0, "targets": ("qkv", "fc2"), "factor": None, "decompose_both": False},
    ),
    "lokr of both": (
        lambda: peft.LoKrConfig(target_modules=["qkv"], r=2, decompose_both=True, decompose_factor=6),
        {"factor": 6, "decompose_both": True},
    ),
    "miss": (
        lambda: peft.MissConfig(target_modules=["qkv", "fc2"], r=9, miss_dropout=0.1),
        {"rank": 9, "mini": None, "dropout": 0.1, "targets": ("qkv", "fc2")},
    ),
    "miss mini": (
        lambda: peft.MissConfig(target_modules=["qkv", "fc2"], r=8, init_weights="mini", mini_r=6),
        {"rank": 8, "mini": 6},
    ),
    "randlora": (
        lambda: peft.RandLoraConfig(
            target_modules=["qkv", "fc1", "fc2"], r=7, randlora_alpha=2, randlora_dropout=0.1, projection_prng_key=5
        ),
        {"rank": 7, "alpha": 2.0, "dropout": 0.1, "projection_key": 5, "targets": ("qkv", "fc1", "fc2")},
    ),
    "randlora very sparse": (
        lambda: peft.RandLoraConfig(target_modules=["blocks.1.attn.proj"], r=24, randlora_alpha=2, very_sparse=True),
        {"rank": 24, "bases": "very_sparse", "targets": ("proj",), "blocks": (1,)},
    ),
    "randlora without projections": (
        lambda: peft.RandLoraConfig(target_modules=["qkv", "attn.proj"], r=5, randlora_alpha=2, save_projection=False),
        {"rank": 5, "bases": "uniform", "targets": ("qkv", "proj")},
    ),
    "pvera": (
        lambda: peft.PveraConfig(
            target_modules=["qkv", "fc2"],
            r=6,
            pvera_dropout=0.25,
            d_initial=0.5,
            projection_prng_key=7,
            generator_seed=3,
        ),
        {"rank": 6, "dropout": 0.25, "d_initial": 0.5, "projection_key": 7, "targets": ("qkv", "fc2"), "blocks": None},
    ),
    "pvera without projections": (
        lambda: peft.PveraConfig(target_modules=["qkv", "fc1", "fc2"], r=4, save_projection=False),
        {"rank": 4, "targets": ("qkv", "fc1", "fc2")},
    ),
    "oft of a size that divides nothing": (
        lambda: peft.OFTConfig(target_modules=["qkv"], oft_block_size=7),
        {"block_size": 6},
    ),
}


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:Invalid .oft_block_size.", "ignore:Specified to not save")
@pytest.mark.parametrize("case", THEIRS)
def test_an_adapter_that_peft_trained_is_read(case, backend, tmp_path):
    config, expected = THEIRS[case][0](), THEIRS[case][1]
    config.modules_to_save = ["head"]
    model, base = trained_by_peft(config, tmp_path)
    trainer, adapter = reread(backend, base, tmp_path)
    assert {field: getattr(adapter.method, field) for field in expected} == expected
    found = logits(model, prepared(IMAGES, base))
    assert relative(trainer.model.logits(IMAGES), found) < LOGITS
    assert relative(logits(timm_of(base), prepared(IMAGES, base)), found) > 0.01  # so the adapter does something
    theirs = gradients(model, prepared(IMAGES, base), LABELS)
    _, ours = trainer.loss_and_gradients(IMAGES, LABELS)
    for key, gradient in ours.items():
        assert relative(gradient, own(theirs, key, adapter.method)) < GRADIENTS, key


def test_a_loha_of_several_ranks_and_scalings_is_one_of_the_largest(backend, tmp_path):
    config = peft.LoHaConfig(target_modules=["qkv", "fc2"], r=2, rank_pattern={"fc2": 4}, alpha_pattern={"qkv": 3})
    config.modules_to_save = ["head"]
    model, base = trained_by_peft(config, tmp_path)
    trainer, adapter = reread(backend, base, tmp_path)
    assert (adapter.method.rank, adapter.method.alpha) == (4, 16)
    assert relative(trainer.model.logits(IMAGES), logits(model, prepared(IMAGES, base))) < LOGITS


REFUSED = {
    "COFT": (lambda: peft.OFTConfig(target_modules=["qkv"], oft_block_size=8, coft=True), "coft: True"),
    "MiSS that multiplies": (
        lambda: peft.MissConfig(target_modules=["qkv"], r=8, init_weights="bat"),
        "init_weights 'bat' multiplies the weight",
    ),
    "PVeRA that draws as it answers": (
        lambda: peft.PveraConfig(target_modules=["qkv"], r=2, sample_at_inference=True),
        "sample_at_inference: True",
    ),
    "RandLoRA of an MLP without its projections": (
        lambda: peft.RandLoraConfig(target_modules=["qkv", "fc2"], r=5, save_projection=False),
        "what it has of fc2 does not say how large they are: .* save_projection=True",
    ),
    "RandLoRA of the patches": (
        lambda: peft.RandLoraConfig(target_modules=["qkv", "head"], r=3),
        r"no RandLoRA of a linear layer in a block: head\.randlora",
    ),
    "LoKr of several ranks": (
        lambda: peft.LoKrConfig(target_modules=["qkv", "fc2"], r=2, rank_pattern={"fc2": 4}),
        "rank_pattern: {'fc2': 4}",
    ),
    "no rotation": (
        lambda: peft.OFTConfig(target_modules=["qkv"], oft_block_size=8, num_cayley_neumann_terms=2),
        "a Neumann series of 1 or 2 terms is no rotation",
    ),
    "blocks of several sizes": (
        lambda: peft.OFTConfig(target_modules=["qkv", "fc2"], oft_block_size=64),
        r"its layers have blocks of several sizes, \[24, 48\]",
    ),
}


@pytest.mark.filterwarnings("ignore:Invalid .oft_block_size.", "ignore:Specified to not save")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_the_method_is_refused(case, tmp_path):
    trained_by_peft(REFUSED[case][0](), tmp_path)
    with pytest.raises(UserError, match=REFUSED[case][1]):
        read_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore:Specified to not save")
@pytest.mark.parametrize("saved", [True, False])
def test_a_randlora_whose_tensors_are_not_of_its_rank_is_refused(saved, tmp_path):
    trained_by_peft(peft.RandLoraConfig(target_modules=["qkv"], r=5, save_projection=saved), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"r": 65_000}))
    with pytest.raises(UserError, match=r"qkv has a randlora_lambda \(5, 5\) .*, and the rank is 65000"):
        read_adapter(tmp_path)
    file.write_text(json.dumps(config | {"save_projection": True}))
    flat = {
        "base_model.randlora_A": np.ones((5, 24), np.float32),
        "base_model.randlora_B": np.ones((72, 5), np.float32),
    }
    rewritten(tmp_path, lambda tensors: tensors.update(flat))
    with pytest.raises(UserError, match="are not of the rank 5"):
        read_adapter(tmp_path)


def test_an_oft_of_before_the_series_changed_is_refused(tmp_path):
    trained_by_peft(peft.OFTConfig(target_modules=["qkv"], oft_block_size=8), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    for version in ("0.17.1", None):
        file.write_text(json.dumps(config | {"peft_version": version}))
        with pytest.raises(UserError, match=r"PEFT before 0\.18\.0 turned by another series"):
            read_adapter(tmp_path)


BEGINNINGS = {
    "oft": (
        lambda: peft.OFTConfig(target_modules=rf"{EVERYWHERE}(qkv|fc2)", oft_block_size=8),
        {"name": "oft", "block_size": 8, "targets": ["qkv", "fc2"]},
    ),
    "boft": (
        lambda: peft.BOFTConfig(target_modules=rf"{EVERYWHERE}(qkv|proj)"),
        {"name": "boft"},
    ),
    "road": (
        lambda: peft.RoadConfig(target_modules=rf"{EVERYWHERE}(qkv|proj)", group_size=12),
        {"name": "road", "group_size": 12},
    ),
    "loha": (
        lambda: peft.LoHaConfig(target_modules=rf"{EVERYWHERE}(qkv|proj)"),
        {"name": "loha"},
    ),
    "lokr": (
        lambda: peft.LoKrConfig(target_modules=rf"{EVERYWHERE}(qkv|proj)", r=2, decompose_both=True),
        {"name": "lokr", "rank": 2, "decompose_both": True},
    ),
    "miss": (
        lambda: peft.MissConfig(target_modules=rf"{EVERYWHERE}(qkv|proj)", r=12),
        {"name": "miss", "rank": 12},
    ),
    "randlora": (
        lambda: peft.RandLoraConfig(target_modules=rf"{EVERYWHERE}(qkv|fc2)", r=7),
        {"name": "randlora", "rank": 7, "targets": ["qkv", "fc2"]},
    ),
    "pvera": (
        lambda: peft.PveraConfig(target_modules=rf"{EVERYWHERE}(proj|fc2)", r=6),
        {"name": "pvera", "rank": 6, "targets": ["proj", "fc2"]},
    ),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", BEGINNINGS)
def test_it_begins_with_what_peft_begins_with(case, backend):
    """The same shapes everywhere; the same numbers where nothing is drawn, and of what is drawn the same extent."""
    config, method = BEGINNINGS[case]
    trainer, base = build(backend, method)
    theirs = begun(config(), base)
    for name, tensor in trainer.model.adapter().items():
        if name.startswith(("head", "shared")):
            continue
        other = own(theirs, name, trainer.experiment.method)
        assert tensor.shape == other.shape
        assert same_beginning(tensor, other), name
