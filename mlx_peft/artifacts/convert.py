"""A checkpoint from anywhere as a file of any format, which proves itself or leaves nothing behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.base import Base
from convert.files import read_json
from convert.layouts.transformers import CONFIG
from mlx_peft.artifacts.ahead import must_be_new, must_have_room
from mlx_peft.artifacts.proof import Proof, base_model, judge, prove_result, prove_source
from mlx_peft.artifacts.source import Source, open_source
from mlx_peft.artifacts.targets import TARGETS, Job, Runtime, Target
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import move, staging
from mlx_peft.vit.parameters import is_head


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint.

    Attributes:
        opened: how what was written is opened, for a person.
        files: with their bytes.
        proof: None where none was asked for.
    """

    source: Source
    to: str
    opened: str
    files: Mapping[Path, int]
    proof: Proof | None
    notes: tuple[str, ...]


def convert(
    source: str,
    out: Path,
    to: str,
    *,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    verify: bool = True,
    backend: Literal["mlx", "torch"] = "mlx",
    **asked: Any,
) -> Converted:
    """Converts a checkpoint.

    Args:
        source: a path, a name of timm's, or a repository of the hub.
        out: what is to be written; must not be there.
        to: a name of TARGETS.
        dtype: of the floats; float32 where None.
        quantization: of the blocks' weights; for MLX alone.
        verify: compare the logits of both sides.
        backend: what merges and quantises.
        asked: as ``open_source`` has it.

    Raises:
        UserError: where the source is not understood, the format cannot hold the model, or the proof fails.
    """
    target = TARGETS[to]
    must_be_new(out)
    if quantization is not None and to != "mlx":
        raise UserError(f"only the format mlx holds quantised weights, not {to}", arguments=("bits", "to"))
    if dtype is not None and dtype not in target.dtypes:
        raise UserError(f"the format {to} has {', '.join(target.dtypes)}, not {dtype}", arguments=("dtype",))
    target.ready(out)
    found = open_source(source, backend=backend, takes=target.takes, **asked)
    target.check(found)
    must_have_room(out, found.asked.tensors, target.width(dtype, quantization))
    proof = Proof() if verify else None
    if proof is not None:
        prove_source(found, proof)
        judge(proof, source)
    tensors = found.asked.tensors if quantization is None else _quantized(found.asked, backend, quantization)
    job = Job(found.asked, tensors, found.classes, dtype or "float32", quantization, found.adapter)
    if isinstance(target, Runtime):
        notes, files = _exported(target, to, out, job, proof)
    else:
        notes, files = _written(found, job, to, target, out, proof)
    opened = target.opened.format(out=out, name=found.base.name, architecture=_architecture(out))
    return Converted(found, to, opened, files, proof, (*found.asked.notes, *notes, *_fewer(found.asked)))


def _fewer(base: Base) -> tuple[str, ...]:
    """A note where what is converted is used with fewer tokens."""
    if base.tokens is None:
        return ()
    return (
        f"it is used with fewer tokens ({base.tokens}): a config.json of timm's layout says so, and this library alone "
        "looks at it; all others compute with every token",
    )


def _written(
    found: Source, job: Job, to: str, target: Target, out: Path, proof: Proof | None
) -> tuple[Sequence[str], Mapping[Path, int]]:
    """Writes a job beside its place, proves it, and moves it there."""
    with staging(out) as folder:
        staged = folder / out.name
        notes = target.write(staged, job)
        if proof is not None:
            prove_result(found, job, to, target, staged, proof)
            judge(proof, to)
        move(staged, out)
    return [note.replace(str(staged), str(out)) for note in notes], _files(out)


def _exported(
    target: Runtime, to: str, out: Path, job: Job, proof: Proof | None
) -> tuple[Sequence[str], Mapping[Path, int]]:
    """Formats of other runtimes are written, proved and moved into place by what knows them."""
    report = target.export(out, job, proof is not None)
    if proof is not None:
        if report.difference is None:
            proof.unproved.append(report.proof)
        else:
            proof.exported[f"{to}: {report.proof}"] = report.difference
    return report.notes, report.files


def _quantized(base: Base, backend: str, quantization: Quantization) -> dict[str, np.ndarray]:
    """A base's tensors with the blocks' weights in codes."""
    quantization.sites(base.architecture)
    base = replace(base, quantization=quantization)
    classes = len(base.tensors.get("head.weight", ()))
    return {name: tensor for name, tensor in base_model(base, backend).merged().items() if classes or not is_head(name)}


def _architecture(out: Path) -> str:
    """The class of transformers that a folder's configuration names; nothing where it names none."""
    config = read_json(out / CONFIG) if (out / CONFIG).is_file() else {}
    return next(iter(config.get("architectures", ())), "")


def _files(out: Path) -> dict[Path, int]:
    paths = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
    return {path: path.stat().st_size for path in paths}
