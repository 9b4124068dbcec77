"""What a checkpoint is said to be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from banks import adapter, base_of
from PIL import Image

from convert.adapters.peft import Adapter, write_adapter
from convert.base import Base, load_base
from convert.files import write_safetensors
from convert.timm.write import write_model
from mlx_peft.config.methods import LoRA, MethodConfig, PVeRA, RandLoRA, VeRA
from mlx_peft.config.schema import Model

NAME = "deit_tiny_patch16_224"
ARGS: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}


@pytest.fixture
def base() -> Base:
    return load_base(Model(name=NAME, weights="none", image_size=32, args=ARGS), 3, seed=0)


def info(command: Any, path: Path) -> dict[str, Any]:
    done = command("info", path, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_a_models_folder(command: Any, base: Base, tmp_path: Path) -> None:
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=("a", "b", "c"), dtype="bfloat16")
    found = info(command, tmp_path / "m")
    assert (found["kind"], found["model"], found["class_names"]) == ("timm", NAME, ["a", "b", "c"])
    assert found["architecture"] == {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}
    assert found["preprocessing"] == base.preprocessing.model_dump(mode="json")
    count = sum(tensor.size for tensor in base.tensors.values())
    assert (found["tensors"], found["parameters"]) == (len(base.tensors), count)
    assert found["dtypes"] == {"BF16": len(base.tensors)}
    assert found["bytes"] == (tmp_path / "m" / "model.safetensors").stat().st_size

    lines = command("info", tmp_path / "m").stdout.splitlines()
    assert f"parameters     {count:,}" in lines
    assert "architecture   img_size: 32" in lines
    assert "quantization   none" in lines


def test_a_head_that_was_left_out_is_said_and_its_names_are_not(command: Any, base: Base, tmp_path: Path) -> None:
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=("a", "b", "c"))
    layer = {"pre_logits.fc.weight": np.ones((24, 24), np.float32), "pre_logits.fc.bias": np.ones(24, np.float32)}
    write_safetensors(tmp_path / "m" / "model.safetensors", base.tensors | layer)
    found = info(command, tmp_path / "m")
    note = "pre_logits: the hidden layer before the head, and the head behind it, are left out"
    assert (found["classes"], found["class_names"], found["notes"]) == (0, [], [note])
    assert f"notes          {note}" in command("info", tmp_path / "m").stdout.splitlines()


def test_a_quantised_folder_counts_parameters_and_not_words(command: Any, base: Base, tmp_path: Path) -> None:
    from mlx_peft.config.quantization import Quantization

    wide = load_base(Model(name=NAME, weights="none", image_size=32, args=ARGS | {"embed_dim": 96}), 3, seed=0)
    quantization = Quantization(bits=4, group_size=32)
    stored = quantization.stored(wide.architecture, {name: t.shape for name, t in wide.tensors.items()})
    words = {f"{site.path}.weight" for site in quantization.sites(wide.architecture)}
    tensors = {n: np.zeros(shape, np.uint32 if n in words else np.float32) for n, shape in stored.items()}
    write_model(tmp_path / "m", base=wide, tensors=tensors, quantization=quantization)
    found = info(command, tmp_path / "m")
    assert found["quantization"] == "4 bits in groups of 32"
    assert found["parameters"] == sum(tensor.size for tensor in wide.tensors.values())


def test_an_adapter(command: Any, base: Base, tmp_path: Path) -> None:
    tensors = {
        "blocks.0.attn.qkv.lora_A": np.ones((4, 24), np.float32),
        "blocks.0.attn.qkv.lora_B": np.ones((72, 4), np.float32),
        "head.weight": np.ones((3, 24), np.float32),
        "head.bias": np.ones(3, np.float32),
    }
    adapter = Adapter(
        LoRA(rank=4, targets=("qkv",)), tensors, ("a", "b", "c"), Model(name=NAME), base.architecture,
        base.preprocessing, "00ff", "timm/deit",
    )  # fmt: skip
    write_adapter(tmp_path / "adapter", adapter)
    found = info(command, tmp_path / "adapter")
    assert (found["kind"], found["method"], found["rank"], found["model"]) == ("adapter", "lora", 4, NAME)
    assert found["parameters_of"] == {"head": 75, "adapter": 4 * (24 + 72)}
    assert (found["base_sha256"], found["options"]["targets"]) == ("00ff", ["qkv"])


FROZEN = [VeRA(rank=4), PVeRA(rank=4), RandLoRA(rank=10, alpha=10), LoRA(rank=2, init="pissa")]


@pytest.mark.parametrize("method", FROZEN, ids=lambda method: method.name)
def test_what_an_adapter_keeps_frozen_is_counted_apart(command: Any, tmp_path: Path, method: MethodConfig) -> None:
    own = adapter(base_of(), method, 0)
    write_adapter(tmp_path / "adapter", own)
    sizes = {name: tensor.size for name, tensor in own.tensors.items()}
    head = sum(size for name, size in sizes.items() if name.startswith("head"))
    kept = sum(
        size for name, size in sizes.items() if name.startswith("shared.") or name.endswith(("pissa_A", "pissa_B"))
    )
    assert kept > 0
    expected = {"head": head, "adapter": sum(sizes.values()) - head - kept, "frozen": kept}
    assert info(command, tmp_path / "adapter")["parameters_of"] == expected


def test_a_file_that_may_be_several_models_says_what_is_open(command: Any, tmp_path: Path) -> None:
    whole = load_base(Model(name="vit_small_patch16_224", weights="none", args={"depth": 12}), 5, seed=0)
    write_safetensors(tmp_path / "a.safetensors", whole.tensors, dtype="bfloat16")
    torch.save({"model": {k: torch.from_numpy(t).bfloat16() for k, t in whole.tensors.items()}}, tmp_path / "a.pth")
    found, other = info(command, tmp_path / "a.safetensors"), info(command, tmp_path / "a.pth")
    assert found["kind"] == "tensors" and found["dtypes"] == {"BF16": len(whole.tensors)}
    differing = ("path", "bytes", "digest", "undecided")
    assert {**found, **dict.fromkeys(differing)} == {**other, **dict.fromkeys(differing)}
    assert "deit_small_patch16_224" in found["undecided"] and "name the model" in found["undecided"]


@pytest.mark.parametrize(("name", "message"), [("none", "no such file or folder"), ("a.txt", "weights are read from")])
def test_what_is_no_checkpoint_is_refused(name: str, message: str, command: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    refused = command("info", tmp_path / name)
    assert (refused.exit_code, refused.stdout) == (2, "") and message in refused.stderr


def test_what_a_terminal_would_obey_is_shown_escaped(command: Any, base: Base, tmp_path: Path) -> None:
    names = ["\x1b]0;title\x07", "\u202etxt.exe", "Kätzchen"]
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=names)
    picture = tmp_path / "a\x1b[2J.png"
    Image.new("RGB", (32, 32)).save(picture)
    told, asked = command("info", tmp_path / "m"), command("predict", tmp_path / "m", picture, "--top", 3)
    turned = command("convert", tmp_path / "m", tmp_path / "\x1b[31mout", "--to", "mlx", "--no-verify")
    card = command("push", tmp_path / "m", "jane/m", "--dry-run")
    for done in (told, asked, turned, card):
        assert done.exit_code == 0, done.stderr
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", done.stdout + done.stderr)
    for done in (told, asked):
        assert r"\x1b]0;title\x07" in done.stdout and r"\u202etxt.exe" in done.stdout and "Kätzchen" in done.stdout
