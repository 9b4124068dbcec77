"""A machine whose processors are as busy as a test says, on a clock of its own."""

from __future__ import annotations

from mlx_peft.checks.busy import Others, Reading

PROCESSORS = Others().processors


class Machine:
    """What other processes take of it, and this one: shares of its processors' time."""

    def __init__(self, share: float, own: float = 0.5) -> None:
        self.share, self.own = share, own
        self.now = Reading(0.0, 0.0, 0.0, {(7, "idler"): 0.0, (8, "baker"): 0.0})
        self.waits: list[float] = []

    def read(self) -> Reading:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        others, own = (share * seconds * PROCESSORS for share in (self.share, self.own))
        self.now = Reading(
            self.now.wall + seconds,
            self.now.taken + others + own,
            self.now.own + own,
            {(7, "idler"): 0.0, (8, "baker"): self.now.each[8, "baker"] + others},
        )

    def others(self, anyway: bool = False) -> Others:
        return Others(anyway, self.read, self.wait)
