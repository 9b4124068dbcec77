"""EVA: components followed from batch to batch, and ranks dealt out by what they explain."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import relative
from sklearn.decomposition import IncrementalPCA

from mlx_peft.adaptation.eva import Components, Explained, dealt, with_ranks
from mlx_peft.config.methods import LoRA
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import altered, find

FLOAT32 = 1e-4
"""Of a component, which a Gram matrix in float32 gives: 1e-7 over what two values are apart, some hundredths."""

WIDTH, COUNT = 24, 5


def batches(rank: int, number: int = 4, seed: int = 0, fall: float = 2.0) -> list[np.ndarray]:
    """Rows with a mean, varying in so many directions, each so many times less than the one before."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.standard_normal((WIDTH, rank)))[0] * fall ** -np.arange(rank)
    rows = random.standard_normal((number, 60, rank)) @ directions.T + random.standard_normal(WIDTH)
    return list(rows.astype(np.float32))


def followed(every: list[np.ndarray], count: int = COUNT, tau: float = 0.99) -> Components:
    components = Components(count, tau)
    for batch in every:
        components.look(batch)
    return components


def test_rows_of_few_directions_give_the_components_of_all_of_them() -> None:
    """Nothing is lost between batches then: a whole SVD has the same."""
    every = batches(COUNT)
    rows = np.concatenate(every).astype(np.float64)
    _, S, V = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    found = followed(every)
    assert found.vectors is not None
    signs = np.sign(V[np.arange(WIDTH), np.abs(V).argmax(axis=1)])[:COUNT, None]
    assert relative(found.vectors, V[:COUNT] * signs) <= FLOAT32
    assert relative(found.values, S[:COUNT]) <= FLOAT32
    assert found.shares.sum() == pytest.approx(1, abs=1e-5)


def test_rows_of_many_directions_are_followed_as_scikit_learn_follows_them() -> None:
    every, theirs = batches(WIDTH), IncrementalPCA(COUNT)
    for batch in every:
        theirs.partial_fit(batch.astype(np.float64))
    found = followed(every)
    assert found.vectors is not None
    signs = np.sign((theirs.components_ * found.vectors).sum(axis=1))
    assert relative(found.vectors, theirs.components_ * signs[:, None]) <= FLOAT32
    assert relative(found.shares, theirs.explained_variance_ratio_) <= FLOAT32
    assert (found.vectors[np.arange(COUNT), np.abs(found.vectors).argmax(axis=1)] > 0).all()


def test_what_has_not_turned_is_settled() -> None:
    same = batches(COUNT, number=1) * 3
    assert followed(same).settled.all() and not followed(same[:1]).settled.any()
    assert not followed([*batches(COUNT, 1), *batches(COUNT, 1, seed=1)]).settled.all()


def test_a_batch_of_too_few_rows_waits_for_the_next() -> None:
    [batch] = batches(COUNT, number=1)
    assert followed([batch[: COUNT - 1]]).vectors is None
    assert np.array_equal(followed([batch[:2], batch[2:4], batch[4:]]).vectors, followed([batch]).vectors)  # type: ignore[arg-type]


def test_rows_that_are_all_alike_explain_nothing() -> None:
    found = followed([np.ones((9, WIDTH), np.float32)] * 2)
    assert not found.shares.any() and found.vectors is not None and np.isfinite(found.vectors).all()


def test_the_largest_shares_of_all_layers_are_dealt_first() -> None:
    shares = {"a": np.array([0.5, 0.2, 0.1]), "b": np.array([0.4, 0.3, 0.25]), "c": np.array([0.01, 0.01, 0.0])}
    assert dealt(shares, dict.fromkeys(shares, 1), 4) == {"a": 1, "b": 3, "c": 0}
    # A component of two parts costs two, and the first that is too dear ends it.
    assert dealt(shares, {"a": 1, "b": 2, "c": 1}, 6) == {"a": 1, "b": 2, "c": 0}
    tied = {"a": np.array([0.5, 0.1]), "b": np.array([0.5, 0.1])}
    assert dealt(tied, dict.fromkeys(tied, 1), 3) == {"a": 2, "b": 1}


@pytest.mark.parametrize("rslora", [False, True])
def test_a_layer_keeps_its_scaling_whatever_rank_it_is_dealt(rslora: bool) -> None:
    method = LoRA(rank=4, alpha=6, rslora=rslora, init="eva", rank_pattern={"proj": 6}, alpha_pattern={"fc1": 3})
    ranks = {"blocks.0.attn.qkv": 7, "blocks.0.attn.proj": 4, "blocks.0.mlp.fc1": 1, "blocks.0.mlp.fc2": 0}
    found = with_ranks(method, ranks)
    for path, rank in ranks.items():
        assert found.rank_of(path) == rank
        assert not rank or found.scaling_of(path) == pytest.approx(method.scaling_of(path), rel=1e-12)
    assert LoRA.model_validate(found.model_dump()) == found


def test_a_layer_that_the_user_leaves_out_stays_left_out() -> None:
    architecture = altered(find("vit_tiny_patch16_224").architecture, {"embed_dim": WIDTH, "depth": 2}, "args")
    method = LoRA(rank=4, targets=("qkv", "proj"), init="eva", rank_pattern={"qkv": 2, r"attn\..*": 0})
    ranks = {"blocks.0.attn.qkv": 4, "blocks.1.attn.qkv": 0}
    found = with_ranks(method, ranks)
    assert [site.path for site in found.sites(architecture)] == ["blocks.0.attn.qkv"]
    assert {path: found.rank_of(path) for path in ranks} == ranks


def test_ranks_add_up_and_a_layer_without_one_is_not_adapted() -> None:
    architecture = altered(find("vit_tiny_patch16_224").architecture, {"embed_dim": WIDTH, "depth": 2}, "args")
    method = LoRA(rank=4, targets=("q", "v", "fc1"), init="eva", eva={"rho": 2})  # type: ignore[arg-type]
    explained = Explained(method, architecture)
    for _ in range(2):
        for number, path in enumerate(explained.sites):
            # What enters the last layer varies in all directions: each explains less than one of the others' few.
            [rows] = batches(WIDTH if number == 3 else 6, number=1, seed=number, fall=1.0)
            explained(path, rows.reshape(3, -1, WIDTH))
        explained.deal()
    found, tensors = explained.result()
    ranks = {site.path: found.rank_of(site.path) for site in found.sites(architecture)}
    costs = {site.path: site.count for site in found.sites(architecture)}
    assert "blocks.1.mlp.fc1" not in ranks and max(ranks.values()) <= 8
    assert sum(rank * costs[path] for path, rank in ranks.items()) in (23, 24)  # 2 (2 + 1) 4; a pair may not fit
    for path, rank in ranks.items():
        A, B = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        assert A.shape == (costs[path] * rank, WIDTH) and not B.any()
        for part in np.split(A, costs[path]):
            np.testing.assert_allclose(part @ part.T, np.eye(rank), atol=1e-6)


def test_whitened_directions_are_divided_by_the_root_of_their_value() -> None:
    architecture = altered(find("vit_tiny_patch16_224").architecture, {"embed_dim": WIDTH, "depth": 1}, "args")
    factors = []
    for whiten in (False, True):
        explained = Explained(
            LoRA(rank=3, targets=("qkv",), init="eva", eva={"rho": 1, "whiten": whiten}),  # type: ignore[arg-type]
            architecture,
        )
        explained("blocks.0.attn.qkv", batches(COUNT, 1)[0])
        explained.deal()
        factors.append(explained.result()[1]["blocks.0.attn.qkv.lora_A"])
    values = explained.components["blocks.0.attn.qkv"].values
    assert relative(factors[1], factors[0] / np.sqrt(values[:, None])) <= 1e-6


@pytest.mark.parametrize("rows", [batches(2, 1)[0], np.ones((9, WIDTH), np.float32)], ids=["two directions", "none"])
def test_a_direction_in_which_nothing_varies_is_not_whitened_beyond_what_float32_tells(rows: np.ndarray) -> None:
    architecture = altered(find("vit_tiny_patch16_224").architecture, {"embed_dim": WIDTH, "depth": 1}, "args")
    method = LoRA(rank=COUNT, targets=("qkv",), init="eva", eva={"rho": 1, "whiten": True})  # type: ignore[arg-type]
    explained = Explained(method, architecture)
    explained("blocks.0.attn.qkv", rows)
    explained.deal()
    lengths = np.linalg.norm(explained.result()[1]["blocks.0.attn.qkv.lora_A"], axis=1)
    least = 3.4e-4 * explained.components["blocks.0.attn.qkv"].values[0]  # the root of 2^-23
    assert lengths.max() <= (least**-0.5 * 1.02 if least else 1.0001)


def test_too_few_rows_in_every_batch_are_told() -> None:
    explained = Explained(LoRA(init="eva"), find("vit_tiny_patch16_224").architecture)
    with pytest.raises(UserError, match=r"eva follows 16 directions of what enters blocks\.0\.attn\.qkv"):
        explained.result()


@pytest.mark.parametrize("other", [LoRA(), LoRA(init="pissa"), LoRA(init="olora")])
def test_options_of_one_start_are_not_written_with_another(other: LoRA) -> None:
    """Files and hashes of before stay as they were."""
    assert not {"eva", "loftq"} & other.model_dump().keys()
    assert LoRA(init="eva", eva={"rho": 1}).model_dump()["eva"]["rho"] == 1  # type: ignore[arg-type]
