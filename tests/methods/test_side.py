"""LST against its paper's equations in NumPy; what its steps keep, and what it refuses."""

import numpy as np
import papers
import pytest
import torch  # noqa: F401 - before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative

# isort: split

import torch_ref.entry
from convert.base import load_base
from mlx_peft.checks import bench
from mlx_peft.config.methods import LST, Convpass
from mlx_peft.config.tokens import ToMe
from mlx_peft.core.errors import UserError
from torch_ref.measured import saved_bytes

ROUNDING = 2e-5
"""Of gradients between two ways to compute the same in float32, of their largest value."""

SHARE = 0.3
"""Of the bytes that LoRA's step keeps of activations: the most that a side network's may."""

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
MODELS = {
    "plain": {"args": SMALL},
    "registers and layer scale": {"args": SMALL | {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1}},
}
LADDER = {"name": "lst", "reduction": 4, "temperature": 0.3}


def pixels(trainer, images):
    preprocessing = trainer.model.base.preprocessing
    return (images / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)


def ladder(tensors, first):
    """Sung et al. 2022, sections 3.1 and 3.2, of a model of two blocks: the side network begins at ``first``."""
    state = None

    def block(number, of, x):
        nonlocal state
        if number == first:
            state = of.linear("side_first", x)
        x = papers.plain(number, of, x)
        if number < first:
            return x
        gate = 1 / (1 + np.exp(-of["side_gate"] / 0.3))
        state = gate * of.linear("side_down", x) + (1 - gate) * state
        state = papers.plain(number, papers.Layers(tensors, f"blocks.{number}.side_block."), state)
        return x + of.linear("side_up", of.norm("side_norm", state)) if number == 1 else x

    return block


@pytest.mark.parametrize("blocks", [None, [-1]], ids=["all blocks", "the last block"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_it_is_the_papers_equation(build, batch, away, model, blocks):
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build(LADDER | {"blocks": blocks}, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.2)
    trainer.model.load_adapter(tensors)
    every, images = weights | tensors, pixels(trainer, batch[0])
    expected = papers.logits(every, images, ladder(every, 0 if blocks is None else 1))
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
    assert relative(papers.logits(every, images, papers.plain), expected) > 1e-3, "the side network must matter"


def test_it_starts_as_the_bare_model(build, batch):
    bare, trainer = build({"name": "linear"}), build(LADDER)
    assert relative(trainer.model.logits(batch[0]), bare.model.logits(batch[0])) <= LOGITS
    tensors = trainer.model.adapter()
    drawn = np.concatenate([t.ravel() for n, t in tensors.items() if n.endswith("side_down.weight")])
    # 1,728 draws give the deviation to four standard errors of 1.7 per cent
    assert drawn.std() == pytest.approx(0.02, rel=0.07)
    zero = [t for n, t in tensors.items() if n.endswith(("side_gate", "side_up.weight", ".bias"))]
    assert not any(t.any() for t in zero)


def test_trained_parameters_are_the_closed_formula(build):
    """Of n blocks of a model of width d, and a side network of width w: its blocks, what reads, and what answers."""
    d, w, n = 48, 12, 3
    block, reads = 12 * w * w + 13 * w, w * d + w
    assert build(LADDER).model.parameters.adapter == n * (block + reads + 1) + reads + 2 * w + w * d + d


@pytest.mark.parametrize(
    "args",
    [{"init_values": 0.1}, {"family": "eva", "init_values": 0.1}, {"post_norm": True}],
    ids=["vit", "eva", "post"],
)
def test_checkpointing_gives_the_same_gradients(build, batch, away, args):
    model = {"args": SMALL | args}
    plain, recomputed = build(LADDER, model), build(LADDER, model, {"gradient_checkpointing": True})
    start, gradients = away(plain.model.adapter()), []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    assert all(gradients[0][name].any() for name in start if not name.endswith("qkv.bias"))
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= ROUNDING


def test_a_step_keeps_less_than_three_tenths_of_what_lora_keeps():
    """The bytes that torch's autograd keeps, as ``bench`` counts them, of a model's whole depth, width and images."""
    kept = {}
    for name in ("lora", "lst"):
        experiment = bench.experiment(bench.Settings(model="vit_tiny_patch16_224", batch_size=1), name)
        trainer = torch_ref.entry.build_trainer(experiment, 10, load_base(experiment.model, 10, 0))
        kept[name] = saved_bytes(trainer, np.zeros((1, 224, 224, 3), np.uint8), np.zeros(1, np.int32))
    assert 0 < kept["lst"] <= SHARE * kept["lora"]


def test_every_backend_trains_every_method_that_is_timed_and_other_libraries_lora_alone():
    settings = bench.Settings(methods=("lora", "lst"))
    timed = bench.entries(settings, ["mine.py"])
    assert {"lora@torch", "lora@mlx", "lst@torch", "lst@mlx", "lora@mine.py"} <= set(timed)
    assert not {"lst@peft", "lst@mine.py"} & set(timed)
    with pytest.raises(UserError, match="unknown method 'lsd'"):
        bench.run(bench.Settings(methods=("lsd",)))
    with pytest.raises(UserError, match="method qalora needs a quantised base"):
        bench.run(bench.Settings(methods=("qalora",)))


def test_it_refuses_a_model_with_fewer_tokens_blocks_without_the_last_and_widths_that_do_not_divide(build):
    with pytest.raises(UserError, match="method lst does not go with tome: its side network has all tokens"):
        LST().check_tokens(ToMe(r=2))
    with pytest.raises(UserError, match="method lst does not go with tome"):
        build(LADDER).model.network.reduce(ToMe(r=2))
    with pytest.raises(UserError, match="method convpass does not go with tome: its convolutions go over the whole"):
        Convpass().check_tokens(ToMe(r=2))
    with pytest.raises(UserError, match=r"method.blocks: the last block, 2, must be among them"):
        build(LADDER | {"blocks": "first 2"})
    with pytest.raises(UserError, match=r"method.reduction: 3 does not divide the width of the model's heads, 16"):
        build(LADDER | {"reduction": 3})


def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved):
    trainer = build(LADDER)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and "Hugging Face PEFT has no method 'lst'" in notes[0]
    assert again.method == LST(reduction=4, temperature=0.3)
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))
