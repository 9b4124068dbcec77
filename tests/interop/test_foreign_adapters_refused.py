"""Damaged and hostile adapters over other libraries' models are refused by name, in a line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comparing import relative
from safetensors.numpy import save_file

from convert.adapters.abroad import of_transformers, write_for
from convert.adapters.peft import CONFIG, WEIGHTS, Adapter, read_adapter
from mlx_peft.artifacts.load import recipe_of
from mlx_peft.config.methods import VeRA
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

DIM, RANK = 24, 2
OLD, NEW = "vit.encoder.layer.{}.attention.attention.{}", "vit.layers.{}.attention.{}"
LORA = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "query", "value"]}


def pair(layer: str, rank: int = RANK, outputs: int = DIM, inputs: int = DIM) -> dict[str, np.ndarray]:
    """A and B of a layer."""
    random = np.random.default_rng(len(layer))
    factors = {"A": (rank, inputs), "B": (outputs, rank)}
    return {f"{layer}.lora_{kind}.weight": random.normal(0, 1, shape) for kind, shape in factors.items()}


def sound() -> dict[str, np.ndarray]:
    """q and v of two blocks, and a head."""
    found = {"classifier.weight": np.ones((3, DIM)), "classifier.bias": np.zeros(3)}
    for block in range(2):
        for part in ("q_proj", "v_proj"):
            found |= pair(NEW.format(block, part))
    return found


def written(folder: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    stored = {f"base_model.model.{name}": np.asarray(t, np.float32) for name, t in tensors.items()}
    save_file(stored, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(LORA | config))
    return folder


def without(name: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in sound().items() if key != name}


def renamed(old: str, new: str) -> dict[str, np.ndarray]:
    return {key.replace(old, new): tensor for key, tensor in sound().items()}


Q = NEW.format(0, "q_proj")
TENSORS = {
    "both namings": (lambda: sound() | pair(OLD.format(0, "query")), "these are no layers.*attention.query"),
    "a path in a name": (lambda: sound() | pair("vit.layers.0.attention.../../q_proj"), r"no layers: .*\.\./"),
    "a layer of nowhere": (lambda: sound() | pair("vit.layers.0.attention.r_proj"), "no layers: .*r_proj"),
    "a block with zeros before it": (lambda: sound() | pair("vit.layers.01.attention.q_proj"), "no layers: .*01"),
    "a block past all": (lambda: sound() | pair("vit.layers.99999.attention.q_proj"), "no layers: .*99999"),
    "two models": (lambda: renamed("vit.layers.1", "teacher.vit.layers.1"), "over several models: teacher.vit., vit."),
    "the same layer twice": (lambda: sound() | pair(f"teacher.{Q}"), "is there twice, under two names"),
    "no B": (lambda: without(f"{Q}.lora_B.weight"), r"blocks\.0\.attn\.q has no lora_B"),
    "not a number": (lambda: sound() | {f"{Q}.lora_A.weight": np.full((RANK, DIM), np.nan)}, "NaN or infinite"),
    "another rank": (lambda: sound() | pair(Q, rank=3), "has the rank 3, but its configuration says 2"),
    "A and B of two ranks": (lambda: sound() | {f"{Q}.lora_A.weight": np.ones((5, DIM))}, "needs a lora_A"),
    "no factors": (lambda: sound() | pair(Q, rank=0), "rank 0, but"),
    "parts of two widths": (
        lambda: sound() | pair(Q, outputs=20) | pair(NEW.format(0, "v_proj"), outputs=28),
        r"the parts of blocks\.0\.attn\.qkv\.lora_B\.weight have different shapes: \(20, 2\), \(28, 2\)",
    ),
    "other targets in another block": (
        lambda: sound() | pair(NEW.format(1, "k_proj")), "the targets must be the same in every adapted block",
    ),
    "a head that is no matrix": (lambda: sound() | {"classifier.weight": np.ones((3, 2, DIM))}, r"head\.weight should"),
    "a head of another name": (lambda: sound() | {"scores.weight": np.ones((3, DIM))}, r"no layers: scores\.weight"),
}  # fmt: skip
"""What is in the file, and what is said of it."""

CONFIGS = {
    "a rank of a thousand million": ({"r": 10**9}, "has the rank 2, but its configuration says 1000000000"),
    "the same of one layer": ({"rank_pattern": {"q_proj": 10**9}}, "has the rank 2, but its configuration says 1000"),
    "a rank that is text": ({"r": "many"}, "r should be a whole number above 0, not 'many'"),
    "a rank in quotes": ({"r": "2"}, "r should be a whole number above 0, not '2'"),
    "a rank of nothing": ({"r": 0}, "r should be a whole number above 0, not 0"),
    "half a rank": ({"rank_pattern": {"q_proj": 2.5}}, "r should be a whole number above 0, not 2.5"),
    "no rank": ({"r": None}, "r should be a whole number above 0, not null"),
    "an alpha that is text": (
        {"alpha_pattern": {"v_proj": "x"}},
        "lora_alpha should be a finite number above 0, not 'x'",
    ),
    "an alpha of nothing": ({"lora_alpha": 0}, "lora_alpha should be a finite number above 0, not 0"),
    "an alpha that is no number": (
        {"lora_alpha": float("nan")},
        "lora_alpha should be a finite number above 0, not NaN",
    ),
    "alphas that are too far apart": ({"lora_alpha": 1e-300, "alpha_pattern": {"v_proj": 1e300}}, "not understood"),
    "an expression that runs for ever": ({"rank_pattern": {"(a+)+(a+)+(a{1000}){1000}": 3}}, "expression|pattern"),
    "patterns that are none": (
        {"rank_pattern": [1, 2]},
        r"rank_pattern should be an object of values by the names of layers, not \[1, 2\]",
    ),
    "no pattern but text": ({"alpha_pattern": "v_proj"}, "alpha_pattern should be an object .*, not 'v_proj'"),
    "an option that changes the logits": ({"lora_bias": True}, "not supported: lora_bias"),
    "a method of nowhere": ({"peft_type": "HRA"}, "peft_type '?HRA'? is not supported"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused_by_name(case, tmp_path):
    make, reason = TENSORS[case]
    with pytest.raises(UserError, match=reason):
        read_adapter(written(tmp_path, make()))


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_key_that_is_missing_is_said_to_be(key, tmp_path):
    place = written(tmp_path, sound())
    config = json.loads((place / CONFIG).read_text())
    del config[key]
    (place / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"its LoRA configuration is not understood: {key} is missing"):
        read_adapter(place)


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_are_refused_by_name(case, tmp_path):
    config, reason = CONFIGS[case]
    with pytest.raises(UserError, match=reason):
        read_adapter(written(tmp_path, sound(), **config))


def test_trained_biases_are_what_is_refused_and_not_their_names(tmp_path):
    tensors = sound() | {
        "classifier.modules_to_save.bias": np.ones(3),
        "vit.layers.0.attention.q_proj.bias": np.ones(DIM),
    }
    with pytest.raises(UserError, match="options that are not supported: bias: lora_only"):
        read_adapter(written(tmp_path, tensors, bias="lora_only"))


def test_without_a_head_it_is_said_what_each_library_calls_it(tmp_path):
    tensors = {name: tensor for name, tensor in sound().items() if not name.startswith("classifier")}
    place = written(tmp_path, tensors)
    with pytest.raises(UserError, match=r"holds no classifier: .*\['classifier'\] of transformers'"):
        recipe_of(read_adapter(place), place, Model(name="vit_tiny_patch16_224"))


def test_the_same_without_damage_is_read_with_the_prefix_and_without(tmp_path):
    adapter = read_adapter(written(tmp_path, sound()))
    assert (adapter.method.targets, adapter.num_classes) == (("q", "v"), 3)
    save_file({name: np.asarray(t, np.float32) for name, t in sound().items()}, tmp_path / WEIGHTS)
    assert read_adapter(tmp_path).tensors.keys() == adapter.tensors.keys()


def test_the_text_tower_of_a_whole_clip_is_left_out(tmp_path):
    tensors = {"visual_projection.weight": np.ones((3, DIM))}
    for tower in ("vision_model", "text_model"):
        tensors |= pair(f"{tower}.encoder.layers.0.self_attn.q_proj")
    adapter = read_adapter(written(tmp_path, tensors))
    A = tensors["vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"]
    assert relative(adapter.tensors["blocks.0.attn.qkv.lora_A"], A.astype(np.float32)) == 0


def test_vera_of_a_whole_qkv_and_methods_that_peft_lacks_are_not_written(tmp_path):
    head = {"head.weight": np.ones((3, DIM), np.float32), "head.bias": np.zeros(3, np.float32)}
    adapter = Adapter(
        method=VeRA(targets=("qkv",)), tensors=head, classes=(), model=None, architecture=None, preprocessing=None,
        base_sha256=None, source="unknown",
    )  # fmt: skip
    with pytest.raises(UserError, match="VeRA on a whole qkv has no equal where q, k and v are layers of their own"):
        write_for(of_transformers, tmp_path / "out", adapter, Architecture(norm_eps=1e-12))
    assert not (tmp_path / "out").exists()
