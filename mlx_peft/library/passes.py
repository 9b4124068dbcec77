"""The rows of a batch, each with an adapter or none, dealt out to passes through the network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from mlx_peft.adaptation.forms import Form, united
from mlx_peft.adaptation.terms import Entering
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.library.entries import Coming, Entry, read
from mlx_peft.library.framework import Network
from mlx_peft.library.mixer import Mixer
from mlx_peft.library.resident import Resident, Residents, made_resident

Row = Entry | None
"""An image's adapter; None for the bare base."""


class Passes:
    """Rows are answered at once that have equally many prompts, and whose adapters the budget has room for together.

    Args:
        network: the base.
        mixer: the same network, which takes adapters at each call.
        budget: bytes that the adapters in memory may have together; None: any number.
    """

    def __init__(self, network: Network, mixer: Mixer, budget: int | None) -> None:
        self.residents = Residents(budget)
        self._network, self._mixer = network, mixer
        self._forms: dict[tuple[Entering, ...], Form] = {}  # that hold all adapters that were read, by their prompts

    def answered(self, images: np.ndarray, rows: Sequence[Row], headed: Sequence[bool]) -> list[np.ndarray]:
        """Each row's logits, or the vector before any head; see ``Bank.logits``. Of one not ``headed``, that vector."""
        answers: dict[int, np.ndarray] = {}
        for residents in self._beside_one_another(rows):
            groups: dict[tuple[Entering, ...], list[int]] = {}
            for at, row in enumerate(rows):
                if row is None and at not in answers:
                    groups.setdefault((), []).append(at)
                elif row is not None and row.name in residents:
                    groups.setdefault(residents[row.name].prompts, []).append(at)
            for prompts, own in groups.items():
                mine = [None if (row := rows[at]) is None else residents[row.name] for at in own]
                found = self._pass(images[own], mine, prompts, [headed[at] for at in own])
                answers |= dict(zip(own, found, strict=True))
        return [answers[at] for at in range(len(rows))]

    def _pass(
        self, images: np.ndarray, rows: Sequence[Resident | None], prompts: tuple[Entering, ...], headed: Sequence[bool]
    ) -> list[np.ndarray]:
        """Rows whose prompts are alike, answered at once; the heads, adapter by adapter."""
        held = [None if row is None else row.held for row in rows]
        vectors = self._mixer.vectors(images, held, self._form(rows, prompts), prompts)
        own: dict[tuple[int, bool], list[int]] = {}
        for at, (row, asked) in enumerate(zip(rows, headed, strict=True)):
            own.setdefault((id(row), asked), []).append(at)
        answers: dict[int, np.ndarray] = {}
        for (_, asked), mine in own.items():
            resident, read = rows[mine[0]], vectors[mine]
            found = read.mean(axis=1) if resident is None or not asked else resident.logits(read)
            answers |= dict(zip(mine, found, strict=True))
        return [answers[at] for at in range(len(rows))]

    def _form(self, rows: Sequence[Resident | None], prompts: tuple[Entering, ...]) -> Form:
        """A form that holds the rows'. Where each new one is compiled, rows of several have that of the whole bank."""
        forms = list({id(row): row.form for row in rows if row is not None}.values())
        if all(form == forms[0] for form in forms[1:]):
            return forms[0] if forms else {}
        return self._forms[prompts] if self._mixer.compiles else united(forms)

    def _beside_one_another(self, rows: Sequence[Row]) -> Iterator[Mapping[str, Resident]]:
        """The rows' adapters in memory by name, as many at a time as the budget has room for; once at least."""
        held: dict[str, Resident] = {}
        for entry in {row.name: row for row in rows if row is not None}.values():
            resident = self.read(entry, held)
            if not self.residents.fits():
                yield held
                held = {}
                self.residents.make_room({entry.name})
            held[entry.name] = resident
        yield held

    def read(self, entry: Entry, needed: Collection[str] = ()) -> Resident:
        """An adapter in memory; others make room for it, but for those that are needed.

        Raises UserError where it cannot be read, or is larger than the budget by itself.
        """
        found = self.residents.get(entry.name)
        if found is None or found.entry is not entry:  # another one has the name since this one was asked
            found = self.made(Coming(entry, read(entry, self._network)))
            self.take(found, needed)
        return found

    def made(self, coming: Coming) -> Resident:
        """An adapter that was read, where the network is. Raises UserError where it is larger than the budget."""
        entry = coming.entry
        found = made_resident(entry, coming.adapter, self._network.architecture, self._mixer)
        budget = self.residents.budget
        if budget is not None and found.nbytes > budget:
            raise UserError(
                f"the adapter {printable(entry.name)} has {found.nbytes:,} bytes, and the budget is {budget:,}"
            )
        return found

    def tried(self, resident: Resident, images: np.ndarray) -> None:
        """Has an adapter answer images before it is taken."""
        self._pass(images, [resident] * len(images), resident.prompts, [False] * len(images))

    def take(self, resident: Resident, needed: Collection[str] = ()) -> None:
        """Puts an adapter that was read in the place of any of its name; others make room, but for what is needed."""
        self.residents.drop(resident.entry.name)
        self.residents.put(resident)
        self.residents.make_room({*needed, resident.entry.name})
        prompts = resident.prompts
        self._forms[prompts] = united([self._forms.get(prompts, {}), resident.form])
