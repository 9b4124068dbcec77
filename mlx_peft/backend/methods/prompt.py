"""VPT: trained tokens, the prompts, beside the image's.

[x, P] goes into a block in place of x; P ``(1, p, dim)``; initially P ~ U(-b, b), b = sqrt(6 / (3 patch^2 + dim)).
Deep: each block has its own P, and what comes out in the prompts' places is dropped. Shallow: one P enters before the
first block and goes through all of them.
Jia et al. 2022 (arXiv 2203.12119), section 3.2, equations 4 to 8; the initialisation is the authors' code's.

The paper puts the prompts between the class token and the patches. Here they stand behind the patches: a block does not
see the order of its tokens, their positions having been added before, so the function is the same, and every index into
the tokens stays what it was for the pooling, the heads and ``queries``.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.layers import spread
from mlx_peft.backend.models.stochastic import Dropout
from mlx_peft.backend.models.vit import Block, VisionTransformer
from mlx_peft.config.methods import VPT
from mlx_peft.core.errors import UserError
from mlx_peft.vit.initial import uniform


class PromptedBlock(nn.Module):
    """A frozen block that prompts enter, or that they leave behind, or both.

    Where they leave, they are asked in attention but do not ask: what would come out of them is not computed.

    Args:
        base_layer: the block; it is kept as ``base_layer``.
        prompts: the initial prompts that enter, ``(1, p, dim)``; None where none do.
        leaving: how many of the last tokens leave.
        dropout: probability on the prompts that enter, drawn for each image.
    """

    def __init__(self, base_layer: Block, prompts: mx.array | None, leaving: int, dropout: float = 0.0):
        super().__init__()
        self.base_layer = base_layer
        if prompts is not None:
            self.prompts = prompts
        self.leaving = leaving
        self.dropout = Dropout(dropout)

    def __call__(self, x: mx.array, queries: int | None = None) -> mx.array:
        if "prompts" in self:
            prompts = spread(self.prompts, (x.shape[0], *self.prompts.shape[1:]), x.dtype)
            x = mx.concatenate([x, self.dropout(prompts)], axis=1)
        if self.leaving and queries is None:
            queries = x.shape[1] - self.leaving
        return self.base_layer(x, queries)


def apply(model: VisionTransformer, method: VPT, seed: int) -> None:
    """Wraps the blocks that prompts enter or leave. They are drawn by name, so both backends start from the same."""
    architecture = model.architecture
    blocks = method.chosen_blocks(architecture)
    bound = (6 / (3 * architecture.patch_size**2 + architecture.embed_dim)) ** 0.5
    for number in blocks if method.deep else sorted({blocks[0], blocks[-1]}):
        path, prompts = f"blocks.{number}", None
        if method.deep or number == blocks[0]:
            shape = (1, method.tokens, architecture.embed_dim)
            prompts = mx.array(uniform(shape, bound, seed, f"{path}.prompts"))
        leaving = method.tokens if method.deep or number == blocks[-1] else 0
        replace(model, path, PromptedBlock(find(model, path), prompts, leaving, method.dropout))


def merge(model: VisionTransformer) -> dict[str, nn.Module]:
    """Replaces nothing. Raises UserError where there are prompts: they are tokens, and no weight can take them up."""
    if any(isinstance(layer, PromptedBlock) for layer in model.modules()):
        raise UserError(
            "VPT cannot be merged: its prompts are tokens that every image attends to, so no weight can take them up; "
            "keep the adapter beside the model"
        )
    return {}
