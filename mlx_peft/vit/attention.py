"""What the attention of a model was seen to do with some images, and what became of their tokens: all NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Places


@dataclass(frozen=True)
class Attention:
    """One attention, of a block or of what pools behind the blocks.

    Attributes:
        probabilities: float32 ``(batch, heads, queries, tokens)``: how much of each token each query took.
        gradients: of a logit of each image with respect to them, alike.
        asked: what stands where among the tokens.
    """

    probabilities: np.ndarray
    gradients: np.ndarray
    asked: Places


@dataclass(frozen=True)
class BlockAttention(Attention):
    """A block's, and what its reducer made of the tokens that came out.

    Attributes:
        asking: what stands where among the queries.
        left: what stands where behind the reducer.
        reduction: float32 ``(batch, left + aside, queries + aside before)``: each token behind the reducer as a sum of
            those before it; tokens that are carried around the next blocks stand aside, behind those that go through
            them. None: the tokens are the same.
        sizes: float32 ``(batch, patch tokens left)``: how many patches each stands for; None: one.
        fed: bool ``(batch, tokens left)``: which go through the block's MLP; None: all.
    """

    asking: Places
    left: Places
    reduction: np.ndarray | None
    sizes: np.ndarray | None
    fed: np.ndarray | None = None


@dataclass(frozen=True)
class Explanation:
    """A model's answers to some images, and how it came to them.

    Attributes:
        architecture: the model's.
        logits: float32 ``(batch, classes)``.
        classes: int64 ``(batch,)``: the class of each image whose logit the gradients are of.
        blocks: their attentions, in order.
        pool: that of the attention pooling; None where the model has none.
    """

    architecture: Architecture
    logits: np.ndarray
    classes: np.ndarray
    blocks: tuple[BlockAttention, ...]
    pool: Attention | None
