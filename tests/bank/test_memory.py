"""The base is held once; adapters cost their own bytes, within a budget; switching copies and compiles nothing."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from banks import SAME, SIDES, adapter, alone, arrays, base_of, folder_of, network, pixels

import torch_ref.bank
import torch_ref.methods.gathering
import torch_ref.methods.mixed

# isort: split
import mlx_peft.backend.bank
import mlx_peft.backend.methods.gathering
from convert.adapters.peft import write_adapter
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import IA3, SSF, LoRA, QALoRA
from mlx_peft.core.errors import UserError

GATHERING = {"mlx": mlx_peft.backend.methods.gathering, "torch": torch_ref.methods.gathering}
MIXERS = {"mlx": mlx_peft.backend.bank.Mixer, "torch": torch_ref.bank.Mixer}


@pytest.fixture
def mixers(side, monkeypatch):
    """The mixers that are made."""
    made, build = [], MIXERS[side].__init__

    def init(self, model) -> None:
        build(self, model)
        made.append(self)

    monkeypatch.setattr(MIXERS[side], "__init__", init)
    return made


def bytes_of(*trees) -> int:
    """Of arrays in nested dictionaries, each array once."""
    found, rest = {}, list(trees)
    while rest:
        one = rest.pop()
        if isinstance(one, Mapping):
            rest += one.values()
        else:
            found[id(one)] = one.nbytes
    return sum(found.values())


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [None, 4])
def test_many_adapters_cost_the_base_once_and_their_own_bytes(side, mixers, bits, count, tmp_path: Path):
    quantize = bits and mlx_peft.Quantization(bits=bits, group_size=32)
    kinds = [LoRA(rank=4, targets=("all-linear",)), LoRA(rank=8, targets=("q", "v")), LoRA(rank=2, dora=True)]
    kinds += [IA3(), SSF(), *([QALoRA(rank=4)] if bits else [])]
    base = base_of(quantize)
    own = [adapter(base, kind, number) for number, kind in enumerate(kinds)]
    for number, one in enumerate(own):
        write_adapter(tmp_path / f"a{number:03d}", one)
    for number in range(len(own), count):
        shutil.copytree(tmp_path / f"a{number % len(own):03d}", tmp_path / f"a{number:03d}")
    model = network(side, quantize)
    bank = SIDES[side].load_adapters(model, tmp_path)
    for name in bank:
        bank.set_adapter(name)
    assert len(bank.resident) == count
    theirs = sum(t.nbytes for number in range(count) for t in own[number % len(own)].tensors.values())
    once = bytes_of(arrays(side, model))
    held = [(resident.held, {"heads": dict(enumerate(sum(resident.heads, ())))}) for resident in residents(bank)]
    (mixer,) = mixers
    everything = bytes_of(arrays(side, model), arrays(side, mixer.network), *(tree for pair in held for tree in pair))
    assert bank.nbytes == pytest.approx(theirs, rel=0.1)
    assert everything == once + bank.nbytes


def residents(bank):
    return [bank._passes.residents.get(name) for name in bank.resident]


def test_the_base_s_arrays_are_the_model_s_own_whatever_is_switched(side, few, mixers):
    model = network(side)
    own = {id(array) for array in arrays(side, model).values()}
    bank = SIDES[side].load_adapters(model, few.folder)
    for name in (*few.names, None, *few.names):
        bank.set_adapter(name)
        bank.logits(pixels(1))
        assert {id(array) for array in arrays(side, mixers[0].network).values()} == own
    bank.logits(pixels(7), few.names)
    assert {id(array) for array in arrays(side, mixers[0].network).values()} == own


@pytest.fixture
def stacked(side, monkeypatch):
    """One entry for each term that was copied beside those of other rows."""
    calls, stack = [], GATHERING[side].stacked
    monkeypatch.setattr(GATHERING[side], "stacked", lambda *given: calls.append(given) or stack(*given))
    return calls


def test_switching_copies_no_terms_and_neither_does_a_batch_with_the_same_rows(few, opened, mixers, stacked):
    bank = opened()
    mixers[0].gathers = True  # as torch does on a GPU
    for name in few.names:
        bank.logits(pixels(2), name)
    assert stacked == []
    first = bank.logits(pixels(4), few.names[:4])
    copies = len(stacked)
    assert copies > 0
    again = bank.logits(pixels(4), few.names[:4])
    assert len(stacked) == copies and np.array_equal(np.stack(first[:1]), np.stack(again[:1]))
    bank.logits(pixels(4), few.names[1:5])
    assert len(stacked) == 2 * copies


@pytest.fixture
def copied(monkeypatch):
    """What torch copied beside one another on a CPU, by layer; at each time none but the last layer's is there."""
    found, one = {}, torch_ref.methods.gathering.Beside._array

    def beside(self, part):
        array = one(self, part)
        found[part] = weakref.ref(array)
        assert {other for other, ref in found.items() if ref() is not None} <= {part, "shared"}
        return array

    monkeypatch.setattr(torch_ref.methods.gathering.Beside, "_array", beside)
    return found


@pytest.mark.parametrize("side", ["torch"])
def test_on_a_cpu_torch_copies_no_factors_of_large_images_adapters(few, opened, mixers, copied, monkeypatch):
    monkeypatch.setattr(torch_ref.methods.mixed, "MANY", 1)
    bank = opened()
    for names in ([few.names[0]] * 4, few.names[:4], few.names[1:3] * 2):
        bank.logits(pixels(4), names)
    assert copied == {} and mixers[0]._last == ([], {}, {})


@pytest.mark.parametrize("side", ["torch"])
@pytest.mark.parametrize("method", [IA3(), LoRA(rank=4)])
def test_on_a_cpu_torch_copies_a_layer_s_terms_when_it_is_asked_and_keeps_none(
    side, method, mixers, copied, tmp_path: Path
):
    names = list(folder_of([method] * 3, tmp_path, base_of()))
    bank = SIDES[side].load_adapters(network(side), tmp_path)
    bank.logits(pixels(3), names[:1] * 3)
    assert copied == {}
    bank.logits(pixels(3), names)
    assert len(copied) > 1 and not any(ref() is not None for ref in copied.values())
    assert mixers[0]._last == ([], {}, {})


@pytest.fixture
def traces(monkeypatch, compiled):
    """One entry for each time that MLX traced the network."""
    found, prefix = [], VisionTransformer.prefix
    monkeypatch.setattr(VisionTransformer, "prefix", lambda self, x, end: found.append(end) or prefix(self, x, end))
    return found


def test_adapters_of_one_form_and_other_rows_compile_nothing(few, traces, tmp_path: Path):
    bank = SIDES["mlx"].load_adapters(network("mlx"), few.folder)
    images = pixels(4)
    answers = [bank.logits(images, name) for name in few.names[:6]]
    assert len(traces) == 1
    mixed = bank.logits(images, few.names[:4])
    assert len(traces) == 2
    for names in ([few.names[3], None, few.names[5], few.names[1]], few.names[2:6]):
        bank.logits(images, names)
        bank.logits(images[:3], names[:3])  # filled up to four
    assert len(traces) == 2
    for row, answer in enumerate(mixed):
        np.testing.assert_allclose(answer, answers[row][row], rtol=0, atol=SAME)


def test_forms_that_take_turns_are_compiled_once_each_and_those_that_mix_once_together(traces, tmp_path: Path):
    adapters = folder_of([LoRA(rank=1), LoRA(rank=3, targets=("q",)), IA3(targets=("v",))], tmp_path, base_of())
    bank, images, names = SIDES["mlx"].load_adapters(network("mlx"), tmp_path), pixels(2), list(adapters)
    for name in names * 2:
        bank.logits(images, name)
    assert len(traces) == 3
    for pair in ([0, 1], [1, 2], [2, 0], [0, 2]):
        bank.logits(images, [names[at] for at in pair])
    assert len(traces) == 4


def test_the_least_recently_used_make_room(opened, few):
    bank = opened()
    bank.set_adapter(few.names[0])
    one = bank.nbytes
    bank = opened(budget=3 * one + one // 2)
    for name in few.names[:3]:
        bank.set_adapter(name)
    assert bank.resident == tuple(few.names[:3])
    bank.logits(pixels(1), few.names[0])
    bank.logits(pixels(1), few.names[3])
    assert bank.resident == (few.names[2], few.names[0], few.names[3]) and bank.nbytes <= 3 * one + one // 2


def test_a_batch_of_more_adapters_than_the_budget_has_room_for_is_answered_in_parts(opened, few, side, monkeypatch):
    bank = opened()
    bank.set_adapter(few.names[5])
    budget = 2 * bank.nbytes
    bank = opened(budget)
    names = [few.names[at] for at in (4, 0, 6, 1, 0, 2, 5, 3, 4)]
    images = pixels(len(names) + 1)
    found = bank.logits(images, [*names, None])
    assert bank.nbytes <= budget and len(bank.resident) < 7
    for row, name in enumerate(names):
        expected = alone(side, few.base, few.adapters[name], images[[row]])[0]
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=SAME)
    assert found[-1].shape == (64,)


def test_an_adapter_that_is_larger_than_the_budget_is_refused_by_name_and_the_others_stay(opened, few):
    bank = opened(budget=3000)
    small = few.names[6]
    before = bank.logits(pixels(1), small)
    with pytest.raises(UserError, match=r"the adapter 00-lora has [\d,]+ bytes, and the budget is 3,000"):
        bank.logits(pixels(2), [small, "00-lora"])
    assert bank.nbytes <= 3000
    assert np.array_equal(bank.logits(pixels(1), small)[0], before[0])
