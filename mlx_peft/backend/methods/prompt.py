"""VPT: trained tokens, the prompts, beside the image's.

[x, P] goes into a block in place of x; P ``(1, p, dim)``; initially P ~ U(-b, b), b = sqrt(6 / (3 patch^2 + dim)).
Deep: each block has its own P, and what comes out in the prompts' places is dropped. Shallow: one P enters before the
first block and goes through all of them.
Jia et al. 2022 (arXiv 2203.12119), section 3.2, equations 4 to 8; the initialisation is the authors' code's.

The paper puts the prompts between the class token and the patches. Here they stand behind the patches, unless a block
is told otherwise. It makes no difference: to a block its tokens have no order, and what each is, and where in the image
it stands, goes with them.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.targets import find, replace
from mlx_peft.backend.models.block import Block
from mlx_peft.backend.models.layers import spread
from mlx_peft.backend.models.positions import Positions
from mlx_peft.backend.models.stochastic import Dropout
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import VPT
from mlx_peft.vit.initial import uniform
from mlx_peft.vit.places import Kind, Kinds


class PromptedBlock(Adapted):
    """A frozen block that prompts enter, or that they leave behind, or both.

    Where they leave, they are asked in attention but do not ask: what would come out of them is not computed.

    Args:
        base_layer: the block; it is kept as ``base_layer``.
        prompts: the initial prompts that enter, ``(1, p, dim)``; None where none do.
        leave: whether they leave, which entered here or before.
        dropout: probability on the prompts that enter, drawn for each image.

    Attributes:
        before: the kind of tokens before which they enter; None: behind all.
    """

    def __init__(self, base_layer: Block, prompts: mx.array | None, leave: bool, dropout: float = 0.0):
        super().__init__(base_layer)
        if prompts is not None:
            self.prompts = prompts
        self.leave = leave
        self.before: Kind | None = None
        self.dropout = Dropout(dropout)

    def __call__(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        if "prompts" in self:
            prompts = spread(self.prompts, (tokens.x.shape[0], *self.prompts.shape[1:]), tokens.x.dtype)
            tokens = tokens.inserted("prompt", self.dropout(prompts), self.before)
        if self.leave and queries is None:
            queries = tokens.places.without("prompt")
        return self.base_layer(tokens, positions, queries)


class VPTMethod(Method[VPT]):
    """The blocks that prompts enter or leave are wrapped."""

    def apply(self, model: VisionTransformer, config: VPT, seed: int) -> None:
        architecture = model.architecture
        blocks = config.chosen_blocks(architecture)
        bound = (6 / (3 * architecture.patch_size**2 + architecture.embed_dim)) ** 0.5
        for number in blocks if config.deep else sorted({blocks[0], blocks[-1]}):
            path, prompts = f"blocks.{number}", None
            if config.deep or number == blocks[0]:
                shape = (1, config.tokens, architecture.embed_dim)
                prompts = mx.array(uniform(shape, bound, seed, f"{path}.prompts"))
            leave = config.deep or number == blocks[-1]
            replace(model, path, PromptedBlock(find(model, path), prompts, leave, config.dropout))
