"""A loop that is written by hand: the trainer's steps, torch's AdamW, and the same losses in both backends."""

from __future__ import annotations

import mlx.nn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparing import relative
from library.conftest import CLASSES, MODULES, create

# isort: split
import mlx.core as mx

from convert.base import load_base
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_backend

SAME = 1e-6
"""Relative, float32: the same operations in another order, over a few steps."""
BACKENDS = 1e-4
"""Of a loss: what the backends' roundings have grown to after a few steps at a high rate."""
STEPS, LR = 5, 1e-2
CHANGED = r"made before add_adapter or remove_adapter .*: make it after add_adapter"
APPLIED = {
    MODULES["mlx"]: lambda model, optimizer: optimizer.update(model, model.trainable_parameters()),
    MODULES["torch"]: lambda model, optimizer: optimizer.step(),
}
"""How an optimiser of the framework's kind is used in a loop that has its own gradients."""
METHODS = [
    ("lora", {"rank": 4, "lora_plus": 4.0, "dropout": 0.1}),
    ("adalora", {"init_rank": 4, "target_rank": 2}),
    ("full", {}),
]


def losses(mp, images, labels, method="lora", steps=STEPS, **options):
    model = create(mp)
    mp.add_adapter(model, method, **options)
    step = mp.training_step(model, mp.optimizer(model, lr=LR))
    return [step(images, labels) for _ in range(steps)], model


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_step_is_the_trainers(mp, images, labels, method, options):
    found, model = losses(mp, images, labels, method, **options)
    experiment = Experiment.model_validate({
        "model": model.description.model_dump(),
        "method": {"name": method, **options},
        "data": {"name": "folder", "batch_size": len(images)},
    })  # fmt: skip
    backend = load_backend({module: name for name, module in MODULES.items()}[mp])
    trainer = backend.build_trainer(experiment, len(CLASSES), load_base(experiment.model, len(CLASSES), 0))
    theirs = [float(trainer.train_step(images, labels.astype(np.int32), LR)) for _ in range(STEPS)]
    assert found == pytest.approx(theirs, rel=SAME)
    assert found[-1] < found[0]


def test_the_import_alone_changes_the_backend(images, labels):
    ours, theirs = (losses(mp, images, labels, rank=4)[0] for mp in MODULES.values())
    assert ours == pytest.approx(theirs, rel=BACKENDS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_smoothed_as_torch_does(mp, images, labels, smoothing):
    model = create(mp)
    mp.add_adapter(model, "linear")
    logits = torch.tensor(model.logits(images))
    loss = mp.training_step(model, mp.optimizer(model), label_smoothing=smoothing)(images, labels)
    assert loss == pytest.approx(float(F.cross_entropy(logits, torch.tensor(labels), label_smoothing=smoothing)))


def plain_mlx(model, mp, images, labels, lrs):
    """As MLX's own documentation writes a loop."""
    optimizer = mp.optimizer(model, lr=LR)
    loss = mlx.nn.value_and_grad(model, lambda x, y: mlx.nn.losses.cross_entropy(model(x), y, reduction="mean"))
    found = []
    for lr in lrs:
        optimizer.learning_rate = lr
        value, gradients = loss(mp.prepare(model, images), mx.array(labels))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        found.append(float(value))
    return found


def plain_torch(model, mp, images, labels, lrs):
    """As PyTorch's own documentation writes a loop."""
    optimizer = mp.optimizer(model, lr=LR)
    found = []
    for lr in lrs:
        optimizer.lr = lr
        optimizer.zero_grad()
        loss = F.cross_entropy(model(mp.prepare(model, images)), torch.tensor(labels))
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def torchs_own(model, mp, images, labels, lrs):
    """The same with torch's AdamW, its groups written out: matrices decay, vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    found = []
    for lr in lrs:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = F.cross_entropy(model(mp.prepare(model, images)), torch.tensor(labels))
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_plain_loops_are_torchs_adamw_in_both_backends(images, labels):
    """The rate falls on the way; MLX's own AdamW is far off after one step."""
    lrs = [LR, LR, LR / 2, LR / 10, LR / 100]
    found = {}
    for name, mp, loop in (
        ("mlx", MODULES["mlx"], plain_mlx),
        ("torch", MODULES["torch"], plain_torch),
        ("torch's own", MODULES["torch"], torchs_own),
    ):
        model = create(mp)
        mp.add_adapter(model, "lora", rank=4)
        found[name] = loop(model, mp, images, labels, lrs), mp.state_dict(model)
    reference, parameters = found["torch's own"]
    assert found["torch"][0] == pytest.approx(reference, rel=SAME)
    assert found["mlx"][0] == pytest.approx(reference, rel=BACKENDS)
    for name in ("mlx", "torch"):
        assert all(relative(found[name][1][key], parameters[key]) <= BACKENDS for key in parameters), name


def test_mlxs_own_optimiser_is_another_one(images, labels):
    """Why there is one of ours: without the correction the first step is some three times as long."""
    mp, (_, after) = MODULES["mlx"], losses(MODULES["mlx"], images, labels, "linear", steps=1)
    model = create(mp)
    mp.add_adapter(model, "linear")
    before = mp.state_dict(model)["head.weight"]
    loss = mlx.nn.value_and_grad(model, lambda x, y: mlx.nn.losses.cross_entropy(model(x), y, reduction="mean"))
    _, gradients = loss(mp.prepare(model, images), mx.array(labels))
    mlx.optimizers.AdamW(LR, weight_decay=0.0).update(model, gradients)
    moved = [abs(mp.state_dict(one)["head.weight"] - before).max() for one in (model, after)]
    assert moved[0] > 3 * moved[1]


def test_lora_plus_and_a_new_rate_reach_their_groups(mp):
    model = create(mp)
    mp.add_adapter(model, "lora", rank=4, lora_plus=16)
    optimizer = mp.optimizer(model, lr=1e-3)
    assert optimizer.lr == pytest.approx(1e-3)
    optimizer.lr = 1e-4
    assert optimizer.lr == pytest.approx(1e-4)


def test_several_labels_are_trained_with_their_own_loss(mp, images):
    model = create(mp, multi_label=True)
    mp.add_adapter(model, "linear")
    answers = np.eye(len(CLASSES), dtype=int)[np.arange(len(images)) % len(CLASSES)]
    logits = torch.tensor(model.logits(images))
    loss = mp.training_step(model, mp.optimizer(model))(images, answers)
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor(answers).float())
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_an_optimiser_made_before_the_adapter_is_refused(mp, images, labels):
    model = create(mp)
    step = mp.training_step(model, mp.optimizer(model))
    mp.add_adapter(model, "lora")
    with pytest.raises(UserError, match=CHANGED):
        step(images, labels)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_optimiser_of_an_adapter_that_was_taken_out_is_refused(mp, images, labels, method):
    """The names are those of before, and the tensors are not."""
    model = create(mp)
    mp.add_adapter(model, method)
    optimizer = mp.optimizer(model)
    step = mp.training_step(model, optimizer)
    step(images, labels)
    mp.remove_adapter(model)
    with pytest.raises(UserError, match=CHANGED):
        step(images, labels)
    mp.add_adapter(model, method, seed=1)
    before = mp.state_dict(model)
    with pytest.raises(UserError, match=CHANGED):
        step(images, labels)
    with pytest.raises(UserError, match=CHANGED):
        APPLIED[mp](model, optimizer)
    after = mp.state_dict(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    mp.training_step(model, mp.optimizer(model))(images, labels)


def test_an_optimiser_of_another_model_is_refused(mp, images, labels):
    one, other = create(mp), create(mp)
    for model in (one, other):
        mp.add_adapter(model, "lora")
    with pytest.raises(UserError, match="the optimiser is that of another model"):
        mp.training_step(one, mp.optimizer(other))(images, labels)


def test_an_adapter_that_is_put_back_after_merging_is_trained_on(mp, images, labels):
    model = create(mp)
    mp.add_adapter(model, "lora")
    step = mp.training_step(model, mp.optimizer(model, lr=LR))
    first = step(images, labels)
    replaced = mp.merge(model)
    with pytest.raises(UserError, match="the method is merged into the model: unmerge it"):
        step(images, labels)
    mp.unmerge(model, replaced)
    assert step(images, labels) < first


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 1, 2], "8 images and 3 labels"),
        ([0.0] * 8, "not one whole number an image"),
        ([4] * 8, "labels 4 to 4, not 0 to 3"),
    ],
)
def test_labels_that_are_none_are_refused(mp, images, wrong, message):
    model = create(mp)
    with pytest.raises(UserError, match=message):
        mp.training_step(model, mp.optimizer(model))(images, wrong)


def test_a_rate_out_of_range_is_one_sentence(mp):
    with pytest.raises(UserError, match=r"^AdamW: lr: .* not -1"):
        mp.optimizer(create(mp), lr=-1)


def test_a_frozen_block_needs_no_gap_in_the_lists(mp, images, labels):
    model = create(mp)
    mp.add_adapter(model, "lora", rank=2, blocks="last 1")
    step = mp.training_step(model, mp.optimizer(model, lr=LR))
    assert step(images, labels) > step(images, labels)
