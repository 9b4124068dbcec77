"""How long an optimiser is that of its network: until a method is put into it or taken out."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_peft.core.errors import UserError


@dataclass(eq=False)
class Standing:
    """What a network and its optimisers hold alike, from one change of what is trained in it to the next.

    The names of what is trained may be the same after a change, and its tensors are others all the same: moments of the
    old would be taken for theirs, or nothing of them would be trained.
    """

    over: bool = False
    merged: bool = False
    """Its layers are plain ones, and what is trained lies aside: a step would train the head alone."""

    def end(self) -> Standing:
        """Another one, for the network as it is now; whoever holds this one is told."""
        self.over = True
        return Standing()

    def must_last(self) -> None:
        """Raises UserError where the network has been changed since, or its method is merged."""
        if self.over:
            raise UserError(
                "the optimiser was made before add_adapter or remove_adapter changed what is trained: make it after "
                "add_adapter"
            )
        if self.merged:
            raise UserError("the method is merged into the model: unmerge it before it is trained on")

    def must_be(self, now: Standing) -> None:
        """Raises UserError where this is not how a network stands now."""
        self.must_last()
        if now is not self:
            raise UserError("the optimiser is that of another model: make one of this model")
