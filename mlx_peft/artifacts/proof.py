"""The proof of a conversion: logits of what was read and of what was written, against whoever else computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from convert.base import Base
from convert.files import narrowed
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.artifacts.source import Logits, Source, foreign
from mlx_peft.artifacts.targets import Job, Target
from mlx_peft.checks.parity import LOGITS, relative
from mlx_peft.config.methods import Linear
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import BACKENDS, load_backend
from mlx_peft.protocols.model import Model
from mlx_peft.tasks.logits import finite
from mlx_peft.vit.shapes import heads

IMAGES = 2
"""Both sides are compared on so many images of uniform noise."""


@dataclass
class Proof:
    """What was compared, and what could not be.

    Attributes:
        rows: pairs that must agree, each with ||a - b|| / ||b|| of their logits.
        change: what was asked for and changes the logits (fewer bits, another field), and by how much.
        exported: what another runtime computes, by its own, wider tolerance.
        unproved: what could not be compared here, and why.
    """

    rows: dict[str, float] = field(default_factory=dict)
    change: dict[str, float] = field(default_factory=dict)
    exported: dict[str, float] = field(default_factory=dict)
    unproved: list[str] = field(default_factory=list)

    @property
    def largest(self) -> float | None:
        """The largest difference of a pair; None where nothing was compared."""
        return max([*self.rows.values(), *self.exported.values()], default=None)


def prove_source(found: Source, proof: Proof) -> None:
    """The model as it was read, in each backend, against whoever else computes it."""
    images = _noise(found.base)
    ours = _backends(found.base, images, proof)
    for name, logits in found.references.items():
        _compare(ours, f"the source in {name}", logits, images, proof)
    if not found.references:
        proof.unproved.append(f"no library is asked to open a source of {found.kind}: its names and shapes fit")
    _compare_backends(ours, "the source", proof)
    if found.asked is not found.base and _noise(found.asked).shape == images.shape and ours:
        name, before = next(iter(ours.items()))
        proof.change["the fields that were set"] = relative(_logits(found.asked, name, images), before)


def prove_result(found: Source, job: Job, to: str, target: Target, staged: Path, proof: Proof) -> None:
    """What was written, as its own library reads it, against our backends with the tensors that should be in it."""
    base = job.base
    if target.opener is None:  # ours to read
        again = open_path(staged, Asked())
        _must_be(again.tensors or {}, job, to)
        base = replace(base, tensors=again.tensors or {}, quantization=job.quantization)
    elif target.whole:
        base = replace(base, tensors={name: narrowed(name, t, job.dtype) for name, t in job.tensors.items()})
    images = _noise(base)
    ours = _backends(base, images, proof)
    if target.opener is not None:
        opened = base if target.whole else found.bare
        if opened is None:
            proof.unproved.append(f"{to}: the adapter's base is quantised, and no other library has it so")
        else:
            _compare(ours, f"the result in {to}", foreign(target.opener, staged, opened), images, proof)
    _compare_backends(ours, "the result", proof)
    if ours and (job.dtype != "float32" or job.quantization is not None):
        name, after = next(iter(ours.items()))
        proof.change["fewer bits"] = relative(after, _logits(job.base, name, images))


def _compare(ours: Mapping[str, np.ndarray], what: str, theirs: Logits, images: np.ndarray, proof: Proof) -> None:
    """Another's logits against each of ours; where it is not here, or has no words for the model, that is noted."""
    if not ours:
        return
    try:
        expected = theirs(images)
    except (ImportError, UserError) as error:
        proof.unproved.append(f"{what}: {error}")
        return
    except Exception as error:  # the libraries have none in common
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{what}: the proof failed, nothing was written: it cannot be opened there ({reason}); it can be written "
            "without a proof",
            arguments=("no_verify",),
        ) from error
    for name, logits in ours.items():
        proof.rows[f"{what} against {name}"] = relative(logits, expected)


def _compare_backends(ours: Mapping[str, np.ndarray], what: str, proof: Proof) -> None:
    if len(ours) > 1:
        (first, a), (second, b) = ours.items()
        proof.rows[f"{what} in {second} against {first}"] = relative(b, a)


def judge(proof: Proof, what: str) -> None:
    """Raises UserError where a pair differs by more than rounding."""
    if failed := {name: value for name, value in proof.rows.items() if not value <= LOGITS}:
        listed = "; ".join(f"{name}: {value:.1e}" for name, value in failed.items())
        raise UserError(
            f"{what}: the proof failed, nothing was written: logits that should be the same to {LOGITS:.0e} differ: "
            f"{listed}"
        )


def _must_be(again: Mapping[str, np.ndarray], job: Job, what: str) -> None:
    """Raises UserError where what was read again is not what was to be written, rounded."""
    for name in again.keys() | job.tensors.keys():
        if name not in again:
            raise UserError(f"{what}: the proof failed, nothing was written: {name} is missing when read again")
        if name not in job.tensors:
            raise UserError(f"{what}: the proof failed, nothing was written: {name} was not to be written")
        if not np.array_equal(again[name], narrowed(name, job.tensors[name], job.dtype)):
            raise UserError(f"{what}: the proof failed, nothing was written: {name} differs when read again")


def _backends(base: Base, images: np.ndarray, proof: Proof) -> dict[str, np.ndarray]:
    """The logits of each backend that is installed; UserError where they are not finite. Torch comes first: see
    ``mlx_peft.backend.blas``."""
    ours = {}
    for name in sorted(BACKENDS, reverse=True):
        try:
            ours[name] = _logits(base, name, images)
        except UserError as error:
            if str(error) not in proof.unproved:
                proof.unproved.append(str(error))
    for name, logits in ours.items():
        finite(logits, f"the model in {name}")
    return ours


def _logits(base: Base, backend: str, images: np.ndarray) -> np.ndarray:
    """What a backend computes; without a head, the features that one would read."""
    tensors, width = base.tensors, base.architecture.feature_dim
    if "head.weight" not in tensors:
        identity = {"weight": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
        heads_too = {f"{head}.{kind}": t for head in heads(base.architecture) for kind, t in identity.items()}
        tensors = tensors | heads_too
    return base_model(replace(base, tensors=tensors), backend).logits(images)


def base_model(base: Base, backend: str) -> Model:
    """A base in a backend, without a method."""
    return load_backend(backend).build_model(base, len(base.tensors.get("head.weight", ())), Linear())


def _noise(base: Base) -> np.ndarray:
    size = base.architecture.img_size
    return np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
