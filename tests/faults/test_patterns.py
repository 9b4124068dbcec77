"""A stranger's regular expressions: PEFT's answers, and never Python's ``re``, which some keep busy for ever."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from comparing import LOGITS, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from convert.adapters.peft import CONFIG, Adapter, read_adapter, write_adapter
from convert.adapters.targeting import _rule, named_out
from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.share import opened
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model
from mlx_peft.core import patterns
from mlx_peft.core.errors import UserError
from torch_ref.tools.foreign import logits

SLOW = r"((((\S+)+)+)+)+!"
"""Python's ``re`` tries more ways than it could in a day to fit it to a layer's name."""

ARGS = {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8}

paths = st.builds(
    "{}{}.{}.{}".format,
    st.sampled_from(["", "model.", "vit.encoder."]),
    st.sampled_from(["blocks.0", "blocks.1", "blocks.10", "blocks.11"]),
    st.sampled_from(["attn", "mlp"]),
    st.sampled_from(["qkv", "proj", "fc1", "fc2", "q"]),
)
PIECES = r"""
qkv kv proj fc1 fc[12] fc attn mlp blocks blocks\.1 0 1 \d \d+ [0-9] \. . .* .+ \w+ (qkv|proj) (?:0|1) (10|1) | ^ $
(fc1)? (\.\w+)* q{1}kv
"""
pieces = st.sampled_from(PIECES.split())
expressions = st.lists(pieces, min_size=1, max_size=5).map("".join)


@settings(max_examples=300)
@given(st.lists(expressions, min_size=1, max_size=4), paths)
def test_the_first_pattern_that_fits_is_pefts(keys: list[str], path: str) -> None:
    expected = get_pattern_key(keys, path)
    assert patterns.first_at_end(keys, path) == (None if expected == path and path not in keys else expected)


@settings(max_examples=300)
@given(expressions | st.lists(st.sampled_from(["qkv", "attn.qkv", "kv", "1.mlp.fc1", "blocks.1.mlp.fc1"])), paths)
def test_what_is_targeted_is_pefts(modules: str | list[str], path: str) -> None:
    config = SimpleNamespace(target_modules=modules, target_parameters=None)
    assert _rule(modules)(path) == bool(check_target_module_exists(config, path))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("(", "missing"),
        (r"(?=qkv)qkv", r"\(\?="),
        (r"(q)\1", "invalid escape"),
        ("((a{100}){100}){100}", "repetition"),
        ("q" * 1001, "a pattern of 1,001 characters; at most 1,000"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(key: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        LoRA(rank_pattern={key: 4})


def test_so_are_too_many() -> None:
    with pytest.raises(UserError, match="patterns of 10,400 characters together; at most 10,000"):
        LoRA(alpha_pattern={f"{index:0>800}": 4 for index in range(13)})


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter as PEFT writes it, and its base's folder."""
    model = Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=ARGS)
    base = load_base(model, 2, seed=0)
    write_model(tmp_path / "base", base=base, tensors=base.tensors)
    method = LoRA(rank=2, targets=("qkv", "fc1"))
    random = np.random.default_rng(0)
    tensors = {name: tensor for name, tensor in base.tensors.items() if name.startswith("head.")}
    for site in method.sites(base.architecture):
        for kind, shape in (("lora_A", (2, site.inputs)), ("lora_B", (site.outputs, 2))):
            tensors[f"{site.path}.{kind}"] = random.normal(size=shape).astype(np.float32)
    found = Adapter(method, tensors, (), None, None, None, None, "unknown")
    write_adapter(tmp_path / "adapter", found)
    _without_metadata(tmp_path / "adapter" / "adapter_model.safetensors")
    return tmp_path / "adapter", tmp_path / "base"


def _without_metadata(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file(load_file(path), path)


HOSTILE: dict[str, Any] = {
    "rank_pattern": {SLOW: 4},
    "alpha_pattern": {SLOW: 4},
    "target_modules": SLOW,
    "exclude_modules": SLOW,
    "modules_to_save": ["head", SLOW],
}

BUSY = 600
"""Seconds of the processor's time after which an expression keeps it busy: opening takes less than one."""


@contextmanager
def not_busy() -> Iterator[None]:
    """Python's ``re`` looks for signals while it tries, so that this ends it."""

    def end(*_: object) -> None:
        raise TimeoutError("an expression keeps what opens an adapter busy")

    usual = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, BUSY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, usual)


def test_what_keeps_re_busy_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BUSY", 0.05)
    with pytest.raises(TimeoutError), not_busy():
        re.match(SLOW, "x" * 100)


def test_none_keeps_what_opens_an_adapter_busy(adapter: tuple[Path, Path]) -> None:
    folder, base = adapter
    config = json.loads((folder / CONFIG).read_text())
    by_hand(folder / CONFIG, json.dumps(config | HOSTILE))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with not_busy():
        opened(folder, "a/b")
        loaded = load_run(folder, "torch", model=Model(name="vit_tiny_patch16_224", weights=str(base)))
        assert relative(loaded.model.logits(images), logits("peft", folder, loaded.base, images)) <= LOGITS


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_an_expression_that_only_python_knows_opens_and_the_blocks_are_the_tensors(
    adapter: tuple[Path, Path], field: str
) -> None:
    folder, _ = adapter
    config = json.loads((folder / CONFIG).read_text())
    by_hand(folder / CONFIG, json.dumps(config | {field: r"^(?!.*head).*\.(qkv|fc1)$"}))
    method = read_adapter(folder).method
    assert isinstance(method, LoRA)
    assert (method.targets, method.blocks) == (("qkv", "fc1"), (0, 1))


@pytest.mark.parametrize("value", ["(", 5, [["qkv"]], True])
def test_targets_that_are_neither_an_expression_nor_names_are_refused(adapter: tuple[Path, Path], value: Any) -> None:
    folder, _ = adapter
    config = json.loads((folder / CONFIG).read_text())
    by_hand(folder / CONFIG, json.dumps(config | {"target_modules": value}))
    with pytest.raises(UserError, match="target_modules"):
        read_adapter(folder)


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "ADALORA"])
def test_patterns_of_pefts_other_tuners_are_not_given_to_it_either(kind: str) -> None:
    layers, tensor = ["blocks.0.attn.qkv"], "blocks.0.attn.qkv.lora_E"
    found = named_out({"peft_type": kind, "rank_pattern": {SLOW: [4], tensor: [5]}}, layers, [])["rank_pattern"]
    assert found == ({tensor: [5]} if kind == "ADALORA" else {})
    found = named_out({"peft_type": kind, "alpha_pattern": {SLOW: 4, "qkv": 5}}, layers, [])["alpha_pattern"]
    assert SLOW not in found and 5 in found.values()


def test_peft_is_given_names_in_the_place_of_expressions() -> None:
    layers = ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]
    config = {
        "peft_type": "LORA", "target_modules": ".*", "exclude_modules": SLOW, "layers_pattern": [SLOW],
        "modules_to_save": [SLOW], "rank_pattern": {"kv": 1, "(qkv|proj)": 8, SLOW: 4}, "alpha_pattern": None,
        "feedforward_modules": r".*\.fc2",
    }  # fmt: skip
    assert named_out(config, layers, ["head"]) == {
        "target_modules": r"blocks\.0\.attn\.qkv|blocks\.1\.mlp\.fc2",
        "exclude_modules": None,
        "layers_pattern": None,
        "modules_to_save": ["head"],
        "rank_pattern": {r"blocks\.0\.attn\.qkv": 8},
        "feedforward_modules": ["blocks.1.mlp.fc2"],
    }
