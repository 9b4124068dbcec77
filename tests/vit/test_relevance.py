"""What is read of tokens that stand for different numbers of patches."""

import numpy as np

from mlx_peft.vit import relevance
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.attention import BlockAttention, Explanation
from mlx_peft.vit.places import Places


def uneven(**options) -> Explanation:
    """Four patches of one image that take of themselves alone; the first three become one token behind the block."""
    architecture = Architecture(
        img_size=16, patch_size=8, embed_dim=4, depth=1, num_heads=1, class_token=False, global_pool="avg", **options
    )
    before, left = Places((("patch", 4),)), Places((("patch", 2),))
    M = np.array([[[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1]]], np.float32)
    A = np.eye(4, dtype=np.float32)[None, None]
    block = BlockAttention(A, np.zeros_like(A), before, before, left, M, np.array([[3, 1]], np.float32))
    return Explanation(architecture, np.zeros((1, 2), np.float32), np.zeros(1, np.int64), (block,), None)


def test_a_mean_counts_a_token_by_its_patches():
    np.testing.assert_allclose(relevance.rollout(uneven()), [[0.25] * 4])
    np.testing.assert_allclose(relevance.rollout(uneven(pool_include_prefix=True)), [[0.25] * 4])


def test_no_gradient_leaves_each_patch_as_it_is_held():
    np.testing.assert_allclose(relevance.gradient_weighted(uneven()), [[0.25] * 4])
