"""What a method's class says of it without a framework is what its object does to a model, in both backends."""

import re

import numpy as np
import pytest
from comparing import relative
from method_models import GROUP, KINDS, SIDES, adapted, build, pixels

from mlx_peft.config.methods.base import Blockwise
from mlx_peft.config.methods.inits import INITS
from mlx_peft.config.methods.selective import Selective
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head, last
from mlx_peft.vit.shapes import shapes

MERGED = 1e-5
"""A merged weight is rounded once more to float32 (6e-8) in each layer, and some hundred times in a model."""

EVERYTHING = {
    "lora": {"rank": 3, "targets": ["q", "v", "fc2"], "dora": True, "init": "pissa"},
    "qalora": {"rank": 3},
    "adalora": {"init_rank": 4, "target_rank": 2, "targets": ["q", "v", "fc1"]},
    "vera": {"rank": 6, "targets": ["q", "v", "fc1"]},
    "fact": {"rank": 3},
    "adaptformer": {"bottleneck": 6},
    "adapter_plus": {"bottleneck": 6},
    "houlsby": {"bottleneck": 6},
    "repadapter": {"bottleneck": 6},
    "convpass": {"bottleneck": 6},
    "vpt": {"tokens": 4, "deep": True},
    "lst": {"reduction": 4},
    "oft": {"block_size": 16},
    "boft": {"block_size": 8, "factors": 2},
    "road": {"group_size": 16, "targets": ["q", "v", "fc1"]},
    "loha": {"rank": 3, "targets": ["q", "v", "fc1"]},
    "lokr": {"rank": 3},
    "miss": {"rank": 16, "targets": ["q", "v", "fc1"]},
    "randlora": {"rank": 16},
    "pvera": {"rank": 6, "targets": ["q", "v", "fc1"]},
}
"""Options with which a method has all tensors that it ever has."""

OVER_CODES = [name for name, kind in KINDS.items() if kind.over_codes]
FOLDS = [name for name, kind in KINDS.items() if kind.unmerged is None]
ADDS = [name for name, kind in KINDS.items() if issubclass(kind, Blockwise) and not issubclass(kind, Selective)]
STAYS = [name for name, kind in KINDS.items() if kind.unmerged is not None]


@pytest.fixture(params=SIDES)
def side(request):
    return SIDES[request.param]()


def built(side, name: str, **more):
    return build(side, name, bits=4 if name in OVER_CODES else None, **EVERYTHING.get(name, {}), **more)


def experiment(method, qat: QAT | None = None) -> Experiment:
    return Experiment.model_validate(
        {
            "model": {"name": "vit_tiny_patch16_224", "weights": "none"},
            "method": method.model_dump(),
            "qat": qat and qat.model_dump(),
            "data": {"name": "digits"},
            "train": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.5}, "clip_norm": None},
        }
    )


def test_each_configuration_has_its_own_object(side):
    assert {name: method.kind for name, method in side.methods.METHODS.items()} == KINDS
    assert all(name == method.name for name, method in side.methods.METHODS.items())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", KINDS)
def test_what_it_puts_in_place_can_be_taken_out(side, name):
    bare, model = build(side, bits=4 if name in OVER_CODES else None), built(side, name)
    assert model.method.name == name
    layers = adapted(side, model)
    assert {path: type(side.methods.targets.find(bare, path)) for path in layers} == {
        path: type(layer.base_layer) for path, layer in layers.items()
    }
    side.methods.remove(model)
    assert model.method is None and not adapted(side, model)
    assert side.all(model).keys() == side.all(bare).keys()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", KINDS)
def test_a_second_method_is_refused(side, name):
    model = built(side, name)
    with pytest.raises(UserError, match=f"has the method '{name}' already"):
        side.methods.apply(model, KINDS["linear"](), 0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", KINDS)
def test_what_it_keeps_is_what_of_an_adapter_is_frozen(side, name):
    model = built(side, name)
    stored, trained = side.parameters.stored(model), side.trained(model)
    assert {n for n in stored if n not in trained} == {n for n in stored if model.method.keeps(n)}
    another = {f"{init}_{factor}" for init in INITS for factor in "AB" if init != EVERYTHING.get(name, {}).get("init")}
    assert {last(n) for n in stored if n not in trained} == set(KINDS[name].kept) - another  # one start is kept
    added = model.method.added(model.architecture, model.quantization)
    assert {n for n in stored if n not in shapes(model.architecture, 1)} == added.keys()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_said_to_decay_is_what_the_optimiser_makes_smaller(side, name):
    model = built(side, name)
    config = experiment(model.method)
    before = {n: side.copied(p) for n, p in side.trained(model).items()}
    after = {n: side.copied(p) for n, p in side.stepped(model, config).items()}
    smaller = {n for n in before if not np.array_equal(before[n], after[n])}
    said = {n for n in before if config.rates.decays(n, before[n].ndim) and before[n].any()}
    assert smaller == said
    plain = shapes(model.architecture, 1)
    spared = {n for n, p in before.items() if p.ndim > 1 and n not in plain and n not in said and p.any()}
    assert {last(n) for n in spared} == set(KINDS[name].undecayed)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", FOLDS)
def test_what_is_said_to_merge_becomes_plain_layers_with_the_same_logits(side, name):
    model, images = built(side, name), pixels(2)
    before, own = side.answers(model, images), side.all(model).keys()
    replaced = side.methods.merge(model)
    assert not adapted(side, model)
    assert side.all(model).keys() == side.all(build(side, bits=4 if name in OVER_CODES else None)).keys()
    assert relative(side.answers(model, images), before) <= MERGED
    side.methods.unmerge(model, replaced)
    assert side.all(model).keys() == own and np.array_equal(side.answers(model, images), before)


@pytest.mark.parametrize("name", STAYS)
def test_what_is_said_not_to_merge_is_refused_by_name_with_the_reason_and_left_as_it_was(side, name):
    model, images = built(side, name), pixels(2)
    before, layers = side.answers(model, images), adapted(side, model)
    with pytest.raises(UserError, match=re.escape(f"method {name} cannot be merged: {KINDS[name].unmerged}")):
        side.methods.merge(model)
    assert adapted(side, model) == layers and np.array_equal(side.answers(model, images), before)


@pytest.mark.parametrize("name", [name for name in ADDS if name in FOLDS and name not in OVER_CODES])
def test_what_is_not_said_to_merge_into_codes_is_refused_over_them(side, name):
    model = build(side, name, bits=4, **EVERYTHING.get(name, {}))
    with pytest.raises(UserError, match="is quantised"):
        side.methods.merge(model)


@pytest.mark.parametrize(
    ("name", "given", "dequantize", "failing"),
    [
        ("lora", {"rank": 3, "targets": "all-linear"}, False, "adapted"),
        ("lora", {"rank": 3, "targets": "all-linear", "bits": 4}, True, "adapted"),
        ("full", {"qat": QAT(bits=4, group_size=GROUP)}, True, "rounded"),
        ("linear", {"bits": 4}, True, "quantised"),
    ],
    ids=["adapted", "adapted over codes", "rounded", "quantised"],
)
def test_a_merge_that_fails_midway_changes_nothing(side, monkeypatch, name, given, dequantize, failing):
    model, images = build(side, name, **given), pixels(2)
    before, layers = side.answers(model, images), list(model.named_modules())
    function, calls = "dequantized" if failing == "quantised" else "merged", []
    kind = next(kind for kind in type(model.blocks[0].attn.qkv).__mro__ if function in vars(kind))
    real = getattr(kind, function)

    def failing_at_the_second(self):
        calls.append(self)
        if len(calls) == 2:
            raise MemoryError
        return real(self)

    monkeypatch.setattr(kind, function, failing_at_the_second)
    with pytest.raises(MemoryError):
        side.methods.merge(model, dequantize)
    assert len(calls) == 2
    assert all(mine is its for (_, mine), (_, its) in zip(layers, model.named_modules(), strict=True))
    assert np.array_equal(side.answers(model, images), before)


@pytest.mark.parametrize("name", OVER_CODES)
def test_what_is_over_codes_needs_them_and_merges_into_them(side, name):
    with pytest.raises(UserError, match="needs a quantised base"):
        build(side, name)
    model = built(side, name)
    side.methods.merge(model)
    assert isinstance(model.blocks[0].attn.qkv, side.Quantized)


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_rounded_as_they_are_trained_where_that_is_said(side, name):
    qat = QAT(bits=4, group_size=GROUP, scales="learned")
    options = {**EVERYTHING.get(name, {}), **({"dora": False} if name == "lora" else {})}
    if not KINDS[name].rounds:
        with pytest.raises(UserError, match=rf"qat: method {name} trains no weight|{name} needs a quantised base"):
            build(side, name, qat=qat, **options)
        return
    model = build(side, name, qat=qat, **options)
    assert np.isfinite(side.answers(model, pixels(2))).all()
    scales = {n: p for n, p in side.trained(model).items() if n.endswith("lsq_scale")}
    config = experiment(model.method, qat)
    assert len(scales) == 8 and not any(config.rates.decays(n, p.ndim) for n, p in scales.items())


def test_a_method_that_rounds_nothing_names_those_that_do(side):
    with pytest.raises(UserError) as caught:
        build(side, "bitfit", qat=QAT(bits=4, group_size=GROUP))
    named = str(caught.value).partition(";")[2].partition(" do.")[0]
    assert set(re.findall(r"\w+", named)) - {"and"} == {name for name, kind in KINDS.items() if kind.rounds}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", KINDS)
def test_a_penalty_is_a_number_and_what_is_averaged_is_trained(side, name):
    model = built(side, name)
    penalty, importance = (ask(model, model.method) for ask in (side.methods.penalty, side.methods.importance))
    if importance is None:
        assert penalty == 0.0
        assert side.methods.scores(model, model.method, {}) == {} == side.methods.masks(model, model.method, {})
        return
    assert float(side.floats(penalty)) > 0
    trained = side.trained(model)
    assert set(importance.names) == {n for n in trained if not is_head(n)}
    scores = side.methods.scores(model, model.method, {n: trained[n] for n in importance.names})
    masks = side.methods.masks(model, model.method, {adapter: [True] * len(s) for adapter, s in scores.items()})
    assert masks.keys() <= set(importance.names) and all(mask.all() for mask in masks.values())
