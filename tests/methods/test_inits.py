"""What LoRA starts from: each start by its own property, and the registry of them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from comparing import relative

from mlx_peft.adaptation.factors import STARTS, halves, initial_factors, orthonormal
from mlx_peft.config.methods import LoRA
from mlx_peft.config.methods.inits import INITS, InitName
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import find
from mlx_peft.vit.sites import Site

ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""

LAYER = Site("blocks.1.attn.qkv", outputs=48, inputs=24)
PARTS = Site("blocks.1.attn.qkv", outputs=48, inputs=24, parts=("q", "v"))


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_every_start_has_its_name_its_facts_and_its_equation() -> None:
    assert {*get_args(InitName)} == INITS.keys() == STARTS.keys()


@pytest.mark.parametrize("site", [LAYER, PARTS], ids=["layer", "parts"])
@pytest.mark.parametrize("init", INITS)
def test_a_start_has_the_shapes_of_the_factors_and_follows_from_the_seed(init: InitName, site: Site) -> None:
    method, W = LoRA(rank=4, init=init), weight(48, 24)
    A, B = initial_factors(method, site, W, seed=3)
    assert A.shape == (site.count * 4, 24) and B.shape == (site.adapted, 4)
    assert A.dtype == B.dtype == np.float32 and A.flags.c_contiguous and B.flags.c_contiguous
    for one, other in zip((A, B), initial_factors(method, site, W, seed=3), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_oloras_factors_are_the_first_of_q_and_r(shape: tuple[int, int]) -> None:
    W = weight(*shape)
    Q, R = np.linalg.qr(W.astype(np.float64))
    A, B = orthonormal(W, 5)
    assert relative(B, Q[:, :5]) <= ROUNDING and relative(A, R[:5]) <= ROUNDING
    # What is left of W has nothing in the directions of B, and its first columns are gone.
    left = W - B @ A
    assert np.abs(B.T @ left).max() <= 1e-5 and np.abs(left[:, :5]).max() <= 1e-5


def test_oloras_factors_of_parts_are_their_own() -> None:
    W = weight(48, 24)
    A, B = initial_factors(LoRA(rank=3, init="olora"), PARTS, W, seed=0)
    for rows, own_A, own_B in zip((W[:16], W[32:]), np.split(A, 2), np.split(B, 2), strict=True):
        for found, expected in zip((own_A, own_B), orthonormal(rows, 3), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_orthogonal_halves_make_nothing_and_are_not_nothing() -> None:
    A, B = initial_factors(LoRA(rank=6, init="orthogonal"), PARTS, weight(48, 24), seed=0)
    for own_A, own_B in zip(np.split(A, 2), np.split(B, 2), strict=True):
        # Of 6 products of about 0.03 each, rounded to 6e-8: zero, not merely small.
        assert np.abs(own_B @ own_A).max() <= 3e-8
        assert np.linalg.matrix_rank(own_A) == np.linalg.matrix_rank(own_B) == 3
        assert 0.05 < own_A.std() < 0.1 > own_B.std() > 0.05  # a tenth of half of the squares: 0.1 sqrt(1/2)
    others = initial_factors(LoRA(rank=6, init="orthogonal"), PARTS, weight(48, 24), seed=1)
    assert not np.array_equal(A, others[0])
    assert not np.array_equal(*np.split(A, 2))  # each part has a draw of its own


def test_halves_of_the_same_draw_are_the_same() -> None:
    random = np.random.default_rng(0)
    S, X, Y = (random.standard_normal(shape) for shape in ((4, 4), (9, 2), (2, 7)))
    A, B = halves(S, X, Y)
    Q = np.linalg.qr(S)[0]
    assert relative(A, np.stack([Q[0], Q[2]]).T @ X.T / 10) <= ROUNDING
    assert relative(B, Y.T @ np.stack([Q[1], Q[3]]) / 10) <= ROUNDING


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 3, "init": "orthogonal"}, r"rank 3 of blocks\.0\.attn\.qkv is odd"),
        ({"rank": 2, "rank_pattern": {"proj": 5}, "init": "orthogonal"}, r"rank 5 of blocks\.0\.attn\.proj is odd"),
        ({"rank": 193, "init": "olora", "targets": ["q"]}, r"rank 193 is above the width of blocks\.0\.attn\.qkv"),
        ({"init": "oloar"}, "did you mean 'olora'"),
    ],
)
def test_a_rank_that_cannot_start_so_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRA(**options).check(find("vit_tiny_patch16_224").architecture)  # type: ignore[arg-type]
