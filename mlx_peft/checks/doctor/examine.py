"""Everything that is looked at, in its order: what a step needs stands before the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mlx_peft.checks.doctor import compute, hub, machine, packages, places, step
from mlx_peft.checks.doctor.finding import Finding, fault

Check = Callable[[], Iterator[Finding]]

QUICK: dict[str, Check] = {
    "python": machine.python,
    "memory": machine.room,
    "threads": machine.computing,
    "open files": machine.files,
    "packages": packages.packages,
    "torch": packages.together,
    "BLAS": compute.blas,
    "compiler": compute.compiler,
    "folders": places.writable,
    "disk": places.room,
}
HUB: dict[str, Check] = {"hub": hub.hub}
STEP: dict[str, Check] = {"step": step.steps}


def examine(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """What each finds, as soon as it is found; one that fails itself is a fault, and the others go on."""
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            said = f"this could not be looked at ({type(error).__name__}: {error})"
            yield fault(name, said, "report it: it is a fault of doctor, or of a package that it asks")


def passed(found: Iterable[Finding]) -> bool:
    """Whether nothing of it is a fault."""
    return all(one.level != "fault" for one in found)
