"""A step of training in shapes alone: which arrays its forward pass makes, and which of them the backward one needs.

No array is made: an operation says how large its result is, what it keeps, and what lies beside that while it computes
or passes the gradient on. From these follow the most bytes that are held at once, and how many operations there are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, TypeVar

Shape = tuple[int, ...]

OfKind = TypeVar("OfKind", bound="Tape")

FLOAT32 = 4
"""Bytes of a number."""


class Store:
    """Memory that arrays lie in; a view lies in that of which it is a view.

    Attributes:
        size: bytes.
        owned: whether the model holds it anyway, so that to keep it costs nothing.
    """

    __slots__ = ("owned", "size")

    def __init__(self, size: int, owned: bool = False) -> None:
        self.size, self.owned = size, owned


@dataclass(frozen=True, eq=False)
class Array:
    """An array of the step, known by its shape.

    Attributes:
        shape: as the backend has it.
        item: bytes of one number.
        store: where it lies.
        needs: whether a gradient goes to it.
    """

    shape: Shape
    item: int
    store: Store
    needs: bool = False

    @property
    def size(self) -> int:
        """Bytes of its numbers, which may be fewer than its store has."""
        return math.prod(self.shape) * self.item

    @property
    def width(self) -> int:
        """The length of its last axis."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """How many rows it has, of its last axis each."""
        return math.prod(self.shape[:-1])


class Moment(NamedTuple):
    """What is held at one moment of a step, besides the weights: bytes."""

    kept: int
    """Of the forward pass, for the backward one."""
    passing: int
    """That is computed, and what it is computed from."""
    gradients: int
    """Of the parameters that the backward pass has met by then."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Cost(NamedTuple):
    """What an operation holds beside what is kept, in one direction."""

    passing: int
    """Operands, result, and what it makes besides: bytes."""
    new: int
    """The part of them that was not there before."""
    calls: int
    """How many calls of the framework's kernels it takes."""


@dataclass(frozen=True, eq=False)
class Op:
    """An operation as it was run.

    Attributes:
        found: where its result lies.
        kept: bytes that were kept when it was done.
        met: bytes of the trained parameters that were used before it.
        forward: what it costs.
        backward: what it costs to pass the gradient on; None: no gradient goes through.
        within: the operations that it stands for, which are computed again in the backward pass.
    """

    found: Store
    kept: int
    met: int
    forward: Cost
    backward: Cost | None
    within: tuple[Op, ...] = ()


class Calls(NamedTuple):
    """How many calls of kernels an operation takes, forward and backward."""

    forward: int = 2
    backward: int = 2


ONE = Calls()
"""Of one kernel, and of what lets go of its operands."""


@dataclass
class Tape:
    """The operations of one part of a batch, in order, as automatic differentiation goes through them.

    Attributes:
        kept: bytes so far.
        met: bytes of the trained parameters that were used so far.
        forward, backward: operations by the bytes of the numbers that are multiplied; an addition is one, and a
            multiplication is one.
        ahead: how many calls of kernels are prepared before the first of them is done, and its operands are let go.
    """

    ahead: ClassVar[int] = 0

    kept: int = 0
    met: int = 0
    forward: Counter[int] = field(default_factory=Counter)
    backward: Counter[int] = field(default_factory=Counter)
    ops: list[Op] = field(default_factory=list)
    _stores: set[Store] = field(default_factory=set)
    _held: list[Array] = field(default_factory=list)

    def run(
        self,
        reads: Sequence[Array],
        shape: Shape,
        *,
        keeps: Iterable[Array] = (),
        item: int | None = None,
        beside: int = 0,
        behind: int = 0,
        passes: int | None = None,
        calls: Calls = ONE,
        replaces: bool = False,
    ) -> Array:
        """The result of an operation.

        Args:
            reads: its operands; the first decides the result's ``item``.
            shape: of the result.
            keeps: what the backward pass needs of it, where a gradient goes through it.
            beside: bytes of what it makes besides while it computes.
            behind: likewise while it passes the gradient on.
            passes: bytes of the gradients that it makes; None: of the operands that one goes to.
            calls: of kernels.
            replaces: whether the result may take the place of an operand that nobody else reads.
        """
        item = reads[0].item if item is None else item
        found = Array(shape, item, Store(math.prod(shape) * item), any(read.needs for read in reads))
        passing, met = self._unkept([*reads, found, *self._held]) + beside, self.met
        self.met += sum(store.size for store in self._trained(reads))
        backward = None
        if found.needs:
            for array in keeps:
                self.keep(array)
            given = sum(read.size for read in reads if read.needs and not read.store.owned)
            beside_it = sum(array.size for array in self._held if array.needs)
            through = (0 if replaces else given) if passes is None else passes
            backward = Cost(found.size + given + beside_it + behind, through + behind, calls.backward)
        forward = Cost(passing, beside + (0 if replaces else found.size), calls.forward)
        self.ops.append(Op(found.store, self.kept, met, forward, backward))
        return found

    def keep(self, array: Array) -> None:
        """Has the backward pass need an array."""
        if array.store not in self._stores and not array.store.owned:
            self._stores.add(array.store)
            self.kept += array.store.size

    @contextmanager
    def holding(self, array: Array, gradient: bool = True) -> Iterator[None]:
        """While the block runs, an array is there that no operation of it reads, and so is its gradient."""
        self._held.append(array if gradient else replace(array, needs=False))
        yield
        self._held.pop()

    @contextmanager
    def again(self: OfKind, entering: Array) -> Iterator[OfKind]:
        """What runs on the tape that it gives is computed again in the backward pass: what entered it is kept alone."""
        inner = replace(self, kept=0, forward=Counter(), backward=Counter(), ops=[], _stores=set(), _held=[])
        yield inner
        goes = any(op.backward for op in inner.ops)
        if goes:
            self.keep(entering)
        once = max(op.forward.passing for op in inner.ops)  # nothing of it is kept while it runs the first time
        op = Op(
            inner.ops[-1].found,
            self.kept,
            self.met,
            Cost(once, sum(op.forward.new for op in inner.ops), sum(op.forward.calls for op in inner.ops)),
            Cost(0, 0, 0) if goes else None,
            tuple(inner.ops),
        )
        self.ops.append(op)
        self.met = inner.met
        self.forward += inner.forward
        self.backward += inner.backward + (inner.forward if goes else Counter())

    def peak(self) -> Moment:
        """The moment at which most is held."""
        most = Moment(0, 0, 0)
        events = [*self._forwards(self.ops, 0), *self._backwards(self.ops, 0)]
        first = new = calls = 0
        for event, cost in events:
            new, calls = new + cost.new, calls + cost.calls
            while calls - events[first][1].calls > self.ahead and first < len(events) - 1:
                new, calls, first = new - events[first][1].new, calls - events[first][1].calls, first + 1
            here = event
            if self.ahead:
                earliest = events[first][0]
                kept = max(event.kept, earliest.kept)
                here = Moment(kept, max(new, event.passing), event.gradients)
            most = max(most, here, key=lambda moment: moment.total)
        return most

    def _forwards(self, ops: Iterable[Op], kept: int) -> Iterator[tuple[Moment, Cost]]:
        for op in ops:
            new = op.forward.new - (op.found.size if op.found in self._stores else 0)
            yield Moment(kept + op.kept, op.forward.passing, 0), op.forward._replace(new=max(new, 0))

    def _backwards(self, ops: Sequence[Op], kept: int) -> Iterator[tuple[Moment, Cost]]:
        for op in reversed(ops):
            gradients = self.met - op.met
            if op.within and op.backward:
                for moment, cost in self._forwards(op.within, op.kept):
                    yield moment._replace(gradients=gradients), cost
                yield from self._backwards(op.within, op.kept)
            elif op.backward:
                yield Moment(kept + op.kept, op.backward.passing, gradients), op.backward

    def _unkept(self, arrays: Iterable[Array]) -> int:
        return sum(store.size for store in {a.store for a in arrays} - self._stores if not store.owned)

    def _trained(self, reads: Iterable[Array]) -> set[Store]:
        """The stores of trained parameters among operands that are met here first."""
        found = {read.store for read in reads if read.needs and read.store.owned} - self._stores
        self._stores |= found
        return found
