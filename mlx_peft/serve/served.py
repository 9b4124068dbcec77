"""What answers: a bank of adapters over one base, or one model that only answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from convert.adapters.peft import WEIGHTS
from convert.base import Base
from mlx_peft.artifacts.answering import ManyAdapters, OneModel
from mlx_peft.core.errors import UserError
from mlx_peft.library.bank import Bank
from mlx_peft.library.compiled import BUCKETS
from mlx_peft.library.entries import INSIDE, Coming, Entry, must_be_name
from mlx_peft.library.program import Program
from mlx_peft.serve.known import GoOn, Known, Row, always, metrics_of
from mlx_peft.serve.problems import Problem, unknown, unreadable
from mlx_peft.training.run import RunFolder

LARGEST = BUCKETS[-1] // 2
"""Above it sizes are multiples of it, as a bank fills batches up."""


ALONE = "one model is served, and no folder of adapters: nothing is loaded here, and nothing let go"


class ServedBank:
    """Adapters of one base.

    Args:
        bank: with all that are served at first.
        base: of its network.
        folder: of the adapters; None: none is loaded later.
        asked: what explains its answers; None where nothing does.
    """

    def __init__(self, bank: Bank, base: Base, folder: Path | None, asked: ManyAdapters | None = None) -> None:
        self.base, self.folder, self.asked = base.name, folder, asked
        self.image_size, self.dim = base.architecture.img_size, base.architecture.feature_dim
        self.usual = base.preprocessing
        self._bank = bank
        self._met: set[str] = set()  # the kinds of adapters that the device has been warmed up for
        self._sizes: Sequence[int] = ()
        self._known = {name: self._told(bank[name]) for name in bank.names}

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._known)

    def get(self, name: str) -> Known | None:
        return self._known.get(name)

    def loaded(self, name: str) -> bool:
        return name in self._bank.resident

    def answer(self, images: np.ndarray, rows: Sequence[Row], headed: Sequence[bool]) -> Sequence[np.ndarray]:
        return self._bank.answers(images, [None if row is None else row.name for row in rows], headed, len(images))

    def warm(self, sizes: Iterable[int], go_on: GoOn = always) -> Sequence[str]:
        """Reads every adapter once; what cannot be read is let go, with a note. Then each size is answered by the bare
        base, by an adapter of each kind alone, and by one of each beside one another."""
        self._sizes = sorted(sizes, reverse=True)
        notes = [note for name in self.names if go_on() and (note := self._tried(name))]
        kinds = self._kinds()
        for size in self._sizes:
            for name in (None, *kinds.values()):
                if go_on():
                    self._bank.features(self._nothing(size), [name] * size, size)
            if go_on():
                self._mixed(size)
        self._met = {*kinds}
        return notes

    def _kinds(self) -> dict[str, str]:
        """One adapter of each kind."""
        return {self._kind(name): name for name in self.names}

    def _kind(self, name: str) -> str:
        """Adapters of one method with equal options have terms of one form."""
        return repr(self._bank[name].adapter.method)

    def _mixed(self, size: int) -> None:
        """One of each kind beside one another."""
        if len(kinds := self._kinds()) > 1:
            self._bank.features(self._nothing(size), ([*kinds.values()] * size)[:size], size)

    def _tried(self, name: str) -> str | None:
        try:
            self._bank.features(self._nothing(1), name)
        except UserError as error:
            if self.folder is None:  # it is all that is served
                raise
            self.unload(name)
            return f"left out: {error}"
        return None

    def _nothing(self, count: int) -> np.ndarray:
        return np.zeros((count, self.image_size, self.image_size, 3), np.uint8)

    def read(self, name: str) -> Coming:
        if self.folder is None:
            raise Problem(409, ALONE)
        try:
            must_be_name(name)
        except UserError as error:
            raise Problem(404, str(error)) from None
        place = self.folder / name
        if not place.is_dir():
            raise Problem(404, f"the folder of adapters has none of the name {name!r}")
        if not place.resolve().is_relative_to(self.folder.resolve()):
            raise unreadable(f"{name!r} is a link that leads out of the folder of adapters: copy what it leads to")
        with self._refusing(name):
            return self._bank.read(place, name)

    def load(self, coming: Coming) -> Iterator[None]:
        name, kind = coming.entry.name, repr(coming.adapter.method)
        sizes = self._sizes if kind not in self._met else ()  # else nothing of it is new to the device
        with self._refusing(name):
            resident = self._bank.made(coming)
        for size in sizes:
            self._bank.tried(resident, self._nothing(size))
            yield
        self._known[name] = self._told(self._bank.put(resident))
        try:
            for size in sizes:
                yield
                self._mixed(size)
        except Exception:
            self.unload(name)
            raise
        self._met.add(kind)

    @contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Has a request learn why an adapter is refused, and of its files no more than where they lie in the folder."""
        try:
            yield
        except UserError as error:
            reason = str(error).replace(f"{self.folder}{os.sep}", "")
            raise unreadable(f"the adapter {name!r} is refused: {reason}") from None

    def unload(self, name: str) -> None:
        if self.folder is None:
            raise Problem(409, ALONE)
        if name not in self._known:
            raise unknown(name)
        self._bank.remove(name)
        del self._known[name]

    def _told(self, entry: Entry) -> Known:
        weights = entry.place / WEIGHTS
        return Known(
            entry.name,
            self.base,
            entry.adapter.method.name,
            entry.classes,
            entry.adapter.task,
            entry.recipe(self.usual),
            metrics_at(entry.place),
            weights.stat().st_size if weights.exists() else 0,
        )


def metrics_at(place: Path) -> dict[str, float]:
    """The metrics of the run in which an adapter lies; none where it lies in none, or that cannot be read."""
    if place.name != INSIDE:
        return {}
    try:
        return metrics_of(RunFolder(place.parent).read_result())
    except UserError:
        return {}


class ServedModel:
    """One model, which cannot be mixed with others.

    Args:
        program: of it.
        base: of its network.
        known: what it says of itself; its classes may be none, where it can be asked for features alone.
        asked: what explains its answers; None where nothing does.
    """

    folder = None

    def __init__(self, program: Program, base: Base, known: Known, asked: OneModel | None = None) -> None:
        self.base, self.asked = base.name, asked
        self.image_size, self.dim = base.architecture.img_size, base.architecture.feature_dim
        self.usual = None
        self._program, self._one = program, known
        self._sizes: tuple[int, ...] = BUCKETS

    @property
    def names(self) -> Sequence[str]:
        return [self._one.name]

    def get(self, name: str) -> Known | None:
        return self._one if name == self._one.name else None

    def loaded(self, name: str) -> bool:
        return name == self._one.name

    def answer(self, images: np.ndarray, rows: Sequence[Row], headed: Sequence[bool]) -> Sequence[np.ndarray]:
        """Filled up to the next size with rows that nobody reads."""
        size = next((size for size in self._sizes if size >= len(images)), len(images))
        more = np.zeros((size - len(images), *images.shape[1:]), np.uint8)
        logits, features = self._program(np.concatenate([images, more]) if len(more) else images)
        return [logits[at] if asked else features[at] for at, asked in enumerate(headed)]

    def warm(self, sizes: Iterable[int], go_on: GoOn = always) -> Sequence[str]:
        self._sizes = tuple(sorted(sizes))
        for size in reversed(self._sizes):
            if go_on():
                self._program(np.zeros((size, self.image_size, self.image_size, 3), np.uint8))
        return ()

    def read(self, name: str) -> Coming:
        raise Problem(409, ALONE)

    def load(self, coming: Coming) -> Iterator[None]:
        raise Problem(409, ALONE)

    def unload(self, name: str) -> None:
        raise Problem(409, ALONE)


def sizes(most: int) -> Iterator[int]:
    """The sizes that batches are filled up to, of which the largest holds so many images."""
    size = 1
    while size < min(most, LARGEST):
        yield size
        size *= 2
    yield from range(LARGEST, most + LARGEST, LARGEST) if most > LARGEST else [size]
