"""AdaLoRA against the installed PEFT: a full schedule step by step, and adapters read both ways."""

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
from peft_reference import PREFIX, adapter_of, logits, opened, timm_of

import mlx_peft.backend.entry
import torch_ref.entry
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.config.methods import AdaLoRA
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.allocation import RankAllocator, ranks

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")
"""PEFT saves a rank of 0 with a word on distributed training, which this is not."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
NAME, CLASSES, SIZE, STEPS, LR = "vit_tiny_patch16_224", 3, 32, 60, 3e-3
SIZES = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
NAMES = ("a", "b", "c")
TARGETS = r".*blocks\.\d+\..*\.(fc1|proj|qkv)"
SCHEDULE = AdaLoRA(
    init_rank=6, target_rank=2, alpha=9, t_init=8, t_final=15, delta_t=3, orth_weight=0, targets=("qkv", "proj", "fc1")
)

LOGITS = 1e-5
"""Relative; float32, with the weights formed on one side only."""

TRAINED = 1e-3
"""Relative, after 60 steps of AdamW, which magnifies rounding by its division by small numbers."""


def experiment(method: AdaLoRA) -> Experiment:
    return Experiment.model_validate({
        "model": {"name": NAME, "weights": "none", "image_size": SIZE, "args": SIZES},
        "method": method.model_dump(),
        "data": {"name": "digits", "batch_size": 4},
        "train": {"clip_norm": 1.0, "optimizer": {"name": "adamw", "weight_decay": 0.0}},
    })  # fmt: skip


def base() -> Base:
    return load_base(experiment(SCHEDULE).model, CLASSES, seed=1)


def peft_config(method: AdaLoRA, **more: Any) -> peft.AdaLoraConfig:
    options = {
        "init_r": method.init_rank, "target_r": method.target_rank, "lora_alpha": method.alpha, "tinit": method.t_init,
        "tfinal": method.t_final, "deltaT": method.delta_t, "total_step": STEPS, "target_modules": TARGETS,
        "modules_to_save": ["head"], "beta1": method.beta1, "beta2": method.beta2,
    }  # fmt: skip
    return peft.AdaLoraConfig(**(options | more))


def peft_name(name: str) -> str:
    """A trainer's name for a parameter in PEFT's model."""
    path, _, last = name.rpartition(".")
    return f"{PREFIX}head.modules_to_save.default.{last}" if path == "head" else f"{PREFIX}{path}.{last}.default"


def images(step: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(step)
    return random.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8), random.integers(0, CLASSES, 4, dtype=np.int32)


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


@pytest.fixture(scope="module", params=BACKENDS)
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


CASES: dict[str, AdaLoRA] = {
    "whole": SCHEDULE,
    "q and v": AdaLoRA(init_rank=3, target_rank=2, alpha=5, targets=("q", "v")),
    "parts and wholes": AdaLoRA(init_rank=3, target_rank=2, targets=("k", "q", "proj", "fc2")),
    "one block": AdaLoRA(init_rank=4, target_rank=4, targets=("v", "fc1"), blocks=(1,)),
}


@pytest.mark.parametrize("state", ["untrained", "pruned", "a layer gone"])
@pytest.mark.parametrize("case", CASES)
def test_peft_opens_every_target_pruned_or_not(case: str, state: str, tmp_path: Path) -> None:
    method = CASES[case]
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    random = np.random.default_rng(4)
    tensors = {n: t + random.normal(0, 0.3, t.shape).astype(np.float32) for n, t in trainer.model.adapter().items()}
    for name, tensor in tensors.items():
        if name.endswith("lora_E"):
            gone = state == "untrained" or (state == "a layer gone" and "blocks.1" in name)
            tensor *= 0 if gone and (state == "untrained" or len(CASES[case].targets) > 1) else 1
            if state != "untrained":
                tensor[random.random(len(tensor)) < 0.4] = 0
    if state == "a layer gone" and not any(t.any() for n, t in tensors.items() if n.endswith("lora_E")):
        name = next(n for n in tensors if n.endswith("lora_E"))
        tensors[name][0] = 1  # else the adapter is one that was never trained
    trainer.model.load_adapter(tensors)
    write_adapter(tmp_path, adapter_of(experiment(method), base(), tensors, NAMES))
    theirs = opened(base(), tmp_path)
    pixels, _ = images(0)
    assert relative(logits(theirs, prepared(pixels, base())), trainer.model.logits(pixels)) < LOGITS
    again = read_adapter(tmp_path)
    assert again.method == method
    expected = trainer.model.logits(pixels)
    trainer.model.load_adapter(again.tensors)
    assert relative(trainer.model.logits(pixels), expected) < LOGITS
    if state == "untrained":
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(again.tensors[name], tensor)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in trainer.model.merged().items():
        assert relative(tensor, merged[name].numpy()) < 1e-6, name


def test_what_peft_saved_of_ours_again_is_the_same_model(tmp_path: Path) -> None:
    method = CASES["parts and wholes"]
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    random = np.random.default_rng(5)
    tensors = {n: t + random.normal(0, 0.3, t.shape).astype(np.float32) for n, t in trainer.model.adapter().items()}
    tensors["blocks.0.attn.qkv.lora_E"][[0, 4]] = 0
    trainer.model.load_adapter(tensors)
    write_adapter(tmp_path / "ours", adapter_of(experiment(method), base(), tensors, NAMES))
    opened(base(), tmp_path / "ours").save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    again = read_adapter(tmp_path / "theirs")
    assert (again.method.init_rank, again.method.targets) == (6, ("qkv", "proj", "fc2"))
    other = torch_ref.entry.build_trainer(experiment(again.method), CLASSES, base())
    other.model.load_adapter(again.tensors)
    pixels, _ = images(0)
    assert relative(other.model.logits(pixels), trainer.model.logits(pixels)) < LOGITS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["proj"]}, r"no AdaLoRA of a linear layer in a block: patch_embed\.proj\.lora_A"),
        ({"use_rslora": True}, "not supported: use_rslora: True"),
        ({"lora_alpha": 0}, "configuration is not understood"),
    ],
)
def test_more_than_adalora_on_the_blocks_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(timm_of(base()), peft_config(SCHEDULE, **changes))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    method = CASES["q and v"]
    trainer = torch_ref.entry.build_trainer(experiment(method), CLASSES, base())
    tensors = trainer.model.adapter()
    adapter = adapter_of(experiment(method), base(), tensors, NAMES)
    smaller = AdaLoRA(init_rank=2, target_rank=2, alpha=5, targets=("q", "v"))
    write_adapter(tmp_path / "a", Adapter(**{**vars(adapter), "method": smaller}))
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv has a lora_A \(6, 48\).*of rank 4"):
        read_adapter(tmp_path / "a")
