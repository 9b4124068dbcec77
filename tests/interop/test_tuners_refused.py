"""Hand-made and damaged files of PEFT's other tuners: each is refused in a line that says what is wrong, and where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.adapters.abroad import of_transformers, write_for
from convert.adapters.peft import CONFIG, WEIGHTS, Adapter, read_adapter
from mlx_peft.config.methods import LoKr, LoRA, RoAd
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

QKV, FC2 = "blocks.0.attn.qkv", "blocks.0.mlp.fc2"
LAYERS = {QKV: (72, 24), FC2: (24, 96)}
"""Outputs and inputs of what is adapted."""

MODULES = r".*blocks\.\d+\..*\.(qkv|fc2)"
SOUND = {
    "LOHA": {"r": 3, "alpha": 6},
    "LOKR": {"r": 1, "alpha": 6},
    "MISS": {"r": 8},
    "ROAD": {"group_size": 24},
    "OFT": {"oft_block_size": 8, "peft_version": "0.21.2"},
    "BOFT": {"boft_block_size": 8},
}


def shapes(kind: str, rows: int, inputs: int) -> dict[str, tuple[int, ...]]:
    """A layer's tensors, as PEFT has them."""
    if kind == "LOKR":
        first = {72: (8, 4), 24: (4, 8)}[rows]
        return {"lokr_w1": first, "lokr_w2_a": (rows // first[0], 1), "lokr_w2_b": (1, inputs // first[1])}
    return {
        "LOHA": {"hada_w1_a": (rows, 3), "hada_w1_b": (3, inputs), "hada_w2_a": (rows, 3), "hada_w2_b": (3, inputs)},
        "MISS": {"miss_block": (8, rows)},
        "ROAD": {"road_theta": (rows // 2,), "road_alpha": (rows // 2,)},
        "OFT": {"oft_R.weight": (inputs // 8, 28)},
        "BOFT": {"boft_R": (1, inputs // 8, 8, 8), "boft_s": (rows, 1)},
    }[kind]


def written(folder: Path, kind: str, tensors: dict[str, np.ndarray | None], **config: object) -> Path:
    """A folder with an adapter of two layers, with other tensors in it, or without those that are None."""
    held = {
        f"{layer}.{name}": np.ones(shape, np.float32)
        for layer, widths in LAYERS.items()
        for name, shape in shapes(kind, *widths).items()
    } | tensors
    stored = {f"base_model.model.{name}": tensor for name, tensor in held.items() if tensor is not None}
    save_file(stored, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": kind, "target_modules": MODULES} | SOUND[kind] | config))
    return folder


@pytest.mark.parametrize("kind", SOUND)
def test_the_same_without_damage_is_read(kind, tmp_path):
    assert read_adapter(written(tmp_path, kind, {})).method.targets == ("qkv", "fc2")


CONFIGS = {
    "another rank": ("LOHA", {"r": 4}, r"blocks\.0\.attn\.qkv has the rank 3, but its configuration says 4"),
    "of one layer": ("LOHA", {"rank_pattern": {"fc2": 10**9}}, r"fc2 has the rank 3, but its configuration says 10000"),
    "a rank that is text": ("LOHA", {"r": "3"}, "r should be a whole number above 0, not '3'"),
    "a rank that is true": ("LOHA", {"r": True}, "r should be a whole number above 0, not true"),
    "no rank": ("LOHA", {"r": None}, "r should be a whole number above 0, not null"),
    "an alpha of nothing": ("LOHA", {"alpha": 0}, "alpha should be a finite number above 0, not 0"),
    "likewise of one layer": ("LOHA", {"alpha_pattern": {"fc2": 0}}, "alpha should be a finite number above 0, not 0"),
    "an alpha that is no number": ("LOHA", {"alpha": float("nan")}, "alpha should be a finite number above 0, not NaN"),
    "alphas that are too far apart": (
        "LOHA", {"alpha": 1e-30, "alpha_pattern": {"fc2": 1e30}}, "scalings of its layers are too far apart for one",
    ),
    "patterns that are none": ("LOHA", {"rank_pattern": [1]}, "rank_pattern should be an object of values"),
    "numbers of a series in words": ("OFT", {"num_cayley_neumann_terms": "five"}, "a value is of another kind than it"),
    "an expression that runs for ever": ("LOHA", {"alpha_pattern": {"(a+)+(a{1000}){1000}": 3}}, "expression"),
    "ranks of LoKr": ("LOKR", {"rank_pattern": {"fc2": 2}}, "not supported: rank_pattern"),
    "alphas of LoKr": ("LOKR", {"alpha_pattern": {"fc2": 2}}, "not supported: alpha_pattern"),
    "a rank of a thousand million": ("LOKR", {"r": 10**9}, "rank"),
    "MiSS that multiplies": ("MISS", {"init_weights": "bat"}, "init_weights 'bat' multiplies the weight"),
    "a variant of nowhere": ("ROAD", {"variant": "road_3"}, "variant: unknown '3'; known: 1, 2, 4"),
    "COFT": ("OFT", {"coft": True}, "not supported: coft: True"),
    "a trained bias": ("BOFT", {"bias": "boft_only"}, "not supported: bias: boft_only"),
    "an option of nowhere": ("OFT", {"use_householder": True}, "not supported: use_householder: True"),
}  # fmt: skip
"""What a configuration says, and what is said of it."""


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "MISS"])
def test_a_key_that_is_missing_is_said_to_be(kind, tmp_path):
    place = written(tmp_path, kind, {})
    config = json.loads((place / CONFIG).read_text())
    del config["r"]
    (place / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"its {kind} configuration is not understood: r is missing"):
        read_adapter(place)


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_are_refused_by_name(case, tmp_path):
    kind, config, reason = CONFIGS[case]
    with pytest.raises(UserError, match=reason):
        read_adapter(written(tmp_path, kind, {}, **config))


def numbers(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


TENSORS = {
    "a vector of rotations": ("OFT", {f"{QKV}.oft_R.weight": numbers(28)}, r"shape \(in / b, b \(b - 1\) / 2\), not"),
    "no rotations": ("OFT", {f"{QKV}.oft_R.weight": numbers(0, 28)}, r"oft_R.weight should .*, not \(0, 28\)"),
    "rotations of half a row": ("OFT", {f"{QKV}.oft_R.weight": numbers(3, 27)}, "27 numbers do not fill"),
    "one butterfly too flat": ("BOFT", {f"{QKV}.boft_R": numbers(8, 8)}, r"shape \(m, in / b, b, b\), not \(8, 8\)"),
    "scales in a row": ("BOFT", {f"{FC2}.boft_s": numbers(24)}, r"fc2\.boft_s should have the shape \(out, 1\), not"),
    "angles in a matrix": ("ROAD", {f"{QKV}.road_theta": numbers(36, 1)}, r"shape \(out variant / 2,\), not \(36, 1\)"),
    "an empty matrix": ("MISS", {f"{QKV}.miss_block": numbers(0, 72)}, r"shape \(r, out\), not \(0, 72\)"),
    "a factor of one axis": ("LOKR", {f"{QKV}.lokr_w1": numbers(8)}, r"w1 should have the shape \(rows, columns\)"),
    "factors of two ranks": ("LOHA", {f"{QKV}.hada_w2_b": numbers(2, 24)}, "qkv has the rank 2, but .* says 3"),
    "no factor": ("LOHA", {f"{QKV}.hada_w2_b": None}, r"blocks\.0\.attn\.qkv has no hada_w2_b"),
    "a core of convolutions": ("LOHA", {f"{QKV}.hada_t1": numbers(3, 3, 1, 1)}, r"no LOHA of a linear .*qkv\.hada_t1"),
    "a path in a name": ("MISS", {"blocks.0.attn.../../qkv.miss_block": numbers(8, 72)}, r"no .*/\.\./qkv"),
    "not a number": ("ROAD", {f"{QKV}.road_alpha": np.full(36, np.nan, np.float32)}, "NaN or infinite"),
    "whole numbers": ("MISS", {f"{QKV}.miss_block": np.ones((8, 72), np.int32)}, "int32|float type"),
    "the base's weight": ("MISS", {f"{QKV}.base_layer.weight": numbers(72, 24)}, r"no MISS of .*base_layer\.weight"),
}
"""What is in the file, and what is said of it."""


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused_by_name(case, tmp_path):
    kind, tensors, reason = TENSORS[case]
    with pytest.raises(UserError, match=reason):
        read_adapter(written(tmp_path, kind, tensors))


@pytest.mark.parametrize(
    ("method", "tensors", "reason"),
    [
        (
            RoAd(group_size=18, targets=("qkv",)),
            {f"{QKV}.road_theta": numbers(36), f"{QKV}.road_alpha": numbers(36)},
            "groups of 18 outputs do not divide the 24 of each of q, k and v",
        ),
        (LoKr(targets=("qkv",)), {f"{QKV}.lokr_w1": numbers(8, 4)}, "LoKr on a whole qkv has no equal"),
        (LoRA(init="loftq"), {}, "lora that has codes of its own has them for the layers of timm's models"),
    ],
    ids=["road", "lokr", "loftq"],
)
def test_what_is_no_adapter_of_another_librarys_layers_is_not_written_so(method, tensors, reason, tmp_path):
    adapter = Adapter(
        method=method, tensors=tensors | {"head.weight": numbers(3, 24), "head.bias": numbers(3)}, classes=(),
        model=None, architecture=None, preprocessing=None, base_sha256=None, source="unknown",
    )  # fmt: skip
    with pytest.raises(UserError, match=reason):
        write_for(of_transformers, tmp_path / "out", adapter, Architecture(norm_eps=1e-12))
    assert not (tmp_path / "out").exists()
