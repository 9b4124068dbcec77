"""A batch whose rows have adapters of their own gives each row what its own adapter alone gives it."""

import numpy as np
import pytest
from comparing import relative
from method_models import GROUP, KINDS, SIDES, adapted, build, pixels

# isort: split
import mlx.core as mx

from mlx_peft.adaptation.rows import assignment
from mlx_peft.backend.methods import stacked
from mlx_peft.config.quantization import QAT
from mlx_peft.core.errors import UserError

MIXED = 2e-5
"""The same sums in another order: a few roundings of float32 (6e-8) in each layer, and some hundred in a model, whose
logits are differences of larger numbers."""

BFLOAT16 = 2**-8
"""One rounding: a layer's two products, and their sum, are rounded once each, wherever s is multiplied."""

SEVERAL = {
    "linear": [{}, {}],
    "lora": [
        {"rank": 2, "targets": "all-linear"},
        {"rank": 5, "alpha": 3, "targets": ["q", "v"], "rslora": True},
        {"rank": 3, "targets": ["qkv", "fc2"], "dora": True, "blocks": [1]},
        {"rank": 2, "targets": ["k", "proj"], "dora": True, "init": "pissa", "rank_pattern": {"proj": 4}},
        {"rank": 4, "targets": "mlp", "init": "pissa", "blocks": [0]},
    ],
    "adalora": [{"init_rank": 4, "target_rank": 2}, {"init_rank": 3, "target_rank": 2, "targets": ["q", "v", "fc1"]}],
    "vera": [{"rank": 4, "targets": "all-linear"}, {"rank": 7, "targets": ["q", "v"], "projection_key": 1}],
    "fact": [{"rank": 3, "scale": 0.5}, {"rank": 5, "blocks": [0]}],
    "ia3": [{}, {"targets": ["q", "proj", "fc1"], "feedforward": ["fc1"]}, {"targets": ["qkv"], "blocks": [1]}],
    "ssf": [{}, {"blocks": [1]}],
    "qalora": [{"rank": 3, "targets": "all-linear"}, {"rank": 5, "pool": "avg", "targets": ["k", "proj"]}],
}
"""For each method that mixes: adapters of other ranks, targets, blocks and scalings, which a batch mixes."""


def test_every_method_that_is_said_to_mix_is_mixed_here():
    assert SEVERAL.keys() == {name for name, kind in KINDS.items() if kind.unmixed is None}


@pytest.fixture(params=SIDES)
def side(request):
    return SIDES[request.param]()


def mix(side, bare, models) -> None:
    """Puts a stacked layer in the place of each that one of the models adapts; one method's on another's."""
    layers = [adapted(side, model) for model in models]
    for path in {path: None for own in layers for path in own}:
        for name in {model.method.name: None for model in models}:
            own = [found.get(path) if m.method.name == name else None for m, found in zip(models, layers, strict=True)]
            below = side.methods.targets.find(bare, path)
            side.methods.replace(bare, path, side.methods.METHODS[name].stack(below, own))


def check(side, bare, models) -> None:
    """Mixes the models' adapters in one, and compares each row with what the model of its own adapter gives alone."""
    count = len(models)
    rows = [*reversed(range(count)), None, 0, count - 1]
    images = pixels(len(rows))
    expected = [side.answers(bare if k is None else models[k], images[[i]])[0] for i, k in enumerate(rows)]
    mix(side, bare, models)
    found = side.answers(bare, images, assignment(rows, count))
    assert all(relative(a, b) <= MIXED for a, b in zip(found, expected, strict=True))
    if adapted(side, bare):  # as any other adapter would give it, a row is far off
        others = side.answers(bare, images, assignment([None if k == 0 else 0 for k in rows], count))
        assert min(relative(a, b) for a, b in zip(others, expected, strict=True)) > 100 * MIXED


@pytest.mark.parametrize("name", SEVERAL)
def test_each_row_is_answered_by_its_own_adapter(side, name):
    bits = 4 if KINDS[name].over_codes else None
    check(side, build(side, bits=bits), [build(side, name, bits, seed, **o) for seed, o in enumerate(SEVERAL[name])])


def test_over_a_quantised_base_likewise(side):
    check(
        side,
        build(side, bits=4),
        [build(side, "lora", 4, seed, **options) for seed, options in enumerate(SEVERAL["lora"])],
    )


def test_attention_pooling_whose_query_all_images_share_likewise(side):
    pooled = {"class_token": False, "global_pool": "map"}
    check(side, build(side, args=pooled), [build(side, "ssf", seed=seed, args=pooled) for seed in range(2)])


def test_adapters_of_several_methods_at_one_layer(side):
    methods = ("ia3", "lora", "vera", "ssf", "lora", "fact", "adalora")
    check(side, build(side), [build(side, name, seed=seed, **SEVERAL[name][0]) for seed, name in enumerate(methods)])


def test_a_row_without_an_adapter_and_a_batch_without_an_assignment_see_the_layer_as_it_is(side):
    bare, images = build(side), pixels(2)
    expected = side.answers(bare, images)
    mix(side, bare, [build(side, "lora", **SEVERAL["lora"][2]), build(side, "ia3")])
    assert np.array_equal(side.answers(bare, images), expected)
    assert relative(side.answers(bare, images, assignment([None, None], 2)), expected) <= MIXED


def test_in_half_precision_what_is_stacked_stays_float32_and_the_sums_are_the_layers_own(side):
    model = build(side, "lora", rank=3, targets=["qkv"])
    layer = adapted(side, model)["blocks.0.attn.qkv"]
    stack = side.methods.METHODS["lora"].stack(layer.base_layer, [None, layer])
    x = side.half(pixels(2).reshape(2, -1, 64))
    with side.stacked.assigned(side.array(assignment([1, 1], 2))):
        found = stack(x)
    assert found.dtype == x.dtype and relative(side.floats(found), side.floats(layer(x))) <= 2 * BFLOAT16


def test_nothing_of_it_is_trained_and_it_has_no_more_than_one_more_of_each(side):
    layers = [adapted(side, build(side, "lora", rank=rank, targets=["fc1"]))["blocks.1.mlp.fc1"] for rank in (2, 5)]
    stack = side.methods.METHODS["lora"].stack(layers[0].base_layer, layers)
    assert not side.trained(stack)
    assert [tuple(array.shape) for array in (stack.A, stack.B)] == [(3, 64, 5), (3, 5, 256)]
    assert stack.into is stack.gain is stack.shift is None


def test_another_assignment_compiles_nothing(compiled):
    side = SIDES["mlx"]()
    bare, traced = build(side), []
    mix(side, bare, [build(side, "lora", rank=rank) for rank in (1, 2)])

    @mx.compile
    def mixed(x, rows):
        traced.append(rows)
        with stacked.assigned(rows):
            return bare(x)

    first, second = (np.array(mixed(mx.array(pixels(2)), mx.array(assignment(rows, 2)))) for rows in ([0, 1], [1, 1]))
    assert len(traced) == 1 and not np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.unmixed is not None])
def test_a_method_that_a_batch_cannot_mix_is_refused_by_name_with_the_reason(side, name):
    reason = rf"method {name}: a batch cannot mix its adapters: {KINDS[name].unmixed}"
    with pytest.raises(UserError, match=reason):
        side.methods.METHODS[name].stack(build(side).blocks[0], [None])


def test_what_is_trained_through_codes_is_refused(side):
    layer = adapted(side, build(side, "lora", qat=QAT(bits=4, group_size=GROUP)))["blocks.0.attn.qkv"]
    with pytest.raises(UserError, match="through codes"):
        side.methods.METHODS["lora"].stack(layer.base_layer, [layer])


@pytest.mark.parametrize("row", [2, -1])
def test_a_number_that_no_adapter_has_is_refused_on_the_host(row):
    assert assignment([1, None, 0], 2).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=rf"no adapter {row} among 2"):
        assignment([0, row], 2)


def test_as_many_rows_have_an_adapter_as_the_batch_has(side):
    bare = build(side)
    mix(side, bare, [build(side, "lora", rank=1)])
    with pytest.raises(ValueError, match="an adapter each for 2 rows, and the layer's input has 3"):
        side.answers(bare, pixels(3), assignment([0, 0], 1))
