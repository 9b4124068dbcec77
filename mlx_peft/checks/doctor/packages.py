"""What is installed, and whether it goes together: by what the packages themselves ask of each other."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mlx_peft.checks.doctor.finding import Finding, fault, fine, warning

OWN = "mlx-peft"
SHOWN = ("mlx-peft", "mlx", "torch", "torchvision", "timm", "peft", "numpy", "safetensors", "huggingface-hub")
"""The versions of these are told."""
BESIDE = ("torchvision", "timm", "peft", "transformers")
"""What stands on torch: each says which of it goes with it."""


def installed(name: str) -> Distribution | None:
    """A package; None where it is not installed. Asked each time: a test may install one."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """What this package needs, and the versions of what is there."""
    own = installed(OWN)
    found = {name: one.version for name in SHOWN if (one := installed(name)) is not None}
    yield fine("packages", ", ".join(f"{name} {version}" for name, version in found.items()))
    if own is None:
        yield warning("packages", "this runs from its sources, which say nothing of what they need", "pip install .")
        return
    for wanted in requirements(own):
        there = installed(wanted.name)
        if there is None:
            yield fault("packages", f"{wanted.name} is missing", remedy(wanted))
        elif not suits(wanted, there):
            yield fault(
                "packages", f"{wanted.name} {there.version} is here, and {wanted.specifier} is needed", remedy(wanted)
            )
    for extra, wanted, there in unsuited(own):
        said = f"{wanted.name} {there.version} is here, and {OWN}[{extra}] needs {wanted.specifier}"
        yield fault("packages", said, remedy(wanted))


def requirements(of: Distribution, extra: str = "") -> list[Requirement]:
    """What a package asks for on this machine: always; or beside that, for one of its extras."""
    found = []
    for text in of.requires or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        always, here = (wanted.marker is None or wanted.marker.evaluate({"extra": name}) for name in ("", extra))
        if here and (not extra or not always) and canonicalize_name(wanted.name) != canonicalize_name(OWN):
            found.append(wanted)
    return found


def unsuited(own: Distribution) -> Iterator[tuple[str, Requirement, Distribution]]:
    """What an extra asks for in another version than is here: extra, requirement, package.

    Nobody says which extras were installed. It counts where all that an extra asks for is here, in whatever versions,
    and where no extra takes the package as it is: a torch that is too old for ``export`` is right without it.
    """
    extras = {extra: requirements(own, extra) for extra in own.metadata.get_all("Provides-Extra", [])}
    here = {wanted.name: installed(wanted.name) for asked in extras.values() for wanted in asked}
    right = {
        wanted.name
        for asked in extras.values()
        for wanted in asked
        if (there := here[wanted.name]) is not None and suits(wanted, there)
    }
    for extra, asked in extras.items():
        whole = all(here[wanted.name] is not None for wanted in asked)
        for wanted in asked:
            there = here[wanted.name]
            if there is not None and not suits(wanted, there) and (whole or wanted.name not in right):
                yield extra, wanted, there


def remedy(wanted: Requirement) -> str:
    """How to have what is asked for."""
    return f"pip install -U '{wanted.name}{wanted.specifier}'"


def suits(wanted: Requirement, there: Distribution) -> bool:
    """Whether a package has a version that is asked for."""
    return wanted.specifier.contains(there.version, prereleases=True)


def together() -> Iterator[Finding]:
    """Whether what stands on torch goes with the torch that is there."""
    torch = installed("torch")
    if torch is None:
        return
    wrong = False
    for name in BESIDE:
        if (one := installed(name)) is None:
            continue
        for wanted in requirements(one):
            if canonicalize_name(wanted.name) == "torch" and not suits(wanted, torch):
                wrong = True
                yield fault(
                    "torch",
                    f"{name} {one.version} is built for torch{wanted.specifier}, and torch {torch.version} is here",
                    f"install them together: pip install -U torch {name}",
                )  # fmt: skip
        if name == "torchvision" and apart(torch.version, one.version):
            wrong = True
            yield fault(
                "torch", f"torch {torch.version} and torchvision {one.version} are of two builds",
                f"install both from https://download.pytorch.org/whl/{build(torch.version)}: pip install -U torch "
                "torchvision",
            )  # fmt: skip
    if not wrong:
        yield fine("torch", f"torch {torch.version}, and what stands on it was built for it")


def build(version: str) -> str:
    """``cu124`` or ``cpu`` of ``2.5.0+cu124``; empty where a version does not say."""
    try:
        return Version(version).local or ""
    except InvalidVersion:
        return ""


def apart(one: str, other: str) -> bool:
    """Whether two versions say that they are of different builds."""
    return bool(build(one) and build(other) and build(one) != build(other))
