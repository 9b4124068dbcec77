"""Where PEFT combines adapters itself, the tensors are PEFT's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from banks import adapter, base_of
from peft.utils import merge_utils
from peft_reference import PREFIX, timm_of

from convert.adapters.peft import write_adapter
from mlx_peft.adaptation.combining import Part, combine
from mlx_peft.config.combination import WAYS, Combination
from mlx_peft.config.methods import IA3, LoRA, MethodConfig

PAIRS: dict[str, list[MethodConfig]] = {
    "of one rank": [LoRA(rank=4, alpha=3), LoRA(rank=4, alpha=16, rslora=True)],
    "of parts of qkv": [LoRA(rank=4, targets=("q", "v")), LoRA(rank=8, alpha=5, targets=("qkv",))],
    "of other layers": [LoRA(rank=3, targets=("qkv", "fc2")), LoRA(rank=3, targets=("proj", "fc2"))],
    "of pissa": [LoRA(rank=4, targets=("proj",), init="pissa"), LoRA(rank=8, targets=("proj",))],
    "of all layers": [LoRA(rank=2, targets=("all-linear",))] * 3,
}
OTHER_RANKS = [LoRA(rank=5, targets=("qkv", "fc1")), LoRA(rank=3, alpha=8, rslora=True, targets=("fc1",))]
WEIGHTS = [0.7, -0.3, 1.25]
DENSITY = 0.4
ONE_TO_ONE = [way for way in WAYS if way != "cat" and not way.endswith("svd")]

SVD = 5e-6
"""Of products and singular values, over the largest of these: PEFT's are of float32, ours of float64."""

ULP = 1.2e-7
"""Of sums around 1: PEFT adds factors, and we what they are beyond 1."""


@pytest.fixture(scope="module")
def plain():
    """timm's model, the base of all."""
    return base_of()


def lent(plain, methods, folder: Path) -> peft.PeftModel:
    """PEFT's model with adapters of these methods, called 0, 1 and so on: without heads, which PEFT cannot combine."""
    model = None
    for number, one in enumerate(adapters(plain, methods)):
        place = folder / str(number)
        write_adapter(place, one)
        config = place / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": None}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heads that are in the file
            if model is None:
                model = peft.PeftModel.from_pretrained(timm_of(plain), str(place), adapter_name="0")
            else:
                model.load_adapter(str(place), adapter_name=str(number))
    return model


def adapters(plain, methods):
    return [adapter(plain, method, number, classes=5) for number, method in enumerate(methods)]


def theirs(model: peft.PeftModel, count: int, weights=WEIGHTS, **options) -> dict[str, np.ndarray]:
    """What PEFT makes of all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(list(map(str, range(count))), weights[:count], "all", **options)
    found = {name: p.detach().numpy().copy() for name, p in model.named_parameters() if ".all" in name}
    model.delete_adapter("all")
    return {name.removeprefix(PREFIX).replace(".all.weight", "").replace(".all", ""): t for name, t in found.items()}


def ours(plain, methods, way: Combination, weights=WEIGHTS):
    parts = [
        Part(str(i), one.method, one.tensors, weight)
        for i, (one, weight) in enumerate(zip(adapters(plain, methods), weights, strict=False))
    ]
    return combine(parts, way, plain.architecture, None, lambda: plain.tensors)


def without_zeros(found, expected):
    """A layer of ours that PEFT has not is there to make the layers the same in all blocks, and changes nothing."""
    for name in found.keys() - expected.keys():
        assert not found[name].any(), name
    assert expected.keys() <= found.keys()
    return {name: found[name] for name in expected}


@pytest.fixture
def same_draws(monkeypatch):
    """PEFT draws what is kept from torch's stream, and we from one of each tensor's own: both are given the same."""
    coins = np.random.default_rng(0).random(2**21, np.float32)

    def bernoulli(probabilities):
        return torch.from_numpy((coins[: probabilities.numel()] < DENSITY).astype(np.float32)).reshape(
            probabilities.shape
        )

    class Coins:
        def random(self, shape, dtype):
            return coins[: int(np.prod(shape))].reshape(shape)

    monkeypatch.setattr(merge_utils.torch, "bernoulli", bernoulli)
    monkeypatch.setattr("mlx_peft.adaptation.combining.low_rank.numbered", lambda *_: lambda number: Coins())


@pytest.mark.parametrize("pair", PAIRS)
def test_every_way_of_peft_gives_its_tensors(plain, pair, tmp_path, same_draws):
    """Bit for bit; by svd up to the sign of each triplet, which nothing decides."""
    methods = PAIRS[pair]
    model = lent(plain, methods, tmp_path)
    for how in WAYS:
        pruned = Combination.model_construct(how=how).rule.keeps is not None
        expected = theirs(model, len(methods), combination_type=how, density=DENSITY if pruned else None)
        _, found = ours(plain, methods, Combination(how=how, density=DENSITY if pruned else None))
        _must_be_alike(without_zeros(found, expected), expected, exactly=not how.endswith("svd"), what=how)


def _must_be_alike(found, expected, *, exactly: bool, what: str) -> None:
    for name in (name for name in expected if name.endswith("lora_A")):
        A, B, other_A, other_B = (
            side[key] for side in (found, expected) for key in (name, name.replace("lora_A", "lora_B"))
        )
        if exactly:
            np.testing.assert_array_equal(A, other_A, err_msg=f"{what} {name}")
            np.testing.assert_array_equal(B, other_B, err_msg=f"{what} {name}")
        else:
            assert A.shape == other_A.shape and B.shape == other_B.shape
            values, others = np.linalg.norm(B, axis=0), np.linalg.norm(other_B, axis=0)
            np.testing.assert_allclose(B @ A, other_B @ other_A, atol=SVD * others[0], err_msg=f"{what} {name}")
            np.testing.assert_allclose(values, others, atol=SVD * others[0])


@pytest.mark.parametrize("how", [way for way in WAYS if way not in ONE_TO_ONE])
def test_other_ranks_are_filled_up_as_peft_fills_them_up(plain, how, tmp_path, same_draws):
    model = lent(plain, OTHER_RANKS, tmp_path)
    density = DENSITY if how.count("_") else None
    expected = theirs(model, 2, combination_type=how, density=density)
    method, found = ours(plain, OTHER_RANKS, Combination(how=how, density=density))
    assert method.rank == (8 if how == "cat" else 5)
    _must_be_alike(without_zeros(found, expected), expected, exactly=how == "cat", what=how)


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_signs_are_elected_as_peft_elects_them(plain, sign, tmp_path):
    methods = PAIRS["of all layers"]
    model = lent(plain, methods, tmp_path)
    expected = theirs(model, 3, combination_type="ties", density=DENSITY, majority_sign_method=sign)
    _, found = ours(plain, methods, Combination(how="ties", density=DENSITY, majority_sign_method=sign))
    _must_be_alike(found, expected, exactly=True, what=sign)


def test_svd_takes_the_rank_that_it_is_given_as_in_peft(plain, tmp_path):
    methods = PAIRS["of one rank"]
    expected = theirs(lent(plain, methods, tmp_path), 2, combination_type="svd", svd_rank=2)
    method, found = ours(plain, methods, Combination(how="svd", rank=2))
    assert method.rank == 2
    _must_be_alike(found, expected, exactly=False, what="svd")


def test_one_to_one_of_other_ranks_is_refused_here_as_there(plain, tmp_path):
    model = lent(plain, OTHER_RANKS, tmp_path)
    for how in ONE_TO_ONE:
        with pytest.raises(ValueError, match="same r value"):
            theirs(model, 2, combination_type=how, density=DENSITY)
        with pytest.raises(Exception, match="has the ranks 3 and 5 in these adapters"):
            ours(plain, OTHER_RANKS, Combination(how=how, density=None if how == "linear" else DENSITY))


def test_ia3_is_pefts_where_the_weights_add_up_to_1(plain, tmp_path):
    """PEFT adds the factors themselves, so that two of weight 1 double each layer; here what is beyond 1 is added."""
    methods, weights = [IA3(), IA3()], [0.7, 0.3]
    expected = theirs(lent(plain, methods, tmp_path), 2, weights)
    method, found = ours(plain, methods, Combination(how="linear"), weights)
    assert isinstance(method, IA3) and found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor.ravel(), rtol=0, atol=4 * ULP, err_msg=name)


def test_what_is_drawn_here_is_not_what_torch_draws(plain, tmp_path):
    """The one difference: a seed of ours gives the same in both backends and on every machine, and is not torch's."""
    methods = PAIRS["of one rank"]
    torch.manual_seed(0)
    expected = theirs(lent(plain, methods, tmp_path), 2, combination_type="dare_linear", density=DENSITY)
    _, found = ours(plain, methods, Combination(how="dare_linear", density=DENSITY))
    for side in (found, expected):  # what one of the two keeps, or both
        numbers = np.concatenate([tensor.ravel() for tensor in side.values()])
        share = 1 - (1 - DENSITY) ** 2
        assert abs(np.mean(numbers != 0) - share) < 5 * np.sqrt(share * (1 - share) / numbers.size)
    assert any((found[name] != expected[name]).any() for name in expected)


def test_peft_takes_the_scaling_of_rslora_over_and_ours_is_1(plain, tmp_path):
    """The same tensors, and another model: what PEFT makes of two adapters with rsLoRA is sqrt(r) times their sum."""
    methods = [LoRA(rank=4, rslora=True), LoRA(rank=4, rslora=True)]
    model = lent(plain, methods, tmp_path)
    model.add_weighted_adapter(["0", "1"], WEIGHTS[:2], "all", combination_type="cat")
    [scaling] = {layer.scaling["all"] for layer in model.modules() if "all" in getattr(layer, "scaling", {})}
    method, _ = ours(plain, methods, Combination(how="cat"))
    assert (scaling, method.scaling) == (pytest.approx(8**0.5), 1)
