"""A network in which each row of a batch has an adapter of its own: its layers ask at each call what the rows have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.adaptation.terms import THIRDS, Entering
from mlx_peft.vit.places import Kinds
from torch_ref.methods.gathering import Each, Groups
from torch_ref.models.gelu import gelu
from torch_ref.models.positions import Positions
from torch_ref.models.tokens import Tokens

OF_THIRDS = frozenset(f"B{third}" for third in THIRDS)
"""The names of terms of a third of a layer's outputs; each has its A or G."""

MANY = 64
"""Tokens of an image from which on each adapter's narrow products are taken by themselves. Of fewer, one product of all
adapters' factors, copied beside one another, takes less time than the calls of one for each."""

Act = Callable[[Tensor], Tensor]
"""An activation."""

_rows: ContextVar[tuple[Groups, frozenset[str]]] = ContextVar("rows", default=((), frozenset()))


@contextmanager
def mixing(terms: Groups, prompts: Sequence[Entering] = ()) -> Iterator[None]:
    """Within it, the rows of a batch have these terms; outside of any, none. Each thread has its own.

    Args:
        terms: of all rows, in their order.
        prompts: at which blocks they enter and leave, in all rows alike.
    """
    token = _rows.set((terms, frozenset(at.block for at in prompts if at.leave)))
    try:
        yield
    finally:
        _rows.reset(token)


def terms_at(path: str) -> tuple[list[int], list[Mapping[str, Tensor]]]:
    """How many rows each group has, and its terms at a path; no group where none has any there."""
    groups = _rows.get()[0]
    if not any(path in held for _, held in groups):
        return [], []
    return [count for count, _ in groups], [held.get(path, {}) for _, held in groups]


class Mixed(nn.Module):
    """A layer or a block of which the rows of a batch each have their own.

    Args:
        base_layer: what all have; it is kept as ``base_layer``.
        path: where it stands in the model.
    """

    def __init__(self, base_layer: nn.Module, path: str):
        super().__init__()
        self.base_layer = base_layer
        self.path = path


class MixedLayer(Mixed):
    """y = gain * (layer(into * x) + n(x) * weight + (x A + g(x) G) B) + shift, of each row its own.

    The layer is a linear one, the patch projection or a norm; the terms are those of ``mlx_peft.adaptation.terms``.

    An input that all images share, one row, gets a row for each. Products are taken in the dtype of x.
    """

    def forward(self, x: Tensor) -> Tensor:
        counts, terms = terms_at(self.path)
        if not counts:
            return self.base_layer(x)
        x = x.expand(sum(counts), *x.shape[1:])
        entering = scaled(x, counts, terms)
        first = all(map(begins, terms))
        y = self.begun(x, entering, counts, terms) if first else self.base_layer(entering).contiguous()
        for part, own_x, own in zip(y.split(counts), x.split(counts), terms, strict=True):
            if not first:
                plus(part, own_x, own)
            if not own.keys().isdisjoint(OF_THIRDS):
                for third, ending in zip(part.chunk(len(THIRDS), dim=-1), THIRDS, strict=True):
                    plus(third, own_x, own, ending)
            if "weight" in own:
                part += self.base_layer.normed(own_x) * beside(own["weight"], part)
            if "gain" in own:
                part *= beside(own["gain"], part)
            if "shift" in own:
                part += beside(own["shift"], part)
        return y

    def begun(
        self, x: Tensor, entering: Tensor, counts: Sequence[int], terms: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        """layer(entering) + x A B, of a linear layer: the narrow product is written, and the wide one added to it.

        To write the bias first and to add both products would read y once more. The factors of large images' adapters
        are read where they lie.
        """
        y = x.new_empty(*x.shape[:-1], self.base_layer.shape[0])
        tokens = x.shape[1:-1].numel()
        runs = [
            run
            for count, own in zip(counts, terms, strict=True)
            for run in (own.runs if isinstance(own, Each) and tokens >= MANY else [(count, own)])
        ]
        bias = None if self.base_layer.bias is None else self.base_layer.bias.to(x.dtype)
        lengths = [count * tokens for count, _ in runs]
        flat_y, flat_x = (array.reshape(-1, array.shape[-1]).split(lengths) for array in (y, x))
        for part, own_x, (_, own) in zip(flat_y, flat_x, runs, strict=True):
            narrow(part, own_x, own["A"].to(x.dtype), own["B"].to(x.dtype), bias)
        return self.base_layer.onto(y, entering)


class MixedBlock(Mixed):
    """A block that prompts of the rows' own enter or leave, with bottlenecks of theirs beside its MLP and behind it."""

    def forward(self, tokens: Tokens, positions: Positions, queries: Kinds | None = None) -> Tokens:
        counts, terms = terms_at(self.path)
        if any("prompts" in own for own in terms):  # of all rows, or of none
            entering = [
                own["prompts"].to(tokens.x.dtype).expand(count, *own["prompts"].shape[-2:])
                for count, own in zip(counts, terms, strict=True)
            ]
            tokens = tokens.inserted("prompt", torch.cat(entering))
        if self.path in _rows.get()[1] and queries is None:
            queries = tokens.places.without("prompt")
        if any("down" in own for own in terms):
            tokens = self.base_layer.attend(tokens, positions, queries)
            read = self.base_layer.read_by_mlp(tokens.x)
            tokens = tokens.fed(self.base_layer.feed(read))
            add_bottlenecks(tokens.x, read, counts, terms, F.relu)
        else:
            tokens = self.base_layer(tokens, positions, queries)
        add_bottlenecks(tokens.x, tokens.x, counts, terms, gelu, "after_")
        return tokens


class MixedBranch(Mixed):
    """What a block's attention, or its MLP, ends in, with the rows' own bottlenecks behind it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        add_bottlenecks(y, y, *terms_at(self.path), gelu)
        return y


def add_bottlenecks(
    y: Tensor, x: Tensor, counts: Sequence[int], terms: Sequence[Mapping[str, Tensor]], act: Act, place: str = ""
) -> None:
    """Adds to y, in place, the bottlenecks that the groups have at a place, of x, which may be y itself."""
    if any(f"{place}down" in own for own in terms):
        for part, entered, own in zip(y.split(counts), x.split(counts), terms, strict=True):
            if f"{place}down" in own:
                part += bottleneck(entered, own, act, place)


def scaled(x: Tensor, counts: Sequence[int], terms: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """into * x, of the groups that have it."""
    if not any("into" in own for own in terms):
        return x
    each = zip(x.split(counts), terms, strict=True)
    return torch.cat([(part * beside(own["into"], part)).to(x.dtype) if "into" in own else part for part, own in each])


def bottleneck(x: Tensor, own: Mapping[str, Tensor], act: Act, place: str = "") -> Tensor:
    """act(x down + down_bias) up + up_bias, in the dtype of x, of the terms whose names begin with the place."""
    down, down_bias, up, up_bias = (own[place + name] for name in ("down", "down_bias", "up", "up_bias"))
    inner = act(x @ down.to(x.dtype) + beside(down_bias, x).to(x.dtype))
    return inner @ up.to(x.dtype) + beside(up_bias, x).to(x.dtype)


def begins(own: Mapping[str, Tensor]) -> bool:
    """Whether a layer may begin with these terms: there is an A and a B, and nothing else that B multiplies."""
    return "A" in own and "B" in own and "G" not in own


def narrow(y: Tensor, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> None:
    """Writes x A B + bias to y, ``(rows of tokens, width)``: A and B are of all images alike, or one an image's."""
    if B.ndim == 3:
        inner = x.view(len(B), -1, x.shape[-1]) @ A
        if bias is not None:  # is one more row of B
            inner, B = F.pad(inner, (0, 1), value=1.0), torch.cat([B, bias.expand(len(B), 1, -1)], dim=1)
        torch.bmm(inner, B, out=y.view(len(B), -1, y.shape[-1]))
    elif bias is None:
        torch.mm(torch.mm(x, A), B, out=y)
    else:
        torch.addmm(bias, torch.mm(x, A), B, out=y)


def plus(y: Tensor, x: Tensor, own: Mapping[str, Tensor], ending: str = "") -> Tensor:
    """y + (x A + g(x) G) B, of the terms with this ending; where rows have A or G, B has rows for the longer."""
    for name in ("A", "G"):
        if (A := own.get(name + ending)) is not None:
            inputs = x if name == "A" else x.reshape(*x.shape[:-1], A.shape[-2], -1).sum(dim=-1)
            B = own["B" + ending]
            # In place: y is new, and another copy of it costs as much as the products.
            if B.ndim == 3:
                y.baddbmm_(inputs @ A.to(x.dtype), B[:, : A.shape[-1]].to(x.dtype))
            else:
                y.view(-1, y.shape[-1]).addmm_((inputs @ A.to(x.dtype)).view(-1, A.shape[-1]), B.to(x.dtype))
    return y


def beside(vectors: Tensor, x: Tensor) -> Tensor:
    """A vector, or one a row, ``(batch, width)``, with as many axes as x, ``(batch, ..., width)``."""
    return vectors if vectors.ndim == 1 else vectors.reshape(len(vectors), *(1,) * (x.ndim - 2), -1)
