"""A model that is looked at while it answers: what its attention takes, and what its reducers leave.

It is another program than the one that only answers: attention's probabilities are formed, and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mlx_peft.vit.attention import Attention, BlockAttention, Explanation
from mlx_peft.vit.places import PATCH
from torch_ref.methods.adapted import Adapted
from torch_ref.models.attention import Attended
from torch_ref.models.reducer import Reducer
from torch_ref.models.tokens import Tokens
from torch_ref.models.vit import VisionTransformer
from torch_ref.parameters import to_numpy
from torch_ref.quant.simulated import Attend


class Look:
    """What one attention takes: its probabilities are kept, and go on with ``change`` added, which is zero.

    The gradient with respect to the change is that with respect to the probabilities.
    """

    def __init__(self) -> None:
        self.probabilities: Tensor | None = None
        self.change: Tensor | None = None

    def __call__(self, p: Tensor) -> Tensor:
        self.probabilities = p
        return p if self.change is None else p + self.change


class Reduction(Reducer):
    """A reducer of which is seen what it leaves: as a matrix, which is what it makes of the identity.

    So a reducer chooses by what attention compared, and not by the tokens' values, of which it makes sums.

    Args:
        reducer: the block's own.
    """

    def __init__(self, reducer: Reducer):
        super().__init__()
        self.reducer = reducer
        self.seen: Callable[[], dict[str, Any]] = dict

    def forward(self, tokens: Tokens, attended: Attended) -> Tokens:
        left = self.reducer(tokens, attended)
        traced = None if left.x is tokens.x else _joined(self.reducer(_identity(tokens), attended))
        self.seen = lambda: {
            "asking": attended.asking,
            "asked": attended.asked,
            "left": left.places,
            "reduction": None if traced is None else to_numpy(traced),
            "sizes": None if left.sizes is None else to_numpy(left.sizes),
            "fed": None if left.gate is None else to_numpy(left.gate[..., 0]) > 0,
        }
        return left


def _identity(tokens: Tokens) -> Tokens:
    """Tokens of which each is one row of the identity, those that stand aside behind the others."""
    through = len(tokens.places)
    count = through if tokens.aside is None else through + tokens.aside.shape[1]
    rows = torch.eye(count, device=tokens.x.device).expand(tokens.x.shape[0], -1, -1)
    aside = None if tokens.aside is None else rows[:, through:]
    return replace(tokens, x=rows[:, :through], aside=aside)


def _joined(tokens: Tokens) -> Tensor:
    """The tokens, and behind them those that stand aside."""
    return tokens.x if tokens.aside is None else torch.cat([tokens.x, tokens.aside], dim=1)


def explain(network: VisionTransformer, x: Tensor, classes: Sequence[int] | None) -> Explanation:
    """The answers to normalised images ``(batch, size, size, 3)``, and how the model came to them.

    Args:
        network: in evaluation mode.
        classes: of each image, whose logit is differentiated; None: the likeliest.
    """
    with watched(network) as (looks, reductions):
        with torch.no_grad():
            logits = network(x).float()
        chosen = logits.argmax(dim=1) if classes is None else torch.tensor(classes, device=x.device)
        seen = [look.probabilities for look in looks]
        facts = [reduction.seen() for reduction in reductions]
        changes = [torch.zeros_like(p, requires_grad=True) for p in seen]
        for look, change in zip(looks, changes, strict=True):
            look.change = change
        with torch.enable_grad():
            score = network(x).gather(1, chosen[:, None]).float().sum()
        gradients = torch.autograd.grad(score, changes)
        arrays = [tuple(map(to_numpy, pair)) for pair in zip(seen, gradients, strict=True)]
    blocks = tuple(BlockAttention(*pair, **fact) for pair, fact in zip(arrays, facts, strict=False))
    pool = None
    if len(arrays) > len(blocks):
        left = blocks[-1].left
        pool = Attention(*arrays[-1], left if network.architecture.pool_include_prefix else left.only((PATCH,)))
    return Explanation(network.architecture, to_numpy(logits), chosen.cpu().numpy(), blocks, pool)


@contextmanager
def watched(network: VisionTransformer) -> Iterator[tuple[list[Look], list[Reduction]]]:
    """Within it every attention, the pooling's last, and every reducer is looked at; what was there is there again."""
    blocks = [plain(block) for block in network.blocks]
    attentions = [block.attn for block in blocks]
    if network.architecture.global_pool == "map":
        attentions.append(network.attn_pool)
    before = [attention.attend for attention in attentions], [block.reducer for block in blocks]
    looks = [Look() for _ in attentions]
    try:
        for attention, look in zip(attentions, looks, strict=True):
            attention.attend = Attend({**dict.fromkeys("qkv", same), "softmax": look})
        for block in blocks:
            block.reducer = Reduction(block.reducer)
        yield looks, [block.reducer for block in blocks]
    finally:
        for attention, attend in zip(attentions, before[0], strict=True):
            attention.attend = attend
        for block, reducer in zip(blocks, before[1], strict=True):
            block.reducer = reducer


def plain(block: nn.Module) -> nn.Module:
    """A block of the model itself, whatever a method put around it."""
    while isinstance(block, Adapted):
        block = block.base_layer
    return block


def same(x: Tensor) -> Tensor:
    """x."""
    return x
