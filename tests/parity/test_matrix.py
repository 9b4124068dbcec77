"""The parity matrix: what ``mlx-peft parity`` prints, each cell a test.

A cell is compared with MLX's operations one by one: ``test_compiled.py`` has the ways in which a step is compiled. The
whole matrix, which is slow, is compiled.
"""

from dataclasses import replace

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

from mlx_peft.checks import matrix, parity
from mlx_peft.checks.matrix import Combination
from mlx_peft.config.methods import Method

NARROW = {"patch_size": 8, "embed_dim": 128, "num_heads": 4}
"""What the small model is cut to in the quick cells, besides its depth: two groups of codes wide, sixteen patches."""

TINY = {"embed_dim": 192, "num_heads": 3}
"""The width of every model in the quick cells, that of ViT-Tiny: heads of 64 inputs, as all of them have."""
SIDE = 112
"""Its images there. The slow cells have each model as wide, and its images as large, as ``matrix.MODELS`` says."""

FEW = 3
"""Steps of a quick cell's trajectory; the slow ones have all."""

ADALORA = {"t_init": 3, "t_final": 3, "delta_t": 2}
FEW_OF_ADALORA = 12
"""Which goes through all of its phases: three steps before ranks are dealt out, six in which they are, three after."""

COMPILED = ("lora", pytest.param("adalora", marks=pytest.mark.slow))
"""A step that is compiled as one, and one that hands out scores besides: ``test_compiled.py`` has both every day."""

ROTARY = ("vit_small_patch16_dinov3", "eva02_tiny_patch14_224")
TURNED = {
    "adalora": ("adalora", None, None),
    "vpt-deep": ("vpt-deep", None, None),
    "qalora": ("qalora", 4, None),
    "tome": ("lora", None, {"name": "tome", "r": 3}),
}
"""Rows, bits of the base and reducers under which the models with rotary positions are compared."""

BEIT = "beit_base_patch16_224"
SCORED = {
    "adalora": ("adalora", None, None),
    "vpt-deep": ("vpt-deep", None, None),
    "full": ("full", None, None),
    "tome": ("full", None, {"name": "tome", "r": 3}),
}
"""The same for the model whose positions are added to scores: its tables are zero at first, and full moves them."""

FULLY = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_dinov2")
"""Models that go through a trajectory under every method."""

SMALL = {"image_size": 32, "args": {"depth": 3, **NARROW}}


def check(compared, steps=True):
    (cell,) = parity.cells([compared], steps=steps)
    assert cell.logits <= parity.LOGITS
    assert cell.merged is None or cell.merged <= parity.LOGITS
    assert cell.loss <= parity.LOGITS
    assert cell.gradients <= parity.GRADIENTS, cell.worst
    assert (cell.trajectory is not None) == (steps and compared.steps > 0)
    assert cell.trajectory is None or cell.trajectory <= parity.TRAJECTORY
    assert not cell.masks
    return cell


@pytest.fixture
def few_steps(monkeypatch):
    row = matrix.METHODS["adalora"]
    monkeypatch.setattr(matrix, "STEPS", FEW)
    monkeypatch.setitem(matrix.METHODS, "adalora", row._replace(options=row.options | ADALORA, steps=FEW_OF_ADALORA))


@pytest.mark.parametrize("compared", matrix.each_once(), ids=lambda compared: compared.method)
def test_backends_agree_under_every_method(compared, few_steps):
    """What ``mlx-peft parity`` without more compares, on a narrower model."""
    check(replace(compared, cut=SMALL))


@pytest.mark.parametrize("compared", matrix.combinations(matrix.MODELS, ["lora"]), ids=lambda compared: compared.model)
def test_backends_agree_on_every_model(compared):
    """Two narrow blocks of each. Whole models, and their steps, which take longest, are in the matrix below."""
    check(replace(compared, cut={"image_size": SIDE, "args": {"depth": 2, **TINY}}), steps=False)


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize("model", ROTARY)
def test_backends_agree_where_queries_and_keys_are_turned(model, name, few_steps):
    method, bits, tokens = TURNED[name]
    cut = {"image_size": 32, "args": {"depth": 2, "mlp_ratio": 4.0, **NARROW}}
    check(Combination(model, method, bits, cut, tokens), steps=bits is None)


@pytest.mark.parametrize("name", SCORED)
def test_backends_agree_where_positions_are_added_to_scores(name, few_steps):
    method, bits, tokens = SCORED[name]
    check(Combination(BEIT, method, bits, {"image_size": 32, "args": {"depth": 2, **NARROW}}, tokens))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["qalora", "tome"])
@pytest.mark.parametrize("model", ROTARY)
def test_backends_agree_on_whole_models_where_queries_and_keys_are_turned(model, name):
    method, bits, tokens = TURNED[name]
    check(Combination(model, method, bits, matrix.MODELS[model], tokens), steps=False)


@pytest.mark.parametrize("method", COMPILED)
def test_backends_agree_when_mlx_compiles(method, compiled, few_steps):
    (compared,) = matrix.each_once(method=method)
    check(replace(compared, cut=SMALL))


@pytest.mark.parametrize("bits", matrix.BITS)
@pytest.mark.parametrize("method", [name for name in matrix.QUANTIZED_METHODS if name != "lora-loftq"])  # above
def test_backends_agree_over_quantised_bases(method, bits, few_steps):
    check(Combination(matrix.SMALL, method, bits, {"image_size": 32, "args": {"depth": 2, **NARROW}}))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("compared", matrix.whole(), ids=lambda c: f"{c.model}-{c.method}-{c.bits or 32}")
def test_backends_agree_in_the_whole_matrix(compared):
    """As ``mlx-peft parity --all``. Steps over codes are compared on the small model, above."""
    check(compared, steps=compared.bits is None and compared.model in FULLY)


def test_every_method_has_a_row():
    every = {kind.model_fields["name"].default for kind in Method.__origin__.__args__}
    assert {row.partition("-")[0] for row in matrix.METHODS} == every


def test_the_whole_matrix_has_every_method_on_every_model_and_the_small_one_every_method_once():
    whole = {(c.model, c.method, c.bits) for c in matrix.whole()}
    plain = {(model, method, None) for model in matrix.MODELS for method in matrix.PLAIN_METHODS}
    over_codes = {
        (model, method, bits)
        for model in matrix.QUANTIZED_MODELS
        for method in matrix.QUANTIZED_METHODS
        for bits in matrix.BITS
    }
    assert whole == plain | over_codes
    assert [c.method for c in matrix.each_once()] == [*matrix.METHODS]
    assert {(c.model, *c.cut) for c in matrix.each_once()} == {(matrix.SMALL, *matrix.CUT)}


@pytest.mark.parametrize("choose", [matrix.whole, matrix.each_once])
def test_names_select_of_a_matrix(choose):
    assert {c.method for c in choose(method="vera")} == {"vera"}
    assert {c.model for c in choose(model="vit_small_patch14_dinov2")} == {"vit_small_patch14_dinov2"}
    assert {(c.method, c.bits) for c in choose(bits=3)} == {(method, 3) for method in matrix.QUANTIZED_METHODS}


def test_only_what_cannot_be_merged_has_no_merged_logits():
    cells = parity.cells([Combination(matrix.SMALL, method, cut=SMALL) for method in ("vpt", "ia3")], steps=False)
    assert [cell.merged is None for cell in cells] == [True, False]
