"""One backbone with many adapters, and batches in which each image has its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.core.batches import slices
from mlx_peft.core.errors import UserError, shown, suggest
from mlx_peft.core.text import counted, printable
from mlx_peft.library.entries import Coming, Entry, all_in, coming, must_be_name, warn_of
from mlx_peft.library.framework import Network
from mlx_peft.library.mixer import Mixer
from mlx_peft.library.passes import Passes, Row
from mlx_peft.library.prediction import Prediction, Predictions
from mlx_peft.library.resident import Resident
from mlx_peft.tasks.logits import finite
from mlx_peft.vit.architecture import Preprocessing


class Bank:
    """Adapters of one base, by name. The base is held once; an adapter is read when it is first asked for.

    Switching copies nothing of the base and compiles nothing that was compiled for an adapter of the same form. Where
    terms are gathered, in MLX and on a GPU, those of one batch's rows stay beside the budget until the next has others.

    Args:
        network: the base, which must have no method; it stays as it is, and may not be trained while the bank is used.
        mixer: the same network, which takes adapters at each call.
        budget: bytes that the adapters in memory may have together; None: any number.

    Attributes:
        refused: why adapters of a folder are not in the bank, by name.
        active: the adapter of all images of which nothing else is said; None: none.
    """

    def __init__(self, network: Network, mixer: Mixer, budget: int | None = None) -> None:
        if network.method is not None:
            raise UserError(
                f"the model has the method {network.method.name!r}; a bank needs the base alone: take it out with "
                "remove_adapter"
            )
        self.refused: Mapping[str, str] = {}
        self.active: str | None = None
        self._network, self._entries = network, dict[str, Entry]()
        self._passes = Passes(network, mixer, budget)
        self._lock = threading.RLock()

    @classmethod
    def of_folder(cls, network: Network, mixer: Mixer, folder: Path, budget: int | None = None) -> Bank:
        """A bank of all adapters that have folders in one. Warns of each that is refused.

        Raises UserError where the folder is none, or has no adapter in it.
        """
        bank = cls(network, mixer, budget)
        bank._entries, bank.refused = all_in(folder, network)
        warn_of(bank.refused)
        return bank

    @property
    def network(self) -> Network:
        """The base, which has no method in it."""
        return self._network

    # Which there are.

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters, in the order of the alphabet."""
        return tuple(sorted(self._entries))

    @property
    def resident(self) -> tuple[str, ...]:
        """Of those in memory, the least recently used first."""
        return self._passes.residents.names

    @property
    def nbytes(self) -> int:
        """Of the adapters in memory; the base is not counted."""
        return self._passes.residents.nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        """What is known of an adapter. Raises UserError where there is none of the name."""
        if name not in self._entries:
            raise UserError(self._unknown(name))
        return self._entries[name]

    def __repr__(self) -> str:
        entries = dict(self._entries)  # which another thread may change meanwhile
        head = f"Bank({counted(len(entries), 'adapter')}, {len(self.resident)} in memory, {self.nbytes:,} bytes)"
        return "\n".join([head, *(f"  {entries[name]}" for name in sorted(entries))])

    def _unknown(self, name: str) -> str:
        if name in self.refused:
            return f"the adapter {printable(name)} is refused: {self.refused[name]}"
        return f"the bank has no adapter {shown(name)}; it has {len(self)}{suggest(name, self._entries)}"

    def add(self, folder: str | Path, name: str | None = None) -> Entry:
        """Takes an adapter in, or a run's, and reads it; one of the same name is replaced.

        Args:
            folder: in which it lies, whole; it may itself be a link.
            name: what it is called; None: the folder's name.

        Raises:
            UserError: it is damaged, of another base, cannot be mixed, or is larger than the budget; the bank is as it
                was then.
        """
        return self.put(self.made(self.read(folder, name)))

    # The same in steps, of which a server answers others between two.

    def read(self, folder: str | Path, name: str | None = None) -> Coming:
        """An adapter, or a run's, whole. Any thread may read; arguments, and what is raised, are those of ``add``."""
        path = Path(folder)
        return coming(path.resolve().name if name is None else name, path, self._network)

    def made(self, coming: Coming) -> Resident:
        """One that was read, where the network is. Raises UserError where it is larger than the budget."""
        with self._lock:
            return self._passes.made(coming)

    def tried(self, resident: Resident, images: np.ndarray) -> None:
        """Has one answer images, as ``logits`` takes them, before it is in the bank: what is compiled for it, or fails,
        does so before anybody asks it."""
        with self._lock:
            self._passes.tried(resident, images)

    def put(self, resident: Resident) -> Entry:
        """Takes one in; one of the same name is replaced."""
        entry = resident.entry
        with self._lock:
            self._passes.take(resident)
            self._entries[entry.name] = entry
            self.refused = {other: reason for other, reason in self.refused.items() if other != entry.name}
        return entry

    def remove(self, name: str) -> None:
        """Lets an adapter go. Raises UserError where there is none of the name."""
        with self._lock:
            del self._entries[self[name].name]
            self._passes.residents.drop(name)
            if self.active == name:
                self.active = None

    def set_adapter(self, name: str | None) -> None:
        """Chooses the adapter of all images of which nothing else is said; None: the base.

        Raises UserError where there is none of the name, or it cannot be read.
        """
        with self._lock:
            if name is not None:
                self._passes.read(self[name])
            self.active = name

    # What they answer.

    def predict(
        self,
        images: Any,
        adapters: Sequence[str | None] | str | None = None,
        top: int = 5,
        *,
        layout: str = "NHWC",
        batch_size: int = 64,
    ) -> Prediction | np.ndarray | Predictions | list[Prediction | np.ndarray]:
        """What the adapters say of images: one answer to one image, and as many as there are to all else.

        Args:
            images: a file, a folder, an image of Pillow's, an array of uint8, or a list of any of these, as in
                ``predict`` of a model; each is cropped as those were that its adapter was trained on.
            adapters: a name an image, or one for all; None in a name's place asks the bare base, whose answer is its
                vector before any head. Without, all images have the active one.
            top: how many of the likeliest classes a person is shown.
            layout: NCHW where arrays have their channels first.
            batch_size: images that are answered at once.

        Raises:
            UserError: a file cannot be read, or what was given is no image; a logit is not finite; and as ``logits``.
        """
        from mlx_peft.data import given  # whoever predicts nothing needs no decoder

        sources, alone = given.taken(images, layout)
        rows = self._rows(adapters, len(sources))
        answers: list[Prediction | np.ndarray] = []
        for part in slices(len(sources), batch_size):
            pixels = np.stack(
                [
                    given.seen(source, self._recipe(row), self._network.architecture.img_size)
                    for source, row in zip(sources[part], rows[part], strict=True)
                ]
            )
            found = self._answered(pixels, rows[part], batch_size)
            for source, row, logits in zip(sources[part], rows[part], found, strict=True):
                file = None if isinstance(source, np.ndarray) else str(source)
                answers.append(logits if row is None else self._prediction(logits, row, top, file))
        if alone:
            return answers[0]
        predictions = [answer for answer in answers if isinstance(answer, Prediction)]
        return Predictions(predictions) if len(predictions) == len(answers) else answers

    def _recipe(self, row: Row) -> Preprocessing:
        usual = self._network.base.preprocessing
        return usual if row is None else row.recipe(usual)

    def _prediction(self, logits: np.ndarray, entry: Entry, top: int, file: str | None) -> Prediction:
        what = f"the adapter {printable(entry.name)}" + ("" if file is None else f" for {file}")
        return Prediction(finite(logits, what), entry.classes, entry.adapter.task, top, file)

    def _rows(self, adapters: Sequence[str | None] | str | None, count: int) -> list[Row]:
        """The adapter of each image, as the bank has them now: all that is said of an image comes from this one.

        Raises UserError where there are not as many names, or there is no such adapter.
        """
        if adapters is None or isinstance(adapters, str):
            adapters = [self.active if adapters is None else adapters] * count
        if len(adapters) != count:
            raise UserError(f"there are {counted(count, 'image')}, and {counted(len(adapters), 'name')} of adapters")
        found: dict[str | None, Row] = {None: None}
        with self._lock:
            for name in dict.fromkeys(adapters):
                if name is not None:
                    must_be_name(name)
                    found[name] = self[name]
        return [found[name] for name in adapters]

    def logits(
        self, images: np.ndarray, adapters: Sequence[str | None] | str | None = None, batch_size: int = 64
    ) -> list[np.ndarray]:
        """The logits of each image, float32 ``(classes,)`` of its own adapter.

        Args:
            images: uint8 ``(images, h, w, 3)``, cropped already.
            adapters: a name an image, or one for all; None in a name's place asks the bare base, whose answer is its
                vector before any head, float32 ``(dim,)``, of two heads the mean. Without, all have the active one.
            batch_size: images that are answered at once.

        Raises:
            UserError: there are not as many names as images, a name is unknown, an adapter cannot be read or alone is
                larger than the budget.
        """
        return self._answered(images, self._rows(adapters, len(images)), batch_size)

    def features(
        self, images: np.ndarray, adapters: Sequence[str | None] | str | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """What each image's adapter makes of it for its head, float32 ``(images, dim)``; where there are two heads,
        the mean of what they read. Arguments, and what is raised, are those of ``logits``."""
        found = self.answers(images, adapters, [False] * len(images), batch_size)
        return np.stack(found) if found else np.empty((0, self._network.architecture.feature_dim), np.float32)

    def answers(
        self,
        images: np.ndarray,
        adapters: Sequence[str | None] | str | None,
        headed: Sequence[bool],
        batch_size: int = 64,
    ) -> list[np.ndarray]:
        """Of each image that is ``headed`` what ``logits`` says, of the others what ``features`` does, in the same
        batches."""
        return self._answered(images, self._rows(adapters, len(images)), batch_size, headed)

    def _answered(
        self, images: np.ndarray, rows: Sequence[Row], batch_size: int, headed: Sequence[bool] | None = None
    ) -> list[np.ndarray]:
        headed = [True] * len(rows) if headed is None else headed
        found: list[np.ndarray] = []
        with self._lock:
            for part in slices(len(images), batch_size):
                found += self._passes.answered(images[part], rows[part], headed[part])
            for row in {id(row): row for row in rows}.values():
                if (
                    row is not None and self._entries.get(row.name) is not row
                ):  # replaced, or removed, since it was asked
                    self._passes.residents.drop(row.name)
        return found
