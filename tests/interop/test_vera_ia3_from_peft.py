"""VeRA, (IA)^3 and LayerNorm tuning as PEFT trained them, read by both backends; what is more than that is refused."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative
from foreign_models import prepared
from peft_reference import gradients, logits, timm_of

# isort: split

from interop.vera_ia3 import (
    EVERYWHERE,
    GRADIENTS,
    IMAGES,
    LABELS,
    LOGITS,
    VERA,
    A,
    B,
    D,
    build,
    reread,
    rewritten,
    trained_by_peft,
    written,
)

from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.adaptation.projections import projections
from mlx_peft.core.errors import UserError

THEIRS = {
    "vera": (
        lambda: peft.VeraConfig(
            r=6, target_modules=rf"{EVERYWHERE}(qkv|fc2)", projection_prng_key=7, vera_dropout=0.25, d_initial=0.5
        ),
        {"rank": 6, "targets": ("qkv", "fc2"), "projection_key": 7, "dropout": 0.25, "d_initial": 0.5, "blocks": None},
    ),
    "vera one block": (
        lambda: peft.VeraConfig(r=2, target_modules=["blocks.1.attn.proj"]),
        {"rank": 2, "targets": ("proj",), "blocks": (1,)},
    ),
    "vera without projections": (
        lambda: peft.VeraConfig(
            r=6, target_modules=["qkv", "fc1", "fc2"], projection_prng_key=9, save_projection=False
        ),
        {"rank": 6, "targets": ("qkv", "fc1", "fc2"), "projection_key": 9},
    ),
    "vera of qkv without projections": (
        lambda: peft.VeraConfig(r=6, target_modules=["qkv"], save_projection=False),
        {"rank": 6, "targets": ("qkv",)},
    ),
    "ia3": (
        lambda: peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
        {"targets": ("qkv", "fc2"), "feedforward": ("fc2",)},
    ),
    "ia3 of outputs": (
        lambda: peft.IA3Config(target_modules=["attn.proj", "fc1"], feedforward_modules=[]),
        {"targets": ("proj", "fc1"), "feedforward": ()},
    ),
    "ia3 of inputs": (
        lambda: peft.IA3Config(target_modules=r"blocks\.0.*\.(qkv|fc1)", feedforward_modules=r"blocks.*"),
        {"targets": ("qkv", "fc1"), "feedforward": ("qkv", "fc1"), "blocks": (0,)},
    ),
    "layernorm": (
        lambda: peft.LNTuningConfig(target_modules=r"blocks\.\d+\.norm[12]|norm"),
        {"blocks": None},
    ),
    "layernorm of blocks": (lambda: peft.LNTuningConfig(target_modules=["norm1", "norm2"]), {"blocks": (0, 1)}),
}


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
@pytest.mark.parametrize("case", THEIRS)
def test_an_adapter_that_peft_trained_is_read(case, backend, tmp_path):
    config, expected = THEIRS[case][0](), THEIRS[case][1]
    config.modules_to_save = ["head"]
    model, base = trained_by_peft(config, tmp_path)
    trainer, adapter = reread(backend, base, tmp_path)
    assert {field: getattr(adapter.method, field) for field in expected} == expected
    assert relative(trainer.model.logits(IMAGES), logits(model, prepared(IMAGES, base))) < LOGITS
    assert (
        relative(logits(timm_of(base), prepared(IMAGES, base)), logits(model, prepared(IMAGES, base))) > 0.01
    )  # so the adapter does something
    theirs = gradients(model, prepared(IMAGES, base), LABELS)
    _, ours = trainer.loss_and_gradients(IMAGES, LABELS)
    for key, gradient in ours.items():
        assert relative(gradient.ravel(), theirs[key].ravel()) < GRADIENTS, key


@pytest.mark.parametrize(("changed", "targets"), [("kv", ("k", "v")), ("qkv", ("qkv",)), ("v", ("v",)), ("", ("qkv",))])
def test_parts_of_qkv_that_have_only_ones_are_not_adapted(changed, targets, tmp_path):
    config = peft.IA3Config(target_modules=["qkv"], feedforward_modules=[], modules_to_save=["head"])
    model, base = trained_by_peft(config, tmp_path, frozen="ia3_l")
    with torch.no_grad():
        for block in model.base_model.model.blocks[1:]:
            thirds = block.attn.qkv.ia3_l["default"].view(3, -1)
            for part in changed:
                thirds["qkv".index(part), 3] = 1.5
    model.save_pretrained(tmp_path)
    trainer, adapter = reread("torch", base, tmp_path)
    assert adapter.method.targets == targets
    assert trainer.model.parameters.adapter == 2 * 24 * (3 if targets == ("qkv",) else len(targets))
    assert relative(trainer.model.logits(IMAGES), logits(model, prepared(IMAGES, base))) < LOGITS


@pytest.mark.parametrize("key", [0, 1, 12345, 2**31, 2**32 - 1, 2**32 + 5])
@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(4, 48, 144), (1, 7, 3), (33, 300, 200)])
def test_projections_are_pefts_bit_for_bit(key, rank, inputs, outputs):
    layer = torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
    model = peft.get_peft_model(layer, peft.VeraConfig(r=rank, target_modules=["0"], projection_prng_key=key))
    A, B = projections(key, rank, inputs, outputs)
    np.testing.assert_array_equal(A, model.base_model.vera_A["default"].numpy())
    np.testing.assert_array_equal(B, model.base_model.vera_B["default"].numpy())


def test_projections_of_layers_of_several_sizes_are_pefts(tmp_path):
    config = peft.VeraConfig(r=5, target_modules=rf"{EVERYWHERE}(proj|fc1|fc2)", projection_prng_key=3)
    model, _ = trained_by_peft(config, tmp_path)
    trainer, _ = build("torch", VERA | {"rank": 5, "targets": ["proj", "fc1", "fc2"], "projection_key": 3})
    for name in ("vera_A", "vera_B"):
        theirs = getattr(model.base_model, name)["default"].numpy()
        np.testing.assert_array_equal(trainer.model.adapter()[f"shared.{name}"], theirs)


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: peft.IA3Config(target_modules=["qkv", "proj"], feedforward_modules=[]),
            r"no \(IA\)\^3 of a linear layer in a block: patch_embed\.proj\.ia3_l",
        ),
        (
            lambda: peft.LNTuningConfig(target_modules=["norm1", "norm2", "patch_embed.proj"]),
            r"no weight or bias of a norm: patch_embed\.proj\.ln_tuning_layers\.bias, patch_embed\.proj\.ln",
        ),
        (
            lambda: peft.LNTuningConfig(target_modules=["norm1", "norm2", "qkv"]),
            r"no weight or bias of a norm: blocks\.0\.attn\.qkv\.ln_tuning_layers\.bias",
        ),
        (lambda: peft.LNTuningConfig(target_modules=["norm1"]), r"has nothing for blocks\.0\.norm2, blocks\.1\.norm2"),
        (
            lambda: peft.LNTuningConfig(target_modules=r"blocks\.1\.norm[12]|norm"),
            r"of every norm in some blocks, but the adapter has nothing for blocks\.0$",
        ),
        (lambda: peft.LNTuningConfig(target_modules=r"norm"), r"the adapter has nothing for any block"),
        (
            lambda: peft.IA3Config(target_modules=r".*\.fc2", feedforward_modules=r".*0\.mlp\.fc2"),
            r"fc2 is scaled on its input in some places and on its output in others",
        ),
        (
            lambda: peft.VeraConfig(r=2, target_modules=["qkv", "head"]),
            r"no VeRA of a linear layer in a block: head\.vera",
        ),
        (lambda: peft.VeraConfig(r=2, target_modules=["qkv"], bias="all"), "not supported: bias: all"),
        (
            lambda: peft.VeraConfig(r=2, target_modules=["fc2"], save_projection=False),
            r"projections were not saved, and fc2 alone do not say how large they are: .* save_projection=True",
        ),
    ],
)
def test_more_than_the_method_on_the_blocks_is_refused_by_name(config, message, tmp_path):
    trained_by_peft(config(), tmp_path)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


TOO_SMALL = {
    "fewer rows": lambda t: t.update({B: t[B][:-1]}),
    "a smaller rank": lambda t: t.update({A: t[A][:-1]}),
    "missing": lambda t: t.pop(B),
    "another rank": lambda t: t.update({D: t[D][:-1]}),
}


@pytest.mark.parametrize("change", TOO_SMALL)
def test_layers_that_cannot_share_the_stored_projections_are_refused(change, tmp_path):
    trained_by_peft(peft.VeraConfig(r=6, target_modules=["qkv", "fc1"]), tmp_path / "theirs")
    trainer, _ = build("torch", VERA | {"targets": ["q", "fc1"]})
    write_adapter(tmp_path / "ours", written(trainer))
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        rewritten(folder, TOO_SMALL[change])
        with pytest.raises(UserError, match=r"cannot share|vera_B is missing|of as many equal parts"):
            read_adapter(folder)


def test_stacked_projections_that_are_not_copies_are_refused(tmp_path):
    trainer, _ = build("torch", VERA | {"targets": ["q", "v"]})
    for name in (A, B):
        write_adapter(tmp_path, written(trainer))

        def change(tensors, name=name):
            tensors[name][-1, -1] += 1

        rewritten(tmp_path, change)
        with pytest.raises(UserError, match=f"{name} is not a copy of one projection for each of q, v"):
            read_adapter(tmp_path)


def test_projections_that_do_not_fit_the_model_are_refused(tmp_path):
    """Those of a narrower model: an adapter's file does not say how many inputs a layer has."""
    trained_by_peft(peft.VeraConfig(r=6, target_modules=["fc1"], modules_to_save=["head"]), tmp_path)
    rewritten(tmp_path, lambda t: t.update({A: t[A][:, :-1]}))
    adapter = read_adapter(tmp_path)
    trainer, _ = build("torch", adapter.method.model_dump())
    with pytest.raises(ValueError, match=r"shared\.vera_A has the shape \(6, 23\)"):
        trainer.model.load_adapter(adapter.tensors)
