"""Damaged, foreign and hostile folders are refused by name, at the latest when they are asked for; others answer."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from banks import CODES, SIDES, adapter, base_of, edited, network, pixels, rewritten
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.adapters.description import METADATA
from convert.adapters.peft import CONFIG, WEIGHTS, read_adapter, write_adapter
from mlx_peft.config.methods import BOFT, OFT, Full, LoRA, RoAd
from mlx_peft.config.quantization import QAT
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS


def resaved(folder: Path, tensors=lambda tensors: tensors, metadata=lambda metadata: metadata) -> None:
    """The weights with other tensors, or another metadata, as another program would leave them: without a digest."""
    file = folder / WEIGHTS
    with safe_open(file, "numpy") as opened:
        known = {key: value for key, value in opened.metadata().items() if key != "digest"}
    save_file(tensors(load_file(file)), file, metadata(known))


def said(folder: Path, **changes) -> None:
    """Another description of the adapter in its metadata."""
    resaved(folder, metadata=lambda m: m | {METADATA: json.dumps(json.loads(m[METADATA]) | changes)})


def method_of(folder: Path, **changes) -> None:
    with safe_open(folder / WEIGHTS, "numpy") as opened:
        method = json.loads(opened.metadata()[METADATA])["method"]
    said(folder, method=method | changes)


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:count])


def flipped(file: Path) -> None:
    """One bit of the last tensor."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def linked(folder: Path, name: str | None = None) -> None:
    """What is there lies elsewhere, and a link leads to it."""
    there = folder.parent.parent / "outside" / folder.name
    there.parent.mkdir(exist_ok=True)
    source = folder if name is None else folder / name
    os.rename(source, there)
    source.symlink_to(there)


def without(part: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def changed(tensors: dict[str, np.ndarray], value: float) -> dict[str, np.ndarray]:
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    tensors[name][0, 0] = value
    return tensors


HOSTILE = {
    "a link to a folder outside": (linked, "is a link that leads out of"),
    "a link to weights outside": (lambda f: linked(f, WEIGHTS), "is a link that leads out of"),
    "a link to a configuration outside": (lambda f: linked(f, CONFIG), "is a link that leads out of"),
    "a link to nothing": (lambda f: (linked(f, WEIGHTS), os.unlink((f / WEIGHTS).resolve())), "link that leads out of"),
    "another base": (lambda f: rewritten(f, base_sha256="0" * 64), "was trained on other weights than this model's"),
    "another image size": (
        lambda f: rewritten(f, architecture=base_of().architecture.model_copy(update={"img_size": 64})),
        "was trained with another model: img_size 64, not 32",
    ),
    "other preprocessing": (
        lambda f: rewritten(f, preprocessing=base_of().preprocessing.model_copy(update={"mean": (0.0, 0.1, 0.2)})),
        "images that were normalised in another way",
    ),
    "a quantised base": (lambda f: rewritten(f, quantize=CODES), "quantize: 4 bits"),
    "trained through codes": (lambda f: said(f, qat=QAT(bits=4, group_size=32).model_dump()), "trained through codes"),
    "full fine-tuning": (
        lambda f: write_adapter(f, adapter(base_of(), Full(), 0)),
        "method full: a batch cannot mix its adapters: it trains the weights themselves",
    ),
    **{
        f"turns of {method.name}": (
            lambda f, method=method: write_adapter(f, adapter(base_of(), method, 0)),
            f"method {method.name}: a batch cannot mix its adapters: it turns",
        )
        for method in (OFT(block_size=8), BOFT(), RoAd(group_size=16))
    },
    "no head": (lambda f: resaved(f, without("head")), "holds no classifier"),
    "no bias of the head": (lambda f: resaved(f, without("head.bias")), r"missing or unknown: head\.bias"),
    "a head of one row": (
        lambda f: rewritten(f, classes=(), tensors=adapter(base_of(), LoRA(rank=2), 0, classes=1).tensors),
        "the head has 1 row",
    ),
    "more names than rows": (lambda f: said(f, classes=["a", "b", "c", "d"]), "4 names, and the head has 3 rows"),
    "NaN": (lambda f: resaved(f, lambda t: changed(t, np.nan)), "NaN or infinite"),
    "infinity": (lambda f: resaved(f, lambda t: changed(t, np.inf)), "NaN or infinite"),
    "numbers whose products overflow": (
        lambda f: rewritten(f, tensors={name: np.full_like(t, 3e38) for name, t in read_adapter(f).tensors.items()}),
        "products of its tensors are not finite",
    ),
    "a tensor too few": (lambda f: resaved(f, without("blocks.1.attn.qkv.lora_A")), "blocks.1.attn.qkv"),
    "a rank of a thousand million": (lambda f: method_of(f, rank=10**9), "rank"),
    "a rank that its tensors lack": (lambda f: method_of(f, rank=3), "is not the method's rank"),
    "a rank of a thousand million, said by PEFT": (
        lambda f: (resaved(f, metadata=lambda _: None), edited(f / CONFIG, r=10**9)),
        "not understood|rank",
    ),
    "another method than its tensors": (lambda f: said(f, method={"name": "ssf"}), "missing or unknown"),
    "a method of tomorrow": (lambda f: said(f, method={"name": "tomorrow"}), "not understood"),
    "a block that the model lacks": (lambda f: method_of(f, blocks=[7]), "no block 7"),
    "metadata that is no JSON": (
        lambda f: resaved(f, metadata=lambda _: {METADATA: "{"}),
        "not an adapter|not understood",
    ),
    "weights cut short": (lambda f: cut(f / WEIGHTS, 3000), WEIGHTS),
    "weights of nothing": (lambda f: cut(f / WEIGHTS, 0), WEIGHTS),
    "a flipped bit": (lambda f: flipped(f / WEIGHTS), "digest|changed"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "no configuration": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "a configuration that is no JSON": (lambda f: ((f / CONFIG).write_text("["), (f / SUMS).unlink()), "not readable"),
    "a configuration that was changed": (lambda f: (f / CONFIG).write_text("{}"), CONFIG),
    "weights that are a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), WEIGHTS),
}
"""What is done to an adapter's folder, and what is said of it."""

NAMES = {"a\x1b[2Jb": r"a\\x1b", "back\\slash": "back", "line\nbreak": r"line\\n", "x" * 201: "xxx"}
"""Names of folders that are no names of adapters."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Two adapters among all those."""
    base, folder = base_of(), tmp_path_factory.mktemp("hostile") / "adapters"
    for name in ("good", "well", *HOSTILE, *NAMES):
        write_adapter(folder / name, adapter(base, LoRA(rank=2), len(name)))
    for name, (done, _) in HOSTILE.items():
        done(folder / name)
    return SimpleNamespace(folder=folder, base=base)


@pytest.fixture
def opened(side, hostile):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        bank = SIDES[side].load_adapters(network(side), hostile.folder)
    return SimpleNamespace(bank=bank, warned=[str(entry.message) for entry in warned])


def test_what_can_be_seen_without_reading_is_refused_at_once_with_a_warning_each(opened):
    assert {"good", "well"} <= set(opened.bank) and not set(opened.bank) & set(opened.bank.refused)
    assert set(opened.bank) | set(opened.bank.refused) == {"good", "well", *HOSTILE, *NAMES}
    assert len(opened.warned) == len(opened.bank.refused) > 20
    assert all(reason in opened.warned for reason in opened.bank.refused.values())
    assert all(name in reason for name, reason in opened.bank.refused.items() if name in HOSTILE)
    assert all("\n" not in reason and "\x1b" not in reason for reason in opened.warned)


def test_each_is_refused_by_name_and_the_others_answer_as_before(opened):
    bank, images = opened.bank, pixels(3)
    before = bank.logits(images, ["good", "well", None])
    for name, (_, words) in HOSTILE.items():
        with pytest.raises(UserError, match=words) as caught:
            bank.logits(images, ["good", name, None])
        assert name in str(caught.value)
        assert name not in bank.resident
        assert all(map(np.array_equal, bank.logits(images, ["good", "well", None]), before))
    for name in NAMES:
        with pytest.raises(UserError, match="text without slashes"):
            bank.logits(images, name)


def test_none_is_added_and_what_had_the_name_stays(side, hostile, tmp_path: Path):
    """A link that is named itself is followed: whoever names it means what it leads to."""
    bank = SIDES[side].load_adapters(network(side), one_good(tmp_path, hostile.base))
    before = bank.logits(pixels(1), "good")
    for name in HOSTILE.keys() - {"a link to a folder outside"}:
        with pytest.raises(UserError, match=HOSTILE[name][1]):
            bank.add(hostile.folder / name, "good")
        assert np.array_equal(bank.logits(pixels(1), "good")[0], before[0])


def test_no_name_is_a_path(side, hostile, tmp_path: Path):
    bank = SIDES[side].load_adapters(network(side), one_good(tmp_path, hostile.base))
    for name in ("../good", "a/b", "..", ".hidden", "", "nul\0", "a\\b", *NAMES):
        with pytest.raises(UserError, match="text without slashes"):
            bank.add(hostile.folder / "good", name)
        with pytest.raises(UserError, match="text without slashes"):
            bank.logits(pixels(1), name)


def test_a_folder_that_changes_after_it_was_looked_at_is_refused(side, hostile, tmp_path: Path):
    bank = SIDES[side].load_adapters(network(side), one_good(tmp_path, hostile.base))
    write_adapter(tmp_path / "good", adapter(hostile.base, LoRA(rank=4), 0))
    with pytest.raises(UserError, match="not what it was when the bank looked at it"):
        bank.logits(pixels(1), "good")
    bank.add(tmp_path / "good")
    assert len(bank.logits(pixels(1), "good")) == 1


def one_good(folder: Path, base) -> Path:
    write_adapter(folder / "good", adapter(base, LoRA(rank=2), 0))
    return folder
