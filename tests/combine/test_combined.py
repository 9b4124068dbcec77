"""A combined adapter is one as any other: who opens it, whose head it has, what it says of where it comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from banks import SIDES, base_of, network, pixels
from comparing import relative
from peft_reference import logits, opened
from safetensors.numpy import load_file, save_file

import mlx_peft as mp
from convert.adapters.peft import WEIGHTS, read_adapter
from convert.files import describe_safetensors
from convert.timm.write import write_model
from mlx_peft.artifacts.inspect import inspect
from mlx_peft.artifacts.share import packed
from mlx_peft.config.methods import IA3, SSF, VPT, AdaptFormer, LoRA
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.tokens import ToMe
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS
from mlx_peft.report.card import card

PEFT = 2e-5
"""Relative, float32: the same model in two implementations."""


@pytest.mark.parametrize("side", SIDES)
def test_the_bank_peft_and_a_model_answer_alike_with_it(side, written, tmp_path):
    given = {written("a", LoRA(rank=4, rslora=True)): 0.7, written("b", LoRA(rank=2, targets=("q", "v")), 1): -0.3}
    mp.combine(given, tmp_path / "bank" / "both", head="b")
    images = pixels(3)
    bank = SIDES[side].load_adapters(network(side), tmp_path / "bank")
    assert not bank.refused
    answers = np.stack(bank.logits(images, "both"))
    theirs = opened(base_of(), tmp_path / "bank" / "both")
    expected = logits(theirs, network("torch").pixels(images).permute(0, 3, 1, 2))
    assert relative(answers, expected) <= PEFT
    model = SIDES[side].load(tmp_path / "bank" / "both")
    assert relative(model.logits(images), expected) <= PEFT


def test_both_backends_and_every_time_write_the_same_bytes(written, tmp_path):
    given = {written("a", LoRA()): 0.7, written("b", LoRA(), 1): 0.3}
    for name, side in (("1", "mlx"), ("2", "torch"), ("3", "mlx")):
        SIDES[side].combine(given, tmp_path / name, "dare_ties", density=0.3, seed=5, head="a")
    contents = {(tmp_path / name / WEIGHTS).read_bytes() for name in "123"}
    assert len(contents) == 1
    SIDES["mlx"].combine(given, tmp_path / "4", "dare_ties", density=0.3, seed=6, head="a")
    assert (tmp_path / "4" / WEIGHTS).read_bytes() not in contents


def test_it_says_what_it_was_made_of_and_no_place_on_this_machine(written, tmp_path):
    given = {written("mine", LoRA(rank=4)): 0.7, written("yours", LoRA(rank=4), 1): 0.3}
    mp.combine(given, tmp_path / "out", "ties", density=0.5, head="mine")
    _, metadata = describe_safetensors(tmp_path / "out" / WEIGHTS)
    origin = json.loads(metadata["mlx_peft"])["origin"]
    assert [(one["name"], one["method"], one["weight"]) for one in origin["adapters"]] == [
        ("mine", "lora", 0.7),
        ("yours", "lora", 0.3),
    ]
    assert len({one["sha256"] for one in origin["adapters"]}) == 2
    assert origin["combination"] == {"how": "ties", "density": 0.5, "majority_sign_method": "total"}
    assert origin["head"] == "mine"
    assert inspect(tmp_path / "out")["combined"] == origin
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_an_adapter_that_was_trained_says_nothing_of_it(written):
    _, metadata = describe_safetensors(written("a", LoRA()) / WEIGHTS)
    assert "origin" not in json.loads(metadata["mlx_peft"])


def test_one_adapter_alone_is_interpolated_with_its_base(written, tmp_path):
    place = written("a", LoRA(rank=4, alpha=6))
    mp.combine({place: 0.25}, tmp_path / "quarter")
    whole, quarter = read_adapter(place), read_adapter(tmp_path / "quarter")
    name = "blocks.0.attn.proj.lora_"
    update, part = (one.tensors[f"{name}B"] @ one.tensors[f"{name}A"] for one in (whole, quarter))
    np.testing.assert_allclose(part, 0.25 * whole.method.scaling * update, atol=1e-6)
    np.testing.assert_array_equal(quarter.tensors["head.weight"], whole.tensors["head.weight"])


# What is refused.


@pytest.mark.parametrize(
    ("one", "other", "how", "message"),
    [
        (LoRA(), LoRA(dora=True), None, "b: adapters of the method lora with dora cannot be combined: .*trained norm"),
        (
            VPT(tokens=2),
            VPT(tokens=2),
            None,
            "a: adapters of the method vpt cannot be combined: its prompts are tokens",
        ),
        (
            LoRA(),
            IA3(),
            None,
            "a and b do not add up to one adapter: lora has products of two factors, and ia3 factors",
        ),
        (SSF(), SSF(), "cat", "method ssf cannot be combined by cat, but by linear, ties.*; linear is exact"),
        (AdaptFormer(), AdaptFormer(), "svd", "method adaptformer cannot be combined by svd, but by cat"),
        (LoRA(rank=2), LoRA(rank=3), "linear", "has the ranks 2 and 3 in these adapters"),
        (
            IA3(targets=("fc2",)),
            IA3(targets=("fc2",), feedforward=()),
            None,
            "scales fc2 on its inputs in one adapter, and on its outputs in another",
        ),
    ],
)
def test_what_does_not_add_up_is_refused_by_name(one, other, how, message, written, tmp_path):
    with pytest.raises(UserError, match=message):
        mp.combine([written("a", one), written("b", other, 1)], tmp_path / "out", how, head="a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_sha256": "0" * 64}, "stand on different bases: .* and .*000000000000"),
        ({"quantize": Quantization(bits=4, group_size=32)}, "stand on different bases: quantize: null and 4 bits"),
        ({"qat": QAT(bits=4, group_size=32)}, "was trained through codes"),
        (
            {"architecture": base_of().architecture.model_copy(update={"depth": 3})},
            "stand on different bases: models of different shapes",
        ),
        (
            {"preprocessing": base_of().preprocessing.model_copy(update={"mean": (0.1, 0.1, 0.1)})},
            "were normalised in different ways",
        ),
    ],
)
def test_another_base_is_refused(changes, message, written, tmp_path):
    with pytest.raises(UserError, match=message):
        mp.combine([written("a", LoRA()), written("b", LoRA(), 1, **changes)], tmp_path / "out", head="a")


def test_damaged_folders_are_refused(written, tmp_path):
    good, bad = written("a", LoRA()), written("b", LoRA(), 1)
    (bad / WEIGHTS).write_bytes((bad / WEIGHTS).read_bytes()[:-9])
    for given, message in (
        ([good, bad], "b"),
        ([good, tmp_path / "nowhere"], "nowhere is not a folder"),
        ([], "there are no adapters"),
        ({good: float("nan")}, "the weight of .*a should be a finite number"),
        ({good: "0.5"}, "the weight of .*a should be a finite number, not '0.5'"),
    ):
        with pytest.raises(UserError, match=message):
            mp.combine(given, tmp_path / "out", head="a")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_claims_more_than_it_holds_is_refused(written, tmp_path):
    """Before anything of the claimed size is made."""
    claimed = base_of().architecture.model_copy(update={"depth": 400})
    place = written("a", LoRA(blocks=(0,)), architecture=claimed)
    other = written("b", LoRA(), 1, architecture=claimed)
    with pytest.raises(UserError, match=r"b does not fit the model of the others: it is of 2 blocks, and there .* 400"):
        mp.combine([place, other], tmp_path / "out", head="a")


def test_a_sum_that_is_too_large_leaves_nothing_behind(written, tmp_path):
    with pytest.raises(UserError, match="the weights are too large"), np.errstate(over="ignore"):
        mp.combine({written("a", LoRA(alpha=1e30)): 1e30}, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_is_there_is_not_overwritten(written, tmp_path):
    place = written("a", LoRA())
    before = (place / WEIGHTS).read_bytes()
    with pytest.raises(UserError, match="a is one of the adapters that are combined"):
        mp.combine([place], place)
    assert (place / WEIGHTS).read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="full: exists already"):
        mp.combine([place], tmp_path / "full")


def test_a_cell_that_is_run_again_replaces_what_it_made(written, tmp_path):
    place = written("a", LoRA())
    for weight in (0.5, 0.25):
        mp.combine({place: weight}, tmp_path / "out")
        assert read_adapter(tmp_path / "out").origin.adapters[0].weight == weight


@pytest.mark.parametrize("other", [ToMe(r=2), ToMe(r=3), None])
def test_the_fewer_tokens_of_all_are_those_of_the_result(other, written, tmp_path):
    mp.combine(
        [written("a", LoRA(), tokens=ToMe(r=2)), written("b", LoRA(), 1, tokens=other)], tmp_path / "o", head="a"
    )
    assert read_adapter(tmp_path / "o").tokens == (ToMe(r=2) if other == ToMe(r=2) else None)


def as_peft_leaves_it(folder):
    """Without our metadata and digests: whatever PEFT's own file does not say is not said."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    (folder / SUMS).unlink()
    return folder


def test_adapters_that_peft_wrote_are_combined_once_their_model_is_named(written, tmp_path):
    base = base_of()
    write_model(tmp_path / "base", base=base, tensors=base.tensors, classes=())
    places = [as_peft_leaves_it(written(name, LoRA(rank=2 + i), i)) for i, name in enumerate("ab")]
    with pytest.raises(UserError, match="does not say which model it belongs to"):
        mp.combine(places, tmp_path / "out", head="b")
    options = {"head": "b", "model": "vit_tiny_patch16_224", "base_weights": str(tmp_path / "base")}
    mp.combine(places, tmp_path / "out", **options)
    found = read_adapter(tmp_path / "out")
    assert (found.method.rank, found.architecture, found.base_sha256) == (5, base.architecture, base.sha256)
    model = network("torch").pixels(pixels(2)).permute(0, 3, 1, 2)
    assert np.isfinite(logits(opened(base, tmp_path / "out"), model)).all()


def test_one_of_pefts_beside_one_of_ours_is_taken_to_be_of_its_base(written, tmp_path):
    places = [as_peft_leaves_it(written("a", LoRA(rank=2))), written("b", LoRA(rank=3), 1)]
    mp.combine(places, tmp_path / "out", head="a")
    assert read_adapter(tmp_path / "out").base_sha256 == base_of().sha256
    with pytest.raises(UserError, match="b names its own model"):
        mp.combine(places, tmp_path / "other", head="a", model="vit_small_patch16_224")


def test_a_card_says_what_an_adapter_was_made_of(written, tmp_path):
    mp.combine({written("a", LoRA(rank=4)): 0.5, written("b", LoRA(rank=4), 1): -1}, tmp_path / "o", "linear", head="a")
    with packed(tmp_path / "o", "torch") as parcel:
        text = card(parcel, "jane/both", "")
    assert "It was made of others, without training: linear of 0.5 x a and -1 x b, the head of a." in text
