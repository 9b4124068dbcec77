"""AdaLoRA's schedule against the installed PEFT, step by step, and what is trained by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from comparing import relative
from foreign_models import prepared
from halves import daily
from interop.adalora_of_peft import (
    CLASSES,
    LOGITS,
    LR,
    NAMES,
    SCHEDULE,
    STEPS,
    TRAINED,
    base,
    experiment,
    images,
    peft_config,
    peft_name,
)
from peft_reference import adapter_of, logits, opened, timm_of

import mlx_peft.backend.entry
import torch_ref.entry
from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.config.methods import AdaLoRA
from mlx_peft.training.allocation import RankAllocator, ranks

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")
"""PEFT saves a rank of 0 with a word on distributed training, which this is not."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}


class Peft:
    """PEFT's model with its own allocator, trained by torch's own optimiser from a trainer's start."""

    def __init__(self, method: AdaLoRA, start: dict[str, np.ndarray]) -> None:
        self.model = peft.get_peft_model(timm_of(base()), peft_config(method)).eval()
        known = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in start.items():
                known[peft_name(name)].copy_(torch.from_numpy(tensor))
        self.parameters = {name: known[peft_name(name)] for name in start}
        assert {id(p) for p in known.values() if p.requires_grad} == {id(p) for p in self.parameters.values()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), LR, weight_decay=0.0)

    def train_step(self, pixels: np.ndarray, targets: np.ndarray, t: int) -> float:
        loss = F.cross_entropy(self.model(prepared(pixels, base())), torch.from_numpy(targets).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.model.base_model.update_and_allocate(t)
        self.optimizer.zero_grad()
        return float(loss.detach())

    @property
    def kept(self) -> dict[str, list[bool]]:
        pattern = self.model.peft_config["default"].rank_pattern or {}
        return {name.removesuffix(".lora_E.default"): kept for name, kept in pattern.items()}

    def alive(self) -> dict[str, list[bool]]:
        """Which E are not zero."""
        return {n: (p != 0).tolist() for n, p in self.parameters.items() if n.endswith("lora_E")}


@pytest.fixture(scope="module", params=daily(BACKENDS, "mlx"))
def trained(request: pytest.FixtureRequest) -> tuple[Any, Peft]:
    """A trainer and PEFT's model after the same schedule, compared at every step of it."""
    trainer = BACKENDS[request.param].build_trainer(experiment(SCHEDULE), CLASSES, base())
    theirs = Peft(SCHEDULE, trainer.model.adapter())
    dealer = RankAllocator(SCHEDULE, STEPS)
    dealer.start(trainer, {})
    totals = []
    for t in range(1, STEPS + 1):
        batch = images(t)
        loss = float(trainer.train_step(*batch, LR, observe=dealer.observes(t)))
        kept = dealer.after(trainer, t)
        assert loss == pytest.approx(theirs.train_step(*batch, t), rel=1e-3), t
        if theirs.kept:
            assert kept == theirs.kept, f"step {t}"
        else:
            assert all(map(all, kept.values()))
        found = trainer.model.adapter()
        assert {n: (found[n] != 0).tolist() for n in theirs.alive()} == theirs.alive(), f"step {t}"
        totals.append(sum(ranks(kept).values()))
    assert totals[:8] == [36] * 8 and totals[44:] == [12] * 16
    assert len(set(totals)) > 5, "the schedule must mask step by step for this test to say anything"
    return trainer, theirs


def test_a_full_schedule_ends_with_pefts_logits(trained: tuple[Any, Peft]) -> None:
    trainer, theirs = trained
    pixels, _ = images(0)
    expected = logits(theirs.model, prepared(pixels, base()))
    assert relative(trainer.model.logits(pixels), expected) < TRAINED
    assert relative(logits(timm_of(base()), prepared(pixels, base())), expected) > 0.1  # so training did something


def test_the_same_triplets_give_pefts_logits_and_merged_weights(trained: tuple[Any, Peft], tmp_path: Path) -> None:
    trainer, theirs = trained
    pixels, _ = images(0)
    before = trainer.model.adapter()
    trainer.model.load_adapter({name: p.detach().numpy().copy() for name, p in theirs.parameters.items()})
    assert relative(trainer.model.logits(pixels), logits(theirs.model, prepared(pixels, base()))) < LOGITS
    theirs.model.save_pretrained(tmp_path, save_embedding_layers=False)
    merged = opened(base(), tmp_path).merge_and_unload().state_dict()
    for name, tensor in trainer.model.merged().items():
        assert relative(tensor, merged[name].numpy()) < 1e-6, name
    trainer.model.load_adapter(before)


def test_peft_opens_ours_with_the_same_logits(trained: tuple[Any, Peft], tmp_path: Path) -> None:
    trainer, _ = trained
    pixels, _ = images(0)
    (note,) = write_adapter(tmp_path, adapter_of(experiment(SCHEDULE), base(), trainer.model.adapter(), NAMES))
    assert "total_step is the least that PEFT accepts" in note
    assert relative(logits(opened(base(), tmp_path), prepared(pixels, base())), trainer.model.logits(pixels)) < LOGITS


def test_the_file_is_pefts(trained: tuple[Any, Peft], tmp_path: Path) -> None:
    """Names, shapes and the pattern; of the configuration, every key that ours has."""
    trainer, theirs = trained
    write_adapter(tmp_path / "ours", adapter_of(experiment(SCHEDULE), base(), trainer.model.adapter(), NAMES))
    theirs.model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours, others = (read_files(tmp_path / name) for name in ("ours", "theirs"))
    assert ours[1] == others[1]
    config, expected = ours[0], others[0]
    for key in ("total_step", "orth_reg_weight", "task_type", "base_model_name_or_path"):  # what PEFT was not told here
        expected[key] = config[key]
    assert config == {key: expected[key] for key in config}


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    return config, {name: t.shape for name, t in load_file(folder / "adapter_model.safetensors").items()}


def test_what_peft_trained_is_read(trained: tuple[Any, Peft], tmp_path: Path) -> None:
    trainer, theirs = trained
    pixels, _ = images(0)
    theirs.model.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter = read_adapter(tmp_path)
    assert adapter.method == SCHEDULE.model_copy(update={"orth_weight": 0.5})  # PEFT's default, which it did not use
    before = trainer.model.adapter()
    trainer.model.load_adapter(adapter.tensors)
    assert relative(trainer.model.logits(pixels), logits(theirs.model, prepared(pixels, base()))) < LOGITS
    trainer.model.load_adapter(before)


def test_ours_comes_back_with_zeros_for_what_was_masked(trained: tuple[Any, Peft], tmp_path: Path) -> None:
    trainer, _ = trained
    before = trainer.model.adapter()
    write_adapter(tmp_path, adapter_of(experiment(SCHEDULE), base(), before, NAMES))
    again = read_adapter(tmp_path)
    assert again.method == SCHEDULE and again.tensors.keys() == before.keys()
    for name, tensor in before.items():
        assert again.tensors[name].shape == tensor.shape
        if name.endswith("lora_E"):
            kept = tensor[:, 0] != 0
            path = name.rpartition(".")[0]
            for kind, axis in (("lora_E", 0), ("lora_A", 0), ("lora_B", 1)):
                stored, whole = again.tensors[f"{path}.{kind}"], before[f"{path}.{kind}"]
                np.testing.assert_array_equal(stored.take(range(kept.sum()), axis), whole.compress(kept, axis))
                assert not stored.take(range(kept.sum(), 6), axis).any()
    pixels, _ = images(0)
    expected = trainer.model.logits(pixels)
    trainer.model.load_adapter(again.tensors)
    assert relative(trainer.model.logits(pixels), expected) < LOGITS
    trainer.model.load_adapter(before)


def test_equal_ranks_train_as_pefts_layers_without_its_allocator() -> None:
    """PEFT's own allocator asks for the 0th smallest score and fails."""
    method = SCHEDULE.model_copy(update={"init_rank": 4, "target_rank": 4})
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    theirs = Peft(method, trainer.model.adapter())
    dealer = RankAllocator(method, STEPS)
    dealer.start(trainer, {})
    theirs.model.base_model.update_and_allocate = lambda t: None
    for t in range(1, STEPS + 1):
        batch = images(t)
        loss = float(trainer.train_step(*batch, LR, observe=dealer.observes(t)))
        assert all(map(all, dealer.after(trainer, t).values()))
        assert loss == pytest.approx(theirs.train_step(*batch, t), rel=1e-3), t
    pixels, _ = images(0)
    assert relative(trainer.model.logits(pixels), logits(theirs.model, prepared(pixels, base()))) < TRAINED
