"""What can be known of a file before it is made: whether it can have its place, and whether there is room for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile

from convert.adapters.formats import FORMATS
from convert.adapters.peft import CONFIG
from convert.files import read_json
from mlx_peft.config.methods import MethodConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import DiskFull, disk_errors


def must_be_new(out: Path) -> None:
    """Raises UserError where ``out`` is there and not empty, would be part of an adapter, or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is already there: choose another folder")
    if adapter := next((folder for folder in Path(os.path.abspath(out)).parents if (folder / CONFIG).is_file()), None):
        raise UserError(f"{out} would lie in the adapter {adapter}: choose another folder")
    around = _around(out)
    if not around.is_dir():
        raise UserError(f"{out}: cannot be written: {around} is a file")
    if not os.access(around, os.W_OK | os.X_OK):
        raise UserError(f"{out}: cannot be written: the folder {around} may not be written to")


def must_hold_files(out: Path) -> None:
    """Raises UserError where no file can be written into the folder ``out``, which need not be there yet."""
    with disk_errors(out):
        try:
            out.lstat()
            place = out
        except FileNotFoundError:
            place = _around(out)
        with TemporaryFile(dir=place):
            pass


def must_have_room(out: Path, tensors: Tensors, width: int = 4) -> None:
    """Raises UserError where the disk has less room than numbers of ``width`` bytes for all that is in the tensors.

    It is a lower bound: what stands beside the tensors is small.
    """
    around = _around(out)
    needed, free = width * sum(tensor.size for tensor in tensors.values()), shutil.disk_usage(around).free
    if free < needed:
        raise DiskFull(
            f"{out}: cannot be written: it would have {needed / 1e6:,.0f} MB, and the disk of {around} has "
            f"{free / 1e6:,.0f} MB left"
        )


def must_merge(adapter: Path) -> None:
    """Raises UserError where the adapter in a folder, if there is one, is one that merges into no plain model."""
    kind = method_in(adapter) if (adapter / CONFIG).is_file() else None
    if kind is not None:
        kind.must_merge()


def method_in(adapter: Path) -> type[MethodConfig] | None:
    """The method of an adapter's folder, by its configuration alone; None where that names none of ours.

    Raises UserError where the configuration is missing or damaged.
    """
    named = read_json(adapter / CONFIG).get("peft_type")
    return next((kind for kind, layout in FORMATS.items() if layout.peft_type == named), None)


def _around(out: Path) -> Path:
    """The nearest of the folders around it that is there."""
    place = Path(os.path.abspath(out)).parent
    return next(folder for folder in (place, *place.parents) if folder.exists())
