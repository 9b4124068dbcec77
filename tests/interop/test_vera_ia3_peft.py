"""VeRA, (IA)^3 and LayerNorm tuning between mlx-peft, in both backends, and Hugging Face PEFT on timm's models."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative
from foreign_models import prepared
from peft_reference import adapter_of, gradients, logits, opened, timm_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

# isort: split

import mlx_peft.backend.entry
import torch_ref.entry
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from mlx_peft.adaptation.projections import projections
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError

LOGITS, GRADIENTS = 1e-5, 1e-4
"""Relative; float32, weights formed on one side only, and twice as many operations for a gradient."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
DEIT = "deit_tiny_patch16_224"
SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}
CLASSES = ("cat", "dog", "emu")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
LABELS = np.array([2, 0], np.int32)
EVERYWHERE = r".*blocks\.\d+\..*\."


def build(backend: str, method: dict, name: str = DEIT):
    """A trainer, on weights none of which are zero or one: so biases and norms matter."""
    experiment = Experiment.model_validate(
        {
            "model": {"name": name, "weights": "none", "image_size": 64, "args": SIZES},
            "method": method,
            "data": {"name": "digits"},
            "train": {"label_smoothing": 0},
        }
    )
    base = load_base(experiment.model, len(CLASSES), 1)
    base = dataclasses.replace(base, tensors=moved(base.tensors, 0.1))
    return BACKENDS[backend].build_trainer(experiment, len(CLASSES), base), base


def written(trainer) -> Adapter:
    return adapter_of(trainer.experiment, trainer.model.base, trainer.model.adapter(), CLASSES)


def moved(tensors: dict[str, np.ndarray], size: float = 0.3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {n: t + size * random.standard_normal(t.shape).astype(np.float32) for n, t in sorted(tensors.items())}


VERA = {"name": "vera", "rank": 8}
IA3 = {"name": "ia3"}
CASES = {
    "vera q and v": (DEIT, VERA | {"targets": ["q", "v"]}),
    "vera k and wholes": (DEIT, VERA | {"targets": ["k", "fc2", "proj"], "projection_key": 5}),
    "vera wholes": (DEIT, VERA | {"targets": "all-linear", "d_initial": 0.2, "dropout": 0.1}),
    "vera distilled": ("deit_tiny_distilled_patch16_224", VERA | {"targets": ["q", "k", "v"]}),
    "vera one block": (DEIT, VERA | {"targets": ["v", "fc1"], "blocks": [-1]}),
    "vera swiglu": ("aimv2_large_patch14_224", VERA | {"targets": ["q", "fc1", "fc2"]}),
    "ia3": (DEIT, IA3),
    "ia3 q": (DEIT, IA3 | {"targets": ["q"], "feedforward": []}),
    "ia3 wholes": (DEIT, IA3 | {"targets": "all-linear", "feedforward": ["fc1", "fc2"]}),
    "ia3 distilled": ("deit_tiny_distilled_patch16_224", IA3),
    "ia3 one block": (DEIT, IA3 | {"blocks": [1]}),
    "ia3 swiglu": ("aimv2_large_patch14_224", IA3 | {"targets": "mlp"}),
    "layernorm": (DEIT, {"name": "layernorm"}),
    "layernorm distilled": ("deit_tiny_distilled_patch16_224", {"name": "layernorm"}),
    "layernorm one block": (DEIT, {"name": "layernorm", "blocks": "last 1"}),
    "layernorm before and pooling": ("vit_base_patch16_siglip_224", {"name": "layernorm"}),
    "layernorm root mean square": ("aimv2_large_patch14_224", {"name": "layernorm"}),
}


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


def own(gradient: np.ndarray, name: str, method) -> np.ndarray:
    """PEFT's gradient of a whole layer's tensor, as that of what is trained here."""
    parts = [part for part in "qkv" if part in getattr(method, "targets", ())]
    adapter = not name.startswith("head")
    if adapter and name.endswith("lambda_d") and parts:
        copies = [*parts, "whole"]
        rows = gradient.reshape(-1, method.rank)
        wanted = parts if ".qkv." in name else ["whole"]
        return rows[[copies.index(copy) for copy in wanted]].ravel()
    gradient = gradient if "ia3_l" not in name else gradient.ravel()
    if adapter and ".qkv." in name and parts:
        return gradient.reshape(3, -1)[["qkv".index(part) for part in parts]].ravel()
    return gradient


@pytest.mark.parametrize("case", CASES)
def test_peft_opens_ours_with_the_same_logits_gradients_and_merged_weights(case, backend, tmp_path):
    name, method = CASES[case]
    trainer, base = build(backend, method, name)
    before = trainer.model.logits(IMAGES)
    trainer.model.load_adapter(moved(trainer.model.adapter()))
    write_adapter(tmp_path / "adapter", written(trainer))
    model = opened(base, tmp_path / "adapter", trainable=True)
    expected = logits(model, prepared(IMAGES, base))
    assert relative(trainer.model.logits(IMAGES), expected) < LOGITS
    assert relative(before, expected) > 0.05  # so the adapter does something

    theirs = gradients(model, prepared(IMAGES, base), LABELS)
    _, ours = trainer.loss_and_gradients(IMAGES, LABELS)
    for key, gradient in ours.items():
        assert relative(gradient, own(theirs[key], key, trainer.experiment.method)) < GRADIENTS, key

    plain = {n.replace(".modules_to_save.default", ""): t for n, t in model.merge_and_unload().state_dict().items()}
    for key, tensor in trainer.model.merged().items():
        assert relative(tensor, plain[key].numpy()) < 1e-6, key


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_bit_for_bit(case, tmp_path):
    trainer, _ = build("torch", CASES[case][1], CASES[case][0])
    adapter = dataclasses.replace(written(trainer), tensors=moved(trainer.model.adapter()))
    write_adapter(tmp_path, adapter)
    again = read_adapter(tmp_path)
    assert dataclasses.replace(again, tensors={}) == dataclasses.replace(adapter, tensors={})
    assert again.tensors.keys() == adapter.tensors.keys()
    for key, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor)


def reread(backend: str, base, folder: Path, name: str = DEIT):
    """A trainer that holds the adapter of a folder that PEFT wrote, and the adapter."""
    adapter = read_adapter(folder)
    assert adapter.model is None
    trainer, _ = build(backend, adapter.method.model_dump(), name)
    trainer.model.load_adapter(adapter.tensors)
    return trainer, adapter


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_peft_saved_again_is_the_same_model(case, tmp_path):
    name, method = CASES[case]
    trainer, base = build("torch", method, name)
    trainer.model.load_adapter(moved(trainer.model.adapter()))
    write_adapter(tmp_path / "ours", written(trainer))
    opened(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # else: the hub
    again, adapter = reread("torch", base, tmp_path / "theirs", name)
    assert relative(again.model.logits(IMAGES), trainer.model.logits(IMAGES)) < LOGITS
    if method["name"] != "vera":  # whose parts have become one of a higher rank
        both = (trainer.experiment.method, adapter.method)
        ours, theirs = (kind.model_dump(exclude={"blocks", "feedforward"}) for kind in both)
        assert ours == theirs
        assert again.model.parameters == trainer.model.parameters


def trained_by_peft(config: peft.PeftConfig, folder: Path, frozen: str = "-"):
    """PEFT's model with random numbers in the adapter and its head, saved; and the base. ``frozen`` stays as it was."""
    _, base = build("torch", {"name": "linear"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(timm_of(base), config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad and frozen not in name:
                    p.add_(torch.randn(p.shape), alpha=0.3)
        model.save_pretrained(folder)
    return model, base


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


def rewritten(folder: Path, change) -> None:
    """Changes the tensors of an adapter on disk; its metadata stays, but for the digest that would tell."""
    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = {key: value for key, value in (file.metadata() or {}).items() if key != "digest"}
    tensors = load_file(path)
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata)


A, B = "base_model.vera_A", "base_model.vera_B"
D = "base_model.model.blocks.0.attn.qkv.vera_lambda_d"
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


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("layernorm", 2 * 24 * (2 * 2 + 1)),
        ("layernorm one block", 2 * 24 * 2),
        ("layernorm before and pooling", 2 * 24 * (2 * 2 + 2)),
        ("layernorm root mean square", 24 * (2 * 2 + 2)),
    ],
)
def test_layernorm_tuning_trains_weights_and_biases_of_the_norms(case, count):
    """Two norms a block and the last, and those of embedding or pooling; RMSNorm has no bias."""
    trainer, _ = build("torch", CASES[case][1], CASES[case][0])
    assert trainer.model.parameters.adapter == count


def test_what_peft_does_not_see_is_said(tmp_path):
    for method, parts in ((VERA | {"targets": ["q", "v", "fc1"]}, "q and v"), (IA3, "k and v")):
        trainer, _ = build("torch", method)
        (note,) = write_adapter(tmp_path / method["name"], written(trainer))
        assert f"to Hugging Face PEFT, what adapts {parts} is one adapter of the whole qkv" in note
    for method in (VERA | {"targets": ["qkv"]}, IA3 | {"targets": ["fc2"]}, {"name": "layernorm"}):
        trainer, _ = build("torch", method)
        assert write_adapter(tmp_path / "whole", written(trainer)) == []


def test_the_configuration_of_parts_is_that_of_one_larger_adapter(tmp_path):
    trainer, _ = build("torch", VERA | {"targets": ["q", "v", "fc2"], "blocks": [1]})
    write_adapter(tmp_path, written(trainer))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["save_projection"]) == (3 * 8, True)
    assert config["target_modules"] == r".*blocks\.(1)\..*\.(fc2|qkv)"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert (tensors[A].shape, tensors[B].shape) == ((24, 96), (72, 24))
    assert not tensors[B][24:48, :16].any(), "the rows of k are in no part's block"
    assert not tensors["base_model.model.blocks.1.mlp.fc2.vera_lambda_d"][:16].any()
