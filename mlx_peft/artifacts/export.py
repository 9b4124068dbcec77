"""A merged model for other runtimes: which kinds there are, and how a file of one comes to be, proved and whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.base import Base
from convert.files import listed
from mlx_peft.codes import affine
from mlx_peft.config.quantization import described
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.text import counted
from mlx_peft.core.writing import move, staging
from mlx_peft.protocols.loading import load_exporter
from mlx_peft.tasks.task import Task


@dataclass(frozen=True)
class Kind:
    """What is written.

    Attributes:
        suffix: of its name.
        reading: what to say to a person of how a model of a task is read there; None where nothing is.
    """

    suffix: str
    reading: Callable[[Task], str | None]

    def must_be_name_of(self, out: Path) -> None:
        """Raises UserError at a name without the suffix."""
        if out.suffix != self.suffix:
            raise UserError(
                f"{out} should have a name that ends in {self.suffix}, such as {out.with_suffix(self.suffix).name!r}"
            )


def _no_classifier(task: Task) -> str | None:
    if task.activation == "softmax":
        return None
    return (
        f"an image {task.image}, and Core ML's classifiers know one: the package is no classifier, and gives an array "
        "of probabilities, in the order of the names in its metadata"
    )


RUNTIMES = {
    "onnx": Kind(
        ".onnx",
        lambda task: task.reading,
    ),
    "coreml": Kind(
        ".mlpackage",
        _no_classifier,
    ),
}


@dataclass(frozen=True)
class Exported:
    """What became of a model.

    Attributes:
        files: what was written, with its bytes; ``out`` first.
        difference: the largest ||a - b|| / ||b|| of the logits; None where it was not measured.
        proof: a sentence that says what was and what was not checked.
        notes: what else a person should know.
    """

    kind: str
    files: dict[Path, int]
    difference: float | None
    proof: str
    notes: tuple[str, ...] = ()


def export_model(
    kind: str, out: Path, *, base: Base, tensors: Tensors, classes: Sequence[str], verify: bool = True
) -> Exported:
    """Writes a model for another runtime, whole and proved or not at all.

    Args:
        kind: of RUNTIMES.
        out: the file, or for Core ML the package, to write.
        base: what the model was made from: name, architecture, preprocessing.
        tensors: timm's state dictionary, merged; a quantised one is written as the float32 that its codes stand for.
        classes: names in the order of the head's rows; empty: their numbers.
        verify: compare what was written with the tensors.

    Raises:
        UserError: for an unknown kind, a name without the kind's suffix or of something that is there, classes that are
            not the head's, packages that are missing, a model that cannot be written so, or a proof that fails.
    """
    if kind not in RUNTIMES:
        raise UserError(f"unknown kind {kind!r}{suggest(kind, RUNTIMES)} ({', '.join(RUNTIMES)})")
    chosen = RUNTIMES[kind]
    chosen.must_be_name_of(out)
    if out.exists():
        raise UserError(f"{out}: exists already; choose another name")
    notes = []
    if any(tensor.dtype == np.uint32 for tensor in tensors.values()):
        if base.quantization is None:
            raise UserError(
                f"{base.name} is in codes, and its base does not say in which: merge it into a plain model first"
            )
        tensors = affine.without_codes(tensors, base.architecture, base.quantization)
        notes.append(f"the codes, {described(base.quantization)}, are written as the float32 weights they stand for")
    if (reading := chosen.reading(base.task)) is not None:
        notes.append(reading)
    names = class_names(classes, len(tensors["head.weight"]))
    exporter = load_exporter(kind)
    with staging(out) as folder:
        new = folder / out.name
        try:
            exporter.write(new, base, tensors, names)
            difference, proof = (
                exporter.prove(new, base, tensors, names) if verify else (None, "not checked, as was asked")
            )
        except OSError:
            raise
        except Exception as error:  # the libraries have none in common
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"{base.name} cannot be exported to {kind}; nothing was written: {reason}") from error
        files = _moved(new, out)
    return Exported(kind, files, difference, proof, tuple(notes))


def class_names(classes: Sequence[str], count: int) -> list[str]:
    """The names of a head's rows, their numbers where there are none. Raises UserError where two are alike, or they are
    not as many as the rows."""
    names = list(classes) or [str(index) for index in range(count)]
    if len(names) != count:
        raise UserError(f"the model has {counted(count, 'class')}, and was given {counted(len(names), 'name')}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two classes have the same name: {listed(map(repr, twice))}")
    return names


def _moved(new: Path, out: Path) -> dict[Path, int]:
    """Moves what was written into place, what others refer to first, and returns it with its bytes."""
    written = sorted(new.parent.iterdir(), key=lambda entry: entry == new)
    for path in written:
        if out.with_name(path.name).exists():
            raise UserError(f"{out.with_name(path.name)}: exists already; choose another name")
    sizes = {}
    for path in written:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        sizes[out.with_name(path.name)] = sum(file.stat().st_size for file in files)
        move(path, out.with_name(path.name))
    return dict(reversed(sizes.items()))
